"""Where a derivative can be nonzero."""

from typing import Literal

import jax.numpy as jnp  # noqa: F401 - the example uses it

from gradlab import inputs
from gradlab.errors import OptionError
from gradlab.mode.sparsity import Sparsity, found
from gradlab.types import Argnums, Fn, PyTree


def sparsity(f: Fn, *args: PyTree, of: Literal["jacobian", "hessian"] = "jacobian", argnums: Argnums = 0) -> Sparsity:
    """The pattern of a Jacobian or a Hessian, and a coloring: which columns or rows one pass can take together.

    The operators look for it by themselves, once for each program. It is for looking at, and for keeping: `save` it,
    `Sparsity.load` it another day, and pass it to `jacobian` or `hessian` as `sparsity=`.

    Args:
        f: a function of pytrees.
        args: its arguments; of floating ones the shapes count, not the values.
        of: `"jacobian"` or `"hessian"`.
        argnums: which positional argument to differentiate, or a tuple of them.

    Returns:
        The pattern, with `.shape`, `.nnz`, `.rows`, `.columns`, `.colors` and `.direction`; print it.

    Raises:
        OptionError: of is another quantity.
        MissingExtraError: asdex is not installed, or does not work with this JAX.
        UnsupportedModeError: asdex cannot read f's derivative, or coloring saves too little.

    Source: Gebremedhin, Manne and Pothen, What color is your Jacobian? (SIAM Review 47, 2005).

    >>> print(sparsity(lambda x: x[1:] * x[:-1], jnp.ones(100)))
    99 x 100 with 198 entries, 2 forward passes
    """
    inputs.require_function(f, "sparsity")
    inputs.require_argnums(argnums)
    if of not in ("jacobian", "hessian"):
        raise OptionError(f"of must be 'jacobian' or 'hessian', but got {of!r}.")
    g, x = inputs.focus(f, argnums, args, {})
    inputs.require_fit(g, x, of)
    return found(g, x, of)

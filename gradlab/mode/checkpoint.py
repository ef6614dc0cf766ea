"""Rematerialized functions: the same value, and a reverse mode that keeps less and computes it again.

Source: Griewank and Walther, Algorithm 799: revolve, ACM Transactions on Mathematical Software 26 (2000); Chen et al.,
Training deep nets with sublinear memory cost (2016).
"""

from dataclasses import dataclass
from typing import Any, assert_never, get_args

import jax

from gradlab.errors import OptionError, nearest
from gradlab.jaxprs import trace
from gradlab.jaxprs.rewriting import segmented, with_bodies_under
from gradlab.mode.support import Unary
from gradlab.types import CheckpointPolicy, PyTree


def rematerialized(f: Unary, x: PyTree, policy: CheckpointPolicy = "segments") -> Unary:
    """A function equal to f whose reverse mode keeps less: for a loop of n steps, √n states where f keeps n.

    What is not kept is computed once more on the way back: one more evaluation of f, for each level of loops in loops.
    Outside of loops, XLA's CPU compiler drops JAX's barrier, finds the second computation equal to the first, and keeps
    it after all; so `"segments"` leaves what is outside of loops as it is, and there the other two save memory on
    accelerators alone.

    Args:
        f: a function of one pytree.
        x: the point, or its shapes; f is traced there.
        policy: `"segments"` cuts every `scan` of at least 4 steps into about √n segments and keeps where each begins;
            `"dots"` keeps the results of matrix products alone, and `"everything"` nothing within a step: both for f
            and for the body of every scan, of which each step's carry stays. `"none"` is f itself.

    Returns:
        A function of one pytree with x's structure, shapes and dtypes.

    Raises:
        OptionError: a policy that does not exist.

    >>> import jax.numpy as jnp
    >>> f = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) * x, None), x, length=100)[0]
    >>> bool(jnp.isclose(jax.grad(rematerialized(f, 1.5))(1.5), jax.grad(f)(1.5)))
    True
    """
    require_policy(policy)
    if policy == "none":
        return f
    wrap = lambda a: a if hasattr(a, "dtype") else _Constant(a)
    program = trace(lambda x: jax.tree.map(wrap, f(x)), x)
    match policy:
        case "segments":
            run = segmented(program)
        case "dots":
            keep = jax.checkpoint_policies.dots_saveable
            run = jax.checkpoint(with_bodies_under(program, keep), policy=keep)
        case "everything":
            run = jax.checkpoint(with_bodies_under(program, None))
        case _:
            assert_never(policy)
    constant = lambda a: isinstance(a, _Constant)
    return lambda x: jax.tree.map(lambda a: a.value if constant(a) else a, run(x), is_leaf=constant)


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class _Constant:
    """What f returns beside arrays, such as text: a trace has no place for it but the structure of the output."""

    value: Any


def require_policy(policy: object) -> None:
    """Raise `OptionError` unless the policy exists."""
    known = get_args(CheckpointPolicy)
    if policy not in known:
        raise OptionError(f"There is no policy {policy!r}; known are {', '.join(known)}.{nearest(policy, known)}")

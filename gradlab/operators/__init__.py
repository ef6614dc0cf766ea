"""The operators: each takes a plain JAX function and returns the function that is its derivative.

`directional` has those that follow one direction at a time, `dense` those that assemble every direction, `pattern`
says where those can be nonzero. All of them
work under `jax.jit`, `jax.vmap` and inside one another.
"""

from gradlab import inputs
from gradlab.operators.dense import gradient, hessian, jacobian, laplacian, steepest_direction, value_and_gradient
from gradlab.operators.directional import derivative, directional_derivative, hvp, pullback, pushforward, taylor
from gradlab.operators.pattern import sparsity
from gradlab.types import MODES, Quantity

__all__ = [
    "derivative",
    "directional_derivative",
    "gradient",
    "hessian",
    "hvp",
    "jacobian",
    "laplacian",
    "modes",
    "pullback",
    "pushforward",
    "sparsity",
    "steepest_direction",
    "taylor",
    "value_and_gradient",
]


def modes(of: Quantity) -> tuple[str, ...]:
    """The names of the modes that a quantity can be computed in.

    Args:
        of: `"gradient"`, `"jacobian"`, `"hessian"`, `"hvp"` or `"laplacian"`.

    Raises:
        UnknownModeError: another name.

    >>> modes("jacobian")
    ('forward', 'reverse', 'sparse', 'waist', 'auto')
    """
    inputs.require_quantity(of)
    return MODES[of]

"""The choice that `mode="auto"` makes, for any quantity."""

from gradlab.mode import choice, gradient, hessian, hvp, jacobian, laplacian
from gradlab.mode.choice import Choice
from gradlab.mode.jacobian import Options
from gradlab.mode.support import Unary
from gradlab.types import PyTree, Quantity


def choose(f: Unary, x: PyTree, of: Quantity, v: PyTree = None, memory_limit: int | None = None) -> Choice:
    """The mode that `auto` takes for f at x, and what is predicted of every mode.

    Args:
        f: a function of one pytree.
        x: the point, or its shapes.
        of: the quantity; a gradient has no `auto`, and its cheapest mode stands for it.
        v: the direction, for `"hvp"`.
        memory_limit: bytes; None for what the device has.

    Raises:
        UnsupportedModeError: no mode can run.

    >>> choose(lambda t: t * 2.0, 1.0, "jacobian").mode
    'forward'
    """
    options = Options(memory_limit=memory_limit)
    match of:
        case "gradient":
            return choice.cheapest(gradient.candidates(f), x, of)
        case "jacobian":
            return jacobian.choose(f, x, options)
        case "hessian":
            return hessian.choose(f, x, options)
        case "hvp":
            return hvp.choose(f, x, v)
        case "laplacian":
            return laplacian.choose(f, x, memory_limit=memory_limit)

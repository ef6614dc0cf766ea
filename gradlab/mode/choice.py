"""What `mode="auto"` takes, for any quantity, found by tracing alone."""

from gradlab.errors import UnsupportedModeError
from gradlab.mode import gradient, hessian, hvp, jacobian, laplacian
from gradlab.mode.support import Unary, first_supported
from gradlab.types import PyTree, Quantity


def pick(f: Unary, x: PyTree, of: Quantity, v: PyTree = None) -> str | None:
    """The mode that `auto` takes for f at x; None where no mode can run.

    Args:
        f: a function of one pytree.
        x: the point, or its shapes.
        of: the quantity; a gradient has no `auto`, and its first mode that can run stands for it.
        v: the direction, for `"hvp"`.

    >>> pick(lambda t: t * 2.0, 1.0, "jacobian")
    'forward'
    """
    try:
        match of:
            case "gradient":
                return first_supported([(mode, gradient.of_scalar(f, mode)) for mode in gradient.ALL], x, of)
            case "jacobian":
                return jacobian.choose(f, x)
            case "hessian":
                return hessian.choose(f, x)
            case "hvp":
                return hvp.choose(f, x, v)
            case "laplacian":
                return laplacian.choose(f, x)
    except UnsupportedModeError:
        return None

"""Where in the user's files a derivative that is not finite, or zero, comes from: what blame says of a case."""

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.checking.case import Case
from gradlab.checking.flat import Array
from gradlab.graphs.blaming import blame_of_part, blame_of_results
from gradlab.graphs.record import Blame
from gradlab.jaxprs import trace


def not_finite(case: Case, w: Array | None, v: Array) -> Blame | None:
    """Who made a derivative that is not finite.

    Args:
        case: what was judged.
        w: the cotangent of reverse mode, `[m]`; None for forward mode.
        v: the direction of forward mode, `[n]`.
    """
    f, u = case.flat.f, jnp.asarray(case.flat.u)
    if case.flat.calls_host:  # it may not be run once more
        return None
    if w is not None:
        return blame_of_part(f, u, jnp.asarray(w, f.shape.dtype))
    # Of the function itself: a program that is replayed lends its own lines to the rules that it calls.
    push = trace(lambda u: jax.jvp(case.flat.plain, (u,), (jnp.asarray(v, u.dtype),))[1], u)
    return blame_of_results(push, u)


def zero(case: Case, v: Array) -> Blame | None:
    """What cuts off the inputs that a direction moves, `[n]`."""
    f, u = case.flat.f, jnp.asarray(case.flat.u)
    if case.flat.calls_host:
        return None
    return blame_of_part(f, u, jnp.ones(f.shape.shape, f.shape.dtype), part=np.asarray(v) != 0)

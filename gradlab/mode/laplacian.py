"""Laplacians Δf = tr H of scalar functions.

Source: Griewank, Utke and Walther, Evaluating higher derivative tensors by forward propagation of univariate Taylor
series, Mathematics of Computation 69 (2000), for the Taylor mode.
"""

from typing import Any, assert_never

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet

from gradlab import trees
from gradlab.mode import hessian
from gradlab.mode.support import Unary, explained, first_supported
from gradlab.types import LaplacianMode, PyTree

# The preferred first: n Hessian–vector products keep no n × n array; the trace of a dense Hessian has every mixture.
PREFERENCE: tuple[LaplacianMode, ...] = ("forward_over_reverse", "taylor", "hessian_trace")


def compute(f: Unary, x: PyTree, mode: LaplacianMode) -> Any:
    """The Laplacian of f at x in the given mode: a scalar, shape `()`."""
    if mode == "auto":
        mode = choose(f, x)
    others = lambda: [(name, trace(f, name)) for name in PREFERENCE]
    return explained(trace(f, mode), x, mode, "laplacian", others)


def choose(f: Unary, x: PyTree) -> LaplacianMode:
    """The first mode, in the order of `PREFERENCE`, that can run."""
    return first_supported([(mode, trace(f, mode)) for mode in PREFERENCE], x, "laplacian")


def trace(f: Unary, mode: LaplacianMode) -> Unary:
    """`x ↦ tr H`, over all leaves of x."""

    def flat(x: PyTree) -> tuple[Unary, jax.Array]:
        vector, back = trees.ravel(x)
        return lambda u: f(back(u)), vector

    def by_columns(second: Any) -> Unary:
        def total(x: PyTree) -> jax.Array:
            g, u = flat(x)
            return jnp.sum(jax.vmap(lambda e: second(g, u, e))(jnp.eye(u.size, dtype=u.dtype)))

        return total

    match mode:
        case "hessian_trace":
            return lambda x: jnp.trace(hessian.compute(*flat(x), "auto", None))
        case "forward_over_reverse":
            return by_columns(lambda g, u, e: jnp.vdot(e, jax.jvp(jax.grad(g), (u,), (e,))[1]))
        case "taylor":
            return by_columns(lambda g, u, e: jet(g, (u,), ((e, jnp.zeros_like(e)),))[1][1])
        case "auto":
            raise AssertionError("auto is resolved by choose")
        case _:
            assert_never(mode)

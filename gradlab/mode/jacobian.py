"""Jacobians J = ∂f/∂x in every mode."""

from typing import Any

import jax

from gradlab import trees
from gradlab.mode.dense import DIRECTIONS, Direction, dense, unchunked
from gradlab.mode.support import Unary, explained, first_supported
from gradlab.types import JacobianMode, PyTree


def compute(f: Unary, x: PyTree, mode: JacobianMode, chunk_size: int | None, has_aux: bool) -> Any:
    """The Jacobian of f at x in the given mode, in the structure that `jax.jacobian` gives.

    Args:
        f: a function of one pytree.
        x: the point; n numbers in all.
        mode: a Jacobian mode.
        chunk_size: so many directions at a time, or None for all at once.
        has_aux: f returns `(y, aux)`, and the result is `(J, aux)`.
    """
    if mode == "auto":
        mode = choose(f, x, has_aux)
    others = lambda: [(name, dense(f, name, chunk_size, has_aux)) for name in DIRECTIONS]
    return explained(dense(f, mode, chunk_size, has_aux), x, mode, "jacobian", others)


def choose(f: Unary, x: PyTree, has_aux: bool = False) -> Direction:
    """The direction with fewer passes, among those that can run.

    Forward mode takes n passes and reverse mode m, for J of shape `[m, n]`; ties go forward, which keeps no
    intermediate value. Decided while tracing, from shapes and rules alone.

    >>> import jax.numpy as jnp
    >>> choose(lambda x: jnp.sum(x**2), jnp.ones(5)), choose(lambda t: t * jnp.ones(5), 1.0)
    ('reverse', 'forward')
    """
    y = jax.eval_shape(f, x)
    order: tuple[Direction, ...] = DIRECTIONS
    if trees.size(y[0] if has_aux else y) < trees.size(x):
        order = ("reverse", "forward")
    return first_supported([(d, unchunked(f, d, has_aux)) for d in order], x, "jacobian")

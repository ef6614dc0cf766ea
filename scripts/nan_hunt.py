"""Gradients that are NaN, infinite or zero, each with the operator and the line that made it, and the usual cure.

Run: python scripts/nan_hunt.py
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradlab as gl


def single_where(x: Any) -> Any:
    roots = jnp.sqrt(x)  # of 0, where the other branch is taken
    return jnp.sum(jnp.where(x > 0, roots, 0.0))


def double_where(x: Any) -> Any:
    safe = jnp.where(x > 0, x, 1.0)
    return jnp.sum(jnp.where(x > 0, jnp.sqrt(safe), 0.0))


def distance(points: Any) -> Any:
    return jnp.sum(jnp.linalg.norm(points - points[0], axis=-1))


def entropy(logits: Any) -> Any:
    p = jax.nn.softmax(logits)
    return -jnp.sum(p * jnp.log(p))


def recurrence(x: Any) -> Any:
    step = lambda state, t: (0.5 * state + t, jnp.log(jnp.abs(state + t)))
    return jnp.sum(jax.lax.scan(step, 0.0, x)[1])


def dead(params: Any, x: Any) -> Any:
    hidden = jax.nn.relu(x @ params["in"] - 4.0)
    return jnp.sum(hidden @ params["out"])


def rounded(x: Any) -> Any:
    return jnp.sum(jnp.round(4.0 * x) / 4.0)


WEIGHTS = {"in": 0.1 * jnp.ones((3, 4)), "out": jnp.ones(4)}
CASES: tuple[tuple[Callable[..., Any], tuple], ...] = (
    (single_where, (jnp.array([4.0, 0.0]),)),
    (double_where, (jnp.array([4.0, 0.0]),)),
    (distance, (jnp.eye(3),)),
    (entropy, (jnp.array([0.0, 300.0]),)),
    (recurrence, (jnp.array([1.0, 0.5, -1.0, 2.0]),)),
    (dead, (WEIGHTS, jnp.ones((2, 3)))),
    (rounded, (jnp.array([0.3, 0.6]),)),
)


def main() -> None:
    for f, args in CASES:
        blame = gl.graph(f, *args).blame()
        print(f"{f.__name__}: {blame or 'nothing is wrong'}\n")


if __name__ == "__main__":
    main()

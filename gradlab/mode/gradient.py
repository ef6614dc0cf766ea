"""Gradients of scalar functions, with the value that comes along.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), chapter 3: the cheap gradient principle.
"""

from typing import Any, assert_never

import jax

from gradlab.mode import choice
from gradlab.mode.checkpoint import rematerialized
from gradlab.mode.choice import Candidate
from gradlab.mode.support import Unary, explained
from gradlab.types import CheckpointPolicy, GradientMode, PyTree

ALL: tuple[GradientMode, ...] = ("reverse", "forward", "checkpoint")


def compute(f: Unary, x: PyTree, mode: GradientMode, has_aux: bool, value: bool, policy: CheckpointPolicy) -> Any:
    """∇f at x in the given mode, in the structure of `jax.grad`, or of `jax.value_and_grad` where value is set."""
    take = lambda name: of_scalar(f, name, has_aux, value, policy)
    return explained(take(mode), x, mode, "gradient", lambda: [(name, take(name)) for name in ALL])


def candidates(f: Unary) -> list[Candidate]:
    """Every mode of a gradient, the preferred first."""
    return [choice.plain(mode, of_scalar(f, mode)) for mode in ALL]


def of_scalar(
    f: Unary,
    mode: GradientMode,
    has_aux: bool = False,
    value: bool = False,
    policy: CheckpointPolicy = "segments",
) -> Unary:
    """`x ↦ ∇f`: one pass in reverse mode, which may keep less and compute it again; n passes in forward mode."""
    match mode:
        case "reverse":
            return (jax.value_and_grad if value else jax.grad)(f, has_aux=has_aux)
        case "forward":
            return _forward_with_value(f, has_aux) if value else jax.jacfwd(f, has_aux=has_aux)
        case "checkpoint":
            return lambda x: of_scalar(rematerialized(f, x, policy), "reverse", has_aux, value)(x)
        case _:
            assert_never(mode)


def _forward_with_value(f: Unary, has_aux: bool) -> Unary:
    def keep(x: PyTree) -> tuple[Any, Any]:
        y = f(x)
        return (y[0], y) if has_aux else (y, y)

    def value_and_gradient(x: PyTree) -> tuple[Any, Any]:
        slope, y = jax.jacfwd(keep, has_aux=True)(x)
        return y, slope

    return value_and_gradient

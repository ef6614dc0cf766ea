"""Gradients of scalar functions, with the value that comes along.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), chapter 3: the cheap gradient principle.
"""

from typing import Any, assert_never

import jax

from gradlab.mode.support import Unary, explained
from gradlab.types import GradientMode, PyTree

ALL: tuple[GradientMode, ...] = ("reverse", "forward")


def compute(f: Unary, x: PyTree, mode: GradientMode, has_aux: bool, value: bool) -> Any:
    """∇f at x in the given mode, in the structure of `jax.grad`, or of `jax.value_and_grad` where value is set."""
    others = lambda: [(name, of_scalar(f, name, has_aux, value)) for name in ALL]
    return explained(of_scalar(f, mode, has_aux, value), x, mode, "gradient", others)


def of_scalar(f: Unary, mode: GradientMode, has_aux: bool = False, value: bool = False) -> Unary:
    """`x ↦ ∇f`: one pass in reverse mode, n passes in forward mode."""
    match mode:
        case "reverse":
            return (jax.value_and_grad if value else jax.grad)(f, has_aux=has_aux)
        case "forward":
            return _forward_with_value(f, has_aux) if value else jax.jacfwd(f, has_aux=has_aux)
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

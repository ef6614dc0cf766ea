"""Dense Hessians H = ∂²f/∂x²: the Jacobian of a Jacobian, in any of the four mixtures of modes.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), section 5.1.
"""

from typing import Any, cast

import jax

from gradlab.mode import jacobian
from gradlab.mode.jacobian import Direction, Unary
from gradlab.mode.support import explained, first_supported
from gradlab.types import HessianMode, PyTree

# The preferred first: one linearized gradient serves all columns; then the mixtures that need fewer reverse rules.
PREFERENCE: tuple[HessianMode, ...] = (
    "forward_over_reverse",
    "reverse_over_forward",
    "reverse_over_reverse",
    "forward_over_forward",
)


def compute(f: Unary, x: PyTree, mode: HessianMode, chunk_size: int | None) -> Any:
    """The Hessian of f at x in the given mode, in the structure that `jax.hessian` gives."""
    if mode == "auto":
        mode = choose(f, x)
    others = lambda: [(name, nested(f, name, chunk_size)) for name in PREFERENCE]
    return explained(nested(f, mode, chunk_size), x, mode, "hessian", others)


def choose(f: Unary, x: PyTree) -> HessianMode:
    """The first mixture, in the order of `PREFERENCE`, that can run."""
    return first_supported([(mode, nested(f, mode)) for mode in PREFERENCE], x, "hessian")


def directions(mode: HessianMode) -> tuple[Direction, Direction]:
    """The outer and the inner direction that a mixture's name says.

    >>> directions("forward_over_reverse")
    ('forward', 'reverse')
    """
    outer, inner = mode.split("_over_")
    return cast(Direction, outer), cast(Direction, inner)


def nested(f: Unary, mode: HessianMode, chunk_size: int | None = None) -> Unary:
    """`x ↦ H`: the inner Jacobian, and the outer one of it.

    In chunks, an inner reverse mode needs one pass for each output of f, which is one, so the outer directions are
    chunked. An inner forward mode is taken one direction at a time, H e = ∂(J e)/∂x, and those directions are chunked:
    the outer derivative of a whole inner Jacobian would keep n × n values for each of its rows.
    """
    outer, inner = directions(mode)
    if chunk_size is None or inner == "reverse":
        return jacobian.dense(jacobian.dense(f, inner), outer, chunk_size)
    size = chunk_size if outer == "forward" else None

    def columns(x: PyTree) -> Any:
        slope_along = lambda e: lambda x: jax.jvp(f, (x,), (e,))[1]
        return jacobian.assembled(lambda e: jacobian.dense(slope_along(e), outer, size)(x), x, chunk_size)

    return columns

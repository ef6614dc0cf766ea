"""Dense Hessians H = ∂²f/∂x²: the Jacobian of a Jacobian, in any of the four mixtures of modes.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), section 5.1.
"""

from typing import Any

from gradlab.mode.dense import MIXTURES, nested
from gradlab.mode.support import Unary, explained, first_supported
from gradlab.types import HessianMode, PyTree


def compute(f: Unary, x: PyTree, mode: HessianMode, chunk_size: int | None) -> Any:
    """The Hessian of f at x in the given mode, in the structure that `jax.hessian` gives."""
    if mode == "auto":
        mode = choose(f, x)
    others = lambda: [(name, nested(f, name, chunk_size)) for name in MIXTURES]
    return explained(nested(f, mode, chunk_size), x, mode, "hessian", others)


def choose(f: Unary, x: PyTree) -> HessianMode:
    """The first mixture, in the order of `MIXTURES`, that can run."""
    return first_supported([(mode, nested(f, mode)) for mode in MIXTURES], x, "hessian")

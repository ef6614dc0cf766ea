"""The names that signatures use: what a function takes and gives, and the modes there are.

`modes(of)` reads the `Literal`s here, so a mode exists if and only if it is listed on this page.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import jax

PyTree = Any  # an arbitrary nesting of tuples, lists, dicts and registered containers, with arrays at its leaves
Scalar = jax.Array  # shape ()
Params = PyTree  # what is differentiated
Batch = PyTree  # what is not
Fn = Callable[..., PyTree]
ScalarFn = Callable[..., Scalar]
Loss = Callable[..., Scalar]


class Optimizer(Protocol):
    """optax's pair of pure functions: `init(params) ↦ state`, `update(gradient, state, params) ↦ (updates, state)`."""

    @property
    def init(self) -> Callable[[Params], PyTree]: ...

    @property
    def update(self) -> Callable[..., tuple[PyTree, PyTree]]: ...


Argnums = int | tuple[int, ...]

Quantity = Literal["gradient", "jacobian", "hessian", "hvp", "laplacian"]

GradientMode = Literal["reverse", "forward", "checkpoint"]
CheckpointPolicy = Literal["none", "dots", "everything", "segments"]
JacobianMode = Literal["forward", "reverse", "sparse", "waist", "auto"]
Mixture = Literal["forward_over_reverse", "reverse_over_forward", "reverse_over_reverse", "forward_over_forward"]
HessianMode = Literal[Mixture, "sparse", "auto"]
HvpMode = Literal[Mixture, "auto"]
LaplacianMode = Literal["hessian_trace", "forward_over_reverse", "taylor", "forward_laplacian", "auto"]
Output = Literal["dense", "bcoo"]
Norm = Literal["linf", "l2"]

MODES: dict[str, tuple[str, ...]] = {
    "gradient": get_args(GradientMode),
    "jacobian": get_args(JacobianMode),
    "hessian": get_args(HessianMode),
    "hvp": get_args(HvpMode),
    "laplacian": get_args(LaplacianMode),
}

"""The parts of JAX's intermediate representation, by one name in every version."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Operators that call one program with their own operands, by the parameter that holds it. Opening them changes nothing
# once every derivative has been taken. (`pjit` is `jit` and `remat2` is `checkpoint` in some versions.)
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}

# Reductions over axes, and running ones along an axis.
REDUCES = frozenset(str.split("reduce_sum reduce_prod reduce_max reduce_min reduce_and reduce_or argmax argmin"))
CUMULATES = frozenset(str.split("cumsum cumprod cummax cummin cumlogsumexp"))


def jaxpr_of(closed: Any) -> Any:
    """The program without its constants; from 0.11 on the two are one class."""
    return getattr(closed, "jaxpr", closed)


def called(eqn: Any) -> Any:
    called = eqn.params[CALLS[eqn.primitive.name]]
    return called if hasattr(called, "consts") else core.ClosedJaxpr(called, [])


def programs(eqn: Any) -> Iterator[Any]:
    """The programs that an operator holds."""
    for value in eqn.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(jaxpr_of(inner), "eqns"):
                yield inner


def bound(eqn: Any, operands: list[Any]) -> list[Any]:
    """The results of one operator."""
    result = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(result) if eqn.primitive.multiple_results else [result]


def host(constant: Any) -> np.ndarray:
    """A constant's numbers in NumPy; those of a random key are its words."""
    dtype: Any = getattr(constant, "dtype", None)
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(constant) if is_key else constant)


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried; the rest are scanned over."""
    body = jaxpr_of(eqn.params["jaxpr"])
    # What is scanned over has one axis less inside; how versions say which operands these are differs.
    stacked = lambda outer, inner: sum(a.aval.ndim > b.aval.ndim for a, b in zip(outer, inner, strict=True))
    carry = len(eqn.outvars) - stacked(eqn.outvars, body.outvars)
    return len(eqn.invars) - stacked(eqn.invars, body.invars) - carry, carry


def moves(a: Any) -> bool:
    """Whether numbers have a tangent space: floating and complex ones, as arrays, shapes or Python's own."""
    return jnp.issubdtype(a.dtype, jnp.inexact) if hasattr(a, "dtype") else isinstance(a, (float, complex))

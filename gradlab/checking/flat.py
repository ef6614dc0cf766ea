"""Any function of pytrees as one from n real numbers to m: what a check measures.

Complex leaves are two numbers each. Leaves that have no tangent (integers, bools, keys, anything that is no array) are
held fixed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import finite
from gradlab.errors import EmptyInputError, NotDifferentiableError
from gradlab.inputs import tracing
from gradlab.jaxprs import Traced, moves, trace
from gradlab.types import Fn, PyTree

Array = np.ndarray
# More outputs than this are looked at through as many random sums, so that memory stays with the inputs.
MOST_OUTPUTS, SUMS = 4096, 256


class Part(NamedTuple):
    """One leaf: its path, its shape, and where its numbers lie in the vector."""

    path: str
    shape: tuple[int, ...]
    place: slice

    def name(self, j: int) -> str:
        """The path and index of the j-th number of the vector.

        >>> Part("args[0]", (2, 3), slice(4, 10)).name(8)
        'args[0][1, 1]'
        """
        offset = (j - self.place.start) % max(1, int(np.prod(self.shape)))
        index = ", ".join(str(int(i)) for i in np.unravel_index(offset, self.shape)) if self.shape else ""
        return f"{self.path}[{index}]" if index else self.path


@dataclass(frozen=True)
class Flat:
    """f as a function of one vector, at a point.

    Attributes:
        plain: the function, `[n] -> [m]`, as it is run eagerly.
        f: the same, traced.
        u: the point, `[n]`.
        inputs, outputs: what the numbers belong to; a function of many outputs has sums of them, and no names.
        dtype: the one with the fewest digits among the differentiated leaves.
        holds: whether what `stop_gradient` passes on counts as constant.
    """

    plain: Callable[[jax.Array], jax.Array]
    f: Traced
    u: Array
    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]
    dtype: Any
    holds: bool

    @property
    def n(self) -> int:
        """How many numbers go in."""
        return self.u.size

    @property
    def m(self) -> int:
        """How many numbers come out."""
        return self.f.shape.size

    @property
    def eps(self) -> float:
        """The relative rounding of f's values: of the coarsest precision that they pass through."""
        return max(self.f.rounding, float(jnp.finfo(self.u.dtype).eps))

    @property
    def calls_host(self) -> bool:
        """Whether f takes values from Python while it runs, which may not be batched."""
        return any("callback" in name and not name.startswith("debug") for name in self.f.operators)

    @property
    def has_rules(self) -> bool:
        """Whether f has derivative rules of its own, written in Python."""
        return any(name.startswith(("custom_jvp", "custom_vjp")) for name in self.f.operators)

    def differenced(self, u: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The function whose differences at u belong to the derivative that JAX takes."""
        return partial(self.f.from_base, u) if self.holds and "stop_gradient" in self.f.operators else self.f

    def input_name(self, j: int) -> str:
        """The argument, path and index of the j-th number that goes in."""
        return _holder(self.inputs, j).name(j)

    def output_name(self, i: int) -> str:
        """The path and index of the i-th number that comes out; "" where there is only one."""
        return _holder(self.outputs, i).name(i) if self.outputs and self.m > 1 else ""

    def path(self, numbers: Array) -> str:
        """The path of the one leaf that holds all these numbers of the input, or "args"."""
        first, last = _holder(self.inputs, int(numbers.min())), _holder(self.inputs, int(numbers.max()))
        return first.path if first == last else "args"


def _holder(parts: tuple[Part, ...], j: int) -> Part:
    return next(part for part in parts if part.place.start <= j < part.place.stop)


def flatten(f: Fn, args: tuple, *, holds: bool = False) -> Flat:
    """f as a `Flat` at args, in the precision that args have.

    Args:
        f, args: the function and the point.
        holds: see `Flat`.

    Raises:
        EmptyInputError, NotDifferentiableError: there is nothing to differentiate, or by.
        ArgumentError: f cannot be traced.

    >>> flat = flatten(lambda x, w: x * w["a"], (jnp.ones(2), {"a": jnp.ones(2)}))
    >>> flat.n, flat.m, flat.input_name(3)
    (4, 2, "args[1]['a'][1]")
    """
    named, structure = jax.tree_util.tree_flatten_with_path(args)
    leaves = [leaf for _, leaf in named]
    places = [i for i, leaf in enumerate(leaves) if moves(leaf)]
    if not any(np.size(leaves[i]) for i in places):
        given = ", ".join(str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves) or "nothing"
        raise EmptyInputError(
            f"there is nothing to differentiate by: the arguments hold {given}; expected at least one floating or "
            "complex number. Pass f and then its arguments: check(f, x)."
        )
    real = [_real(leaves[i]) for i in places]
    parts = _parts([(f"args{jax.tree_util.keystr(named[i][0])}", leaves[i]) for i in places])

    def of_vector(u: jax.Array) -> jax.Array:
        full = list(leaves)
        for i, part in zip(places, parts, strict=True):
            full[i] = _unreal(u[part.place], part.shape, jnp.result_type(leaves[i]))
        return f(*jax.tree.unflatten(structure, full))

    point = np.concatenate(real)
    with tracing():
        y = _require_outputs(jax.eval_shape(of_vector, point))
    outputs = _parts([(f"output{jax.tree_util.keystr(path)}", leaf) for path, leaf in y])
    dtype = max((np.dtype(jnp.finfo(jnp.result_type(leaves[i])).dtype) for i in places), key=lambda d: jnp.finfo(d).eps)
    numbers = lambda u: finite.numbers(of_vector(u))
    if outputs[-1].place.stop > MOST_OUTPUTS:
        numbers, outputs = _sums(numbers, outputs[-1].place.stop), ()
    return Flat(numbers, trace(numbers, point), point, parts, outputs, dtype, holds)


def _require_outputs(y: PyTree) -> list[tuple[Any, Any]]:
    """The floating outputs with their paths; others are not differentiated."""
    named = jax.tree_util.tree_leaves_with_path(y)
    found = [(path, leaf) for path, leaf in named if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size]
    if not found:
        given = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for _, leaf in named) or "nothing"
        raise NotDifferentiableError(
            f"f returns {given}, which has no derivative; expected at least one floating or complex number. "
            "Return what it is computed from."
        )
    return found


def _parts(named: list[tuple[str, Any]]) -> tuple[Part, ...]:
    parts, start = [], 0
    for path, leaf in named:
        count = int(np.prod(np.shape(leaf))) * (2 if _is_complex(leaf) else 1)
        parts.append(Part(path, np.shape(leaf), slice(start, start + count)))
        start += count
    return tuple(parts)


def _is_complex(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)


def _real(leaf: Any) -> Array:
    leaf = np.asarray(leaf, jnp.result_type(leaf))
    return np.concatenate([leaf.real.ravel(), leaf.imag.ravel()]) if _is_complex(leaf) else leaf.ravel()


def _unreal(part: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        real, imaginary = jnp.split(part, 2)
        return jax.lax.complex(real, imaginary).astype(dtype).reshape(shape)
    return part.reshape(shape).astype(dtype)


def _sums(f: Callable[[jax.Array], jax.Array], m: int) -> Callable[[jax.Array], jax.Array]:
    """f's m outputs in `SUMS` sums with random signs: an error in any one of them shows in its sum.

    Source: the count sketch; Charikar, Chen and Farach-Colton, Theoretical Computer Science 312 (2004).
    """
    rows = -(-m // SUMS)
    signs = np.random.default_rng(m).choice(np.array([-1, 1], np.int8), (rows, SUMS))
    padded = lambda y: jnp.pad(y, (0, rows * SUMS - m)).reshape(rows, SUMS)
    return lambda u: jnp.sum(padded(f(u)) * signs, axis=0)


def precision(flat: Flat) -> AbstractContextManager[Any]:
    """The scope that a `Flat` must be traced and run in."""
    return jax.enable_x64(True) if flat.u.dtype == np.float64 else nullcontext()


def on_device(args: tuple) -> tuple:
    """The arguments with their NumPy arrays of integers as JAX takes them, whatever precision a trace is in later.

    A trace that finds the same NumPy index in two precisions mixes up their integers.
    """
    indexes = lambda leaf: isinstance(leaf, np.ndarray) and leaf.ndim > 0 and leaf.dtype.kind in "iub"
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if indexes(leaf) else leaf, args)


def widened(args: tuple) -> tuple:
    """The arguments in float64 (and complex128), where they are floating."""

    def widen(leaf: Any) -> Any:
        if not moves(leaf):
            return leaf
        return np.asarray(leaf).astype(np.complex128 if _is_complex(leaf) else np.float64)

    return jax.tree.map(widen, args)


def slope(flat: Flat, w: Array | None, v: Array) -> Flat:
    """The first derivative of a `Flat` as one of its own: Jᵀ w for a cotangent, or J v where w is None."""
    if w is None:
        tangent = jnp.asarray(v, flat.u.dtype)
        along = lambda f: lambda u: jax.jvp(f, (u,), (tangent,))[1]
        outputs = flat.outputs
    else:
        cotangent = jnp.asarray(w, flat.u.dtype)
        along = lambda f: lambda u: jax.vjp(f, u)[1](cotangent)[0]
        outputs = tuple(part._replace(path=f"∂f/∂{part.path}") for part in flat.inputs)
    return replace(flat, plain=along(flat.plain), f=trace(along(flat.f), flat.u), outputs=outputs)

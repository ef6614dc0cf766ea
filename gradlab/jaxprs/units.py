"""A linear program at every unit vector of its space at once, without products with the identity matrix.

The directions of a Jacobian are the unit vectors. As long as each of them moves one number of a value alone, the value
is a diagonal, and a matrix product with it is the matrix itself, its columns scaled. All that comes after is batched as
`jax.vmap` would batch it. The first layer of a network in forward mode, its last one in reverse, and the design matrix
of a linear model cost no product this way, and no rounding.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), chapter 7: what a seed matrix of few nonzeros
saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, bound, called, jaxpr_of
from gradlab.types import PyTree


@dataclass(frozen=True)
class Diagonal:
    """A value of which every entry is moved by a direction of its own, and by no other.

    Attributes:
        entries: by how much, in the value's shape; None while nothing is computed, and NumPy's ones in a unit vector.
        start: the direction of the first entry.
        order: axis j of the value is axis `order[j]` of a leaf, in whose order the directions count the entries.
    """

    entries: Any
    start: int
    order: tuple[int, ...]

    @property
    def kind(self) -> tuple[int, tuple[int, ...]]:
        """The same for diagonals that can be added entry by entry."""
        return self.start, self.order


@dataclass(frozen=True)
class Batched:
    """A value that directions move in any way; None while nothing is computed."""

    array: Any = None


# What an operator is given: a Diagonal, a Batched, or what does not move with the direction.
Values = list[Any]


def saves(program: Traced, space: PyTree) -> bool:
    """Whether a matrix product of a linear program is one with a diagonal, where its directions are the unit vectors.

    >>> from gradlab.jaxprs.program import trace
    >>> x, matrix = np.ones(3), np.ones((3, 3))
    >>> saves(trace(lambda v: matrix @ (2 * v), x), x), saves(trace(lambda v: matrix @ v[::-1], x), x)
    (True, False)
    """
    look = _Look()
    look.run(program.closed, _units(space))
    return look.saved


def images(program: Traced, space: PyTree, axis: int = 0) -> PyTree:
    """A linear program's output at every unit vector of its space, `[n, *shape]` where the axis of directions is first.

    Args:
        program: of one direction, and linear in it.
        space: the shapes of a direction; n numbers in all.
        axis: where the axis of directions goes, 0 or -1.

    >>> from gradlab.jaxprs.program import trace
    >>> images(trace(lambda v: np.diag([2.0, 3.0]) @ v, np.ones(2)), np.ones(2)).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    leaves = jax.tree.leaves(space)
    ones = [np.ones(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    first = _First(sum(map(np.size, leaves)), axis)
    first.outputs(program, [replace(unit, entries=a) for unit, a in zip(_units(space), ones, strict=True)])
    rest = lambda arrays: _Rest(arrays).outputs(program, _units(space))
    results = jax.vmap(rest, in_axes=axis, out_axes=axis)(first.arrays)
    return jax.tree.unflatten(jax.tree.structure(program.shape), results)


def _units(space: PyTree) -> list[Diagonal]:
    """The unit vectors, one diagonal a leaf, without their entries."""
    leaves = jax.tree.leaves(space)
    starts = np.cumsum([0, *map(np.size, leaves)])
    return [
        Diagonal(None, int(start), tuple(range(np.ndim(leaf)))) for leaf, start in zip(leaves, starts, strict=False)
    ]


# Opening these gives up nothing; a checkpoint is there to be computed again.
_OPENED = frozenset(CALLS) - {"remat2", "checkpoint"}
_BY_ENTRY = frozenset(
    str.split("neg convert_element_type reduce_precision copy copy_p mul div add add_any sub select_n")
)
_SHAPING = frozenset(str.split("reshape squeeze expand_dims broadcast_in_dim"))


def _moving(operands: Values) -> Values:
    return [a for a in operands if isinstance(a, (Diagonal, Batched))]


def _kept(eqn: Any, operands: Values) -> Diagonal | None:
    """The diagonal, still without entries, that an operator makes of diagonals; None where it makes something else.

    What a linear program adds to something that moves, or chooses instead of it, and does not move itself, is zero.
    """
    name, moving = eqn.primitive.name, _moving(operands)
    if any(isinstance(a, Batched) or a.kind != moving[0].kind for a in moving):
        return None
    before, made = Diagonal(None, *moving[0].kind), eqn.outvars[0].aval.shape
    taken = next(v.aval.shape for v, a in zip(eqn.invars, operands, strict=True) if a is moving[0])
    if name in _BY_ENTRY:
        return before if taken == made else None
    if name == "transpose":
        return replace(before, order=tuple(before.order[axis] for axis in eqn.params["permutation"]))
    straight = before.order == tuple(range(len(taken))) and (name != "reshape" or eqn.params["dimensions"] is None)
    if name in _SHAPING and straight and np.prod(taken) == np.prod(made):
        return replace(before, order=tuple(range(len(made))))
    return None


def _sums(product: Any) -> bool:
    """Whether a matrix product sums over anything: an outer one does not, and there is nothing to save."""
    (contracted, _), _ = product.params["dimension_numbers"]
    return any(product.invars[0].aval.shape[axis] > 1 for axis in contracted)


class _Look:
    """A program run on what its values are: whether a product with a diagonal comes up."""

    saved = False

    def run(self, closed: Any, args: Values) -> Values:
        jaxpr = jaxpr_of(closed)
        values = dict(zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True))
        values.update(zip(jaxpr.invars, args, strict=True))
        read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, self.operator(eqn, list(map(read, eqn.invars))), strict=True))
        return list(map(read, jaxpr.outvars))

    def operator(self, eqn: Any, operands: Values) -> Values:
        moving, name = _moving(operands), eqn.primitive.name
        if not moving:
            return self.fixed(eqn, operands)
        if name in _OPENED:
            return self.run(called(eqn), operands)
        kept = _kept(eqn, operands)
        if kept is not None:
            return [self.kept(eqn, operands, kept)]
        if name == "dot_general" and isinstance(moving[0], Diagonal) and len(moving) == 1 and _sums(eqn):
            return [self.product(eqn, operands)]
        return self.batch(eqn, operands)

    def fixed(self, eqn: Any, operands: Values) -> Values:
        return [None for _ in eqn.outvars]

    def kept(self, eqn: Any, operands: Values, found: Diagonal) -> Diagonal:
        return found

    def product(self, eqn: Any, operands: Values) -> Batched:
        self.saved = True
        return Batched()

    def batch(self, eqn: Any, operands: Values) -> Values:
        return [Batched() for _ in eqn.outvars]

    def whole(self, value: Any) -> Any:
        """A value where it stops being a diagonal."""
        return value


class _Numbers(_Look):
    """A program run on numbers."""

    def outputs(self, program: Traced, args: Values) -> Values:
        return list(map(self.whole, self.run(program.closed, args)))

    def fixed(self, eqn: Any, operands: Values) -> Values:
        return bound(eqn, operands)


class _First(_Numbers):
    """Up to where diagonals end: `arrays` holds what they make there, in every direction, as it comes up.

    Args:
        count: how many directions there are.
        axis: where the axis of directions goes, 0 or -1: with that of the result, nothing has to be transposed.
    """

    def __init__(self, count: int, axis: int) -> None:
        self.count, self.axis = count, axis
        self.arrays: list[jax.Array] = []
        self.ended: dict[int, Diagonal] = {}

    def kept(self, eqn: Any, operands: Values, found: Diagonal) -> Diagonal:
        [entries] = bound(eqn, [a.entries if isinstance(a, Diagonal) else a for a in operands])
        return replace(found, entries=entries)

    def product(self, eqn: Any, operands: Values) -> Batched:
        side = next(i for i, a in enumerate(operands) if isinstance(a, Diagonal))
        found, start = _product(eqn, operands[side], operands[1 - side], side, self.axis), operands[side].start
        # The other directions give zeros.
        around = [(0, 0, 0)] * found.ndim
        around[self.axis] = (start, self.count - start - found.shape[self.axis], 0)
        self.arrays.append(jax.lax.pad(found, jnp.zeros((), found.dtype), around))
        return Batched()

    def batch(self, eqn: Any, operands: Values) -> Values:
        for operand in operands:
            self.whole(operand)
        return [Batched() for _ in eqn.outvars]

    def whole(self, value: Any) -> None:
        if not isinstance(value, Diagonal) or id(value) in self.ended:
            return
        self.ended[id(value)], entries = value, value.entries
        number = jnp.arange(entries.size, dtype=jnp.int32).reshape(_lengths(value)).transpose(value.order)
        across = range(1, entries.ndim + 1) if self.axis == 0 else range(entries.ndim)
        shape = (self.count, *entries.shape) if self.axis == 0 else (*entries.shape, self.count)
        direction = jax.lax.broadcasted_iota(jnp.int32, shape, self.axis % len(shape))
        hit = direction == _spread(value.start + number, across, shape)
        self.arrays.append(jnp.where(hit, _spread(entries, across, shape), jnp.zeros((), entries.dtype)))


class _Rest(_Numbers):
    """From there on, in one direction.

    Args:
        arrays: those of `_First`, in this direction.
    """

    def __init__(self, arrays: list[jax.Array]) -> None:
        self.arrays = iter(arrays)
        self.ended: dict[int, tuple[Diagonal, jax.Array]] = {}

    def product(self, eqn: Any, operands: Values) -> Batched:
        return Batched(next(self.arrays))

    def batch(self, eqn: Any, operands: Values) -> Values:
        return [Batched(a) for a in bound(eqn, list(map(self.whole, operands)))]

    def whole(self, value: Any) -> Any:
        if not isinstance(value, Diagonal):
            return value.array if isinstance(value, Batched) else value
        if id(value) not in self.ended:
            self.ended[id(value)] = value, next(self.arrays)
        return self.ended[id(value)][1]


def _lengths(value: Diagonal) -> tuple[int, ...]:
    """The shape of the leaf that a diagonal counts its directions in."""
    return tuple(value.entries.shape[value.order.index(axis)] for axis in range(len(value.order)))


def _product(eqn: Any, diagonal: Diagonal, matrix: Any, side: int, axis: int) -> jax.Array:
    """A product with a diagonal on the given side, in the directions that move it: `[size, *shape]` where axis is 0.

    Its numbers are those of the matrix, scaled by the diagonal's entries. An axis that is not summed over is one of the
    directions and one of the product, and only their diagonal is not zero.
    """
    contracted, batched = eqn.params["dimension_numbers"]
    aval, rank, other = eqn.outvars[0].aval, len(diagonal.order), 1 - side
    ndims, lengths = {side: rank, other: jnp.ndim(matrix)}, _lengths(diagonal)
    full = (*lengths, *aval.shape) if axis == 0 else (*aval.shape, *lengths)
    result, leaf = (rank, 0) if axis == 0 else (0, len(aval.shape))  # where their axes begin
    direction = [leaf + d for d in diagonal.order]
    # The product has the batch axes, then those of the left operand that are not summed over, then the right one's.
    free = [(of, d) for of in (0, 1) for d in range(ndims[of]) if d not in (*contracted[of], *batched[of])]
    place = {at: result + len(batched[0]) + i for i, at in enumerate(free)}
    place |= {(of, d): result + i for of in (0, 1) for i, d in enumerate(batched[of])}
    ties = [(direction[d], place[side, d]) for d in range(rank) if (side, d) in place]
    place |= {(other, d): direction[c] for d, c in zip(contracted[other], contracted[side], strict=True)}
    numbers = _spread(jnp.asarray(matrix, aval.dtype), [place[other, d] for d in range(ndims[other])], full)
    if not isinstance(diagonal.entries, np.ndarray):  # else the compiler would multiply a constant matrix by ones
        numbers = numbers * _spread(diagonal.entries.astype(aval.dtype), direction, full)
    for one, two in ties:
        same = jax.lax.broadcasted_iota(jnp.int32, full, one) == jax.lax.broadcasted_iota(jnp.int32, full, two)
        numbers = jnp.where(same, numbers, jnp.zeros((), aval.dtype))
    return numbers.reshape((-1, *aval.shape) if axis == 0 else (*aval.shape, -1))


def _spread(array: Any, axes: Sequence[int], shape: tuple[int, ...]) -> jax.Array:
    """An array whose axes become these of a larger shape, repeated along the others."""
    order = np.argsort(axes).tolist()
    return jax.lax.broadcast_in_dim(jnp.transpose(array, order), shape, [axes[i] for i in order])

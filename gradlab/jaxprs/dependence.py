"""How dense a derivative is, estimated: which of a few sampled inputs each output depends on.

A bit stands for an input, and a number is a word of bits: the inputs that it depends on. The words go through the
program in its order, one NumPy operation or two for each operator. Where an operator's indices are known only when it
runs, others of the same shape stand for them: the estimate is then of how many dependences there are, and not of which.
So the derivative of a sort, which gathers by an order that hangs on the values, counts as the permutation that it is at
one point. What finds the pattern itself is asked only after this says that it is worth asking.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from jax.extend import core

from gradlab.jaxprs.indices import MOVES, Indices, Move, Values, computed
from gradlab.jaxprs.loops import while_constants
from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, CUMULATES, REDUCES, called, jaxpr_of, programs, scan_counts

SAMPLES = 64  # bits of a word
# Operators looked at, those of every iteration counted: beyond it a loop's iterations are taken together.
MOST_OPERATORS = 4000
ROUNDS = 4  # until the carry of a loop depends on all that it will

Masks = list[np.ndarray | None]  # None: depends on no input
Rule = Callable[[Any, Masks, Indices], Masks]


def density(program: Traced, leaves: int = 1) -> float:
    """The share of the entries of a Jacobian that can be nonzero, estimated from `SAMPLES` of its columns.

    Args:
        program: a function of pytrees.
        leaves: so many of its first leaves, laid end to end, are what it is differentiated in.

    >>> from gradlab.jaxprs import trace
    >>> import jax.numpy as jnp
    >>> density(trace(jnp.sin, jnp.ones(64))), density(trace(jnp.cumsum, jnp.ones(64))) > 0.4
    (0.015625, True)
    """
    jaxpr = jaxpr_of(program.closed)
    shapes = [v.aval.shape for v in jaxpr.invars[:leaves]]
    ends = np.cumsum([prod(shape) for shape in shapes])
    words = np.zeros(ends[-1], np.uint64)
    # One of each stretch, at random: evenly spaced ones might all be, say, the first of three coordinates.
    edges = np.linspace(0, ends[-1], min(ends[-1], SAMPLES) + 1).astype(int)
    chosen = np.random.default_rng(0).integers(edges[:-1], edges[1:])
    words[chosen] = np.uint64(1) << np.arange(len(chosen), dtype=np.uint64)
    parts = [part.reshape(shape) for part, shape in zip(np.split(words, ends[:-1]), shapes, strict=True)]
    given: Masks = [*parts, *(None for _ in jaxpr.invars[leaves:])]
    results, _ = _Reader().run(program.closed, given, [None] * len(given))
    total = sum(prod(v.aval.shape) for v in jaxpr.outvars)
    found = sum(int(np.bitwise_count(r).sum()) for r in results if r is not None)
    return found / max(1, total * len(chosen))


class _Reader:
    """One pass over a program and the programs in it, with a count of the operators looked at."""

    def __init__(self) -> None:
        self.looked = 0
        self.random = np.random.default_rng(0)

    def run(self, closed: Any, given: Masks, values: Values) -> tuple[Masks, Values]:
        """The words of a program's results, and the integers known among them, from those of its arguments."""
        jaxpr = jaxpr_of(closed)
        words: dict[Any, np.ndarray | None] = dict(zip(jaxpr.invars, given, strict=True))
        read = lambda v: None if isinstance(v, core.Literal) else words.get(v)
        indices = Indices(closed, values, self.random)
        for eqn in jaxpr.eqns:
            self.looked += 1
            found, made = self._results(eqn, [read(v) for v in eqn.invars], indices)
            words.update(zip(eqn.outvars, found, strict=True))
            indices.values.update(zip(eqn.outvars, made, strict=True))
        return [read(v) for v in jaxpr.outvars], [indices.read(v) for v in jaxpr.outvars]

    def _results(self, eqn: Any, operands: Masks, indices: Indices) -> tuple[Masks, Values]:
        values = [indices.read(v) for v in eqn.invars]
        nothing: list[np.ndarray | None] = [None] * len(eqn.outvars)
        if eqn.primitive.name in CALLS:
            return self.run(called(eqn), operands, values)
        if eqn.primitive.name == "scan":
            return self._scan(eqn, operands, values)
        if any(o is not None for o in operands):
            return self._operator(eqn, operands, values, indices), nothing
        return nothing, [_integers(eqn, values, indices), *nothing[1:]]

    def _operator(self, eqn: Any, operands: Masks, values: Values, indices: Indices) -> Masks:
        name = eqn.primitive.name
        if name == "cond":
            found = [self.run(branch, operands[1:], values[1:])[0] for branch in eqn.params["branches"]]
            return [_either(list(column)) for column in zip(*found, strict=True)]
        if name == "while":
            return self._while(eqn, operands, values)
        # A scatter holds a program too, which says how to combine numbers: what has a rule goes by that.
        if name not in _RULES and any(True for _ in programs(eqn)):
            return _everything(eqn, operands)
        return _RULES.get(name, _elementwise)(eqn, operands, indices)

    def _scan(self, eqn: Any, operands: Masks, values: Values) -> tuple[Masks, Values]:
        body, length, backward = eqn.params["jaxpr"], eqn.params["length"], eqn.params["reverse"]
        consts, count = scan_counts(eqn)
        exact = self.looked + length * len(jaxpr_of(body).eqns) <= MOST_OPERATORS
        carry, held = operands[consts : consts + count], values[consts : consts + count]
        outputs: list[tuple[Masks, Values]] = []
        for t in range(length)[:: -1 if backward else 1] if exact else range(min(length, ROUNDS)):
            at = lambda x, t=t: None if x is None else x[t] if exact else np.bitwise_or.reduce(x, axis=0)
            one = lambda x, t=t: x[t] if x is not None and exact else None
            given = [*operands[:consts], *carry, *map(at, operands[consts + count :])]
            found, made = self.run(body, given, [*values[:consts], *held, *map(one, values[consts + count :])])
            # Where iterations are taken together, what is carried has no one value.
            carry, held = found[:count], made[:count] if exact else [None] * count
            outputs.append((found[count:], made[count:]))
        outputs = outputs[::-1] if backward and exact else outputs if exact else outputs[-1:] * length
        shapes = [v.aval.shape for v in eqn.outvars[count:]]
        column = lambda side, i: [one[side][i] for one in outputs]
        ys = [_stacked(column(0, i), shape) if outputs else None for i, shape in enumerate(shapes)]
        known = [[a for a in column(1, i) if a is not None] for i in range(len(shapes))]
        return [*carry, *ys], [*held, *(np.stack(k) if exact and 0 < len(k) == length else None for k in known)]

    def _while(self, eqn: Any, operands: Masks, values: Values) -> Masks:
        tested, constants = while_constants(eqn)
        fixed, carry = operands[tested : tested + constants], operands[tested + constants :]
        known: Values = [*values[tested : tested + constants], *(None for _ in carry)]
        for _ in range(ROUNDS):
            found = self.run(eqn.params["body_jaxpr"], [*fixed, *carry], known)[0]
            carry = [_either([a, b]) for a, b in zip(carry, found, strict=True)]
        return carry


def _integers(eqn: Any, values: Values, indices: Indices) -> np.ndarray | None:
    """What an operator that no input reaches makes of known integers, where it is known; else None."""
    if eqn.primitive.name in ("gather", "dynamic_slice") and all(v is not None for v in values):
        return _RULES[eqn.primitive.name](eqn, values, indices)[0]
    return computed(eqn, values)


def _either(words: Masks) -> np.ndarray | None:
    known = [w for w in words if w is not None]
    return None if not known else np.bitwise_or.reduce(known) if len(known) > 1 else known[0]


def _stacked(column: Masks, shape: tuple[int, ...]) -> np.ndarray | None:
    if all(c is None for c in column):
        return None
    return np.stack([np.zeros(shape[1:], np.uint64) if c is None else c for c in column])


def _everything(eqn: Any, operands: Masks) -> Masks:
    """Every result depends on all that any operand does."""
    word = np.bitwise_or.reduce([np.bitwise_or.reduce(o, axis=None) for o in operands if o is not None])
    return [np.full(v.aval.shape, word, np.uint64) for v in eqn.outvars]


def _elementwise(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    shape = eqn.outvars[0].aval.shape
    known = [o for o in operands if o is not None]
    fits = lambda o: (
        not o.ndim or (o.ndim == len(shape) and all(a in (1, b) for a, b in zip(o.shape, shape, strict=True)))
    )
    if len(eqn.outvars) > 1 or not all(map(fits, known)):
        return _everything(eqn, operands)
    joined = np.bitwise_or.reduce([np.broadcast_to(o, shape) for o in known])
    return [joined]


def _moved(move: Move) -> Rule:
    """The rule of an operator that only moves the numbers of its first operand."""
    return lambda eqn, operands, indices: [None if operands[0] is None else move(operands[0], eqn)]


def _pad(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    words = np.zeros(eqn.outvars[0].aval.shape, np.uint64)
    if operands[0] is not None:
        inside = operands[0]
        for axis, (low, high, step) in enumerate(eqn.params["padding_config"]):
            cut = slice(max(0, -low), inside.shape[axis] - max(0, -high)) if step == 0 else slice(None)
            inside = inside[(slice(None),) * axis + (cut,)]
        places = [
            slice(max(0, low), max(0, low) + (length - 1) * (step + 1) + 1, step + 1)
            for (low, _, step), length in zip(eqn.params["padding_config"], inside.shape, strict=True)
        ]
        target = words[tuple(places)]
        if target.shape != inside.shape:
            return _everything(eqn, operands)
        words[tuple(places)] = inside
    return [words]


def _joined(join: Callable[..., np.ndarray], axis: str) -> Rule:
    """The rule of an operator that lays its operands side by side, along the axis of this parameter."""

    def rule(eqn: Any, operands: Masks, indices: Indices) -> Masks:
        filled = lambda o, v: np.zeros(v.aval.shape, np.uint64) if o is None else o
        return [join(list(map(filled, operands, eqn.invars)), axis=eqn.params[axis])]

    return rule


def _split(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    if operands[0] is None:
        return [None] * len(eqn.outvars)
    return list(np.split(operands[0], np.cumsum(eqn.params["sizes"])[:-1], axis=eqn.params["axis"]))


def _unstack(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    return [None] * len(eqn.outvars) if operands[0] is None else list(np.moveaxis(operands[0], eqn.params["axis"], 0))


def _cumulate(words: np.ndarray, eqn: Any) -> np.ndarray:
    axis, backward = eqn.params["axis"], eqn.params["reverse"]
    turned = np.flip(words, axis) if backward else words
    found = np.bitwise_or.accumulate(turned, axis=axis)
    return np.flip(found, axis) if backward else found


def _sort(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    axis = eqn.params.get("dimension", -1)
    known = np.bitwise_or.reduce([o for o in operands if o is not None])
    joined = np.bitwise_or.reduce(known, axis=axis, keepdims=True)
    return [np.broadcast_to(joined, v.aval.shape) for v in eqn.outvars]


def _dot(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    contracted, batch = eqn.params["dimension_numbers"]
    shape = eqn.outvars[0].aval.shape
    parts = []
    for side, words in enumerate(operands):
        if words is None:
            continue
        joined = np.bitwise_or.reduce(words, axis=tuple(contracted[side])) if contracted[side] else words
        kept = [i for i in range(words.ndim) if i not in contracted[side]]
        free = [i for i in kept if i not in batch[side]]
        joined = joined.transpose([kept.index(i) for i in (*batch[side], *free)])
        count, missing = len(batch[side]), len(shape) - joined.ndim
        ahead = missing if side == 1 else 0  # the free axes of the first operand come before those of the second
        sizes = (*joined.shape[:count], *(1,) * ahead, *joined.shape[count:], *(1,) * (missing - ahead))
        parts.append(np.broadcast_to(joined.reshape(sizes), shape))
    return [np.bitwise_or.reduce(parts)]


def _convolution(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    """Each output reads a window of the image: as many neighbors as the kernel is long, of all channels."""
    numbers, window = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape
    if operands[0] is None or operands[1] is not None:
        return _everything(eqn, operands)
    image = operands[0].transpose(numbers.lhs_spec)
    image = np.bitwise_or.reduce(image, axis=1, keepdims=True) if eqn.params["feature_group_count"] == 1 else image
    shape = [eqn.outvars[0].aval.shape[i] for i in numbers.out_spec]
    for axis, place in enumerate(numbers.rhs_spec[2:], 2):
        near = [np.roll(image, k - window[place] // 2, axis=axis) for k in range(window[place])]
        image = np.bitwise_or.reduce(near)
        image = np.take(image, np.linspace(0, image.shape[axis] - 1, shape[axis]).astype(int), axis=axis)
    if image.shape[0] != shape[0] or shape[1] % image.shape[1]:
        return _everything(eqn, operands)
    wide = np.repeat(image, shape[1] // image.shape[1], axis=1)
    return [wide.transpose(np.argsort(numbers.out_spec))]


def _places(
    eqn: Any,
    indices: Indices,
    shape: Sequence[int],
    extents: Sequence[int],
    sizes: Sequence[int],
    dropped: Sequence[int] = (),
    offsets: Sequence[int] | None = None,
    batched: dict[int, int] | None = None,
) -> tuple[np.ndarray, ...]:
    """Where in an operand the numbers of a gather's result, or of a scatter's updates, might lie.

    Args:
        eqn: the operator.
        indices: knows where its windows start, or draws it.
        shape: of the result, or of the updates.
        extents: of the operand.
        sizes: of a window.
        dropped: axes of the operand of which `shape` has none.
        offsets: the axes of `shape` that run along a window; None for all of them.
        batched: for axes of the operand that both have, which of the other axes of `shape` it is.

    Returns:
        For each axis of the operand an array of places, of this shape.
    """
    offsets, batched = range(len(shape)) if offsets is None else offsets, batched or {}
    across = [axis for axis in range(len(shape)) if axis not in offsets]
    lengths = [shape[axis] for axis in across]
    along = lambda numbers, axes: numbers.reshape([n if axis in axes else 1 for axis, n in enumerate(shape)])
    free = [d for d, size in enumerate(sizes) if size < extents[d] and d not in batched]
    starts = indices.starts(eqn, {d: extents[d] - sizes[d] for d in free}, prod(lengths))
    found, windows = [], iter(offsets)
    for d, size in enumerate(sizes):
        place = np.zeros(shape, int)
        if d in batched:
            place = place + along(np.arange(extents[d]), [across[batched[d]]])
        if d in starts:
            place = place + along(starts[d], across)
        if d not in dropped:
            place = place + along(np.arange(size), [next(windows)])
        found.append(place)
    return tuple(found)


def _gathered(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    if operands[0] is None or not operands[0].size:
        return _everything(eqn, operands)
    numbers = eqn.params["dimension_numbers"]
    places = _places(
        eqn,
        indices,
        eqn.outvars[0].aval.shape,
        operands[0].shape,
        eqn.params["slice_sizes"],
        (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims),
        numbers.offset_dims,
        dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)),
    )
    return [operands[0][places]]


def _scattered(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    base, _, updates = operands
    words = np.zeros(eqn.outvars[0].aval.shape, np.uint64) if base is None else base.copy()
    if updates is not None and words.size:
        numbers = eqn.params["dimension_numbers"]
        dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        sizes = iter([updates.shape[axis] for axis in numbers.update_window_dims])
        places = _places(
            eqn,
            indices,
            updates.shape,
            words.shape,
            [1 if d in dropped else next(sizes) for d in range(words.ndim)],
            dropped,
            numbers.update_window_dims,
            dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)),
        )
        np.bitwise_or.at(words, places, updates)
    return [words]


def _sliced(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    if operands[0] is None or not operands[0].size:
        return _everything(eqn, operands)
    size = eqn.params["slice_sizes"]
    return [operands[0][_places(eqn, indices, size, operands[0].shape, size)]]


def _updated(eqn: Any, operands: Masks, indices: Indices) -> Masks:
    shape, size = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    words = np.zeros(shape, np.uint64) if operands[0] is None else operands[0].copy()
    words[_places(eqn, indices, size, shape, size)] = 0 if operands[1] is None else operands[1]
    return [words]


_reduce = _moved(lambda w, eqn: np.bitwise_or.reduce(w, axis=tuple(eqn.params["axes"])))
_RULES: dict[str, Rule] = {
    **{name: _moved(move) for name, move in MOVES.items()},
    **dict.fromkeys(REDUCES, _reduce),
    **dict.fromkeys(CUMULATES, _moved(_cumulate)),
    "pad": _pad,
    "concatenate": _joined(np.concatenate, "dimension"),
    "stack": _joined(np.stack, "axis"),
    "split": _split,
    "unstack": _unstack,
    "sort": _sort,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gathered,
    "dynamic_slice": _sliced,
    "dynamic_update_slice": _updated,
    **dict.fromkeys((f"scatter{sign}{kind}" for sign in "-_" for kind in ("add", "mul", "min", "max")), _scattered),
    "scatter": _scattered,
}

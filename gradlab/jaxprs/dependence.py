"""How dense a derivative is, estimated: which of a few sampled inputs each output depends on.

A bit stands for an input, and a number is a word of bits: the inputs that it depends on. The words go through the
program in its order, one NumPy operation or two for each operator. Where an operator's indices are known only when it
runs, others of the same shape stand for them: the estimate is of how many dependences there are, and not of which. So
the derivative of a sort, which gathers by an order that hangs on the values, counts as the permutation that it is at
one point. What finds the pattern itself is asked only after this says that it is worth asking.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from jax.extend import core

from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, CUMULATES, REDUCES, called, jaxpr_of, programs, scan_counts

SAMPLES = 64  # bits of a word
# Operators looked at, those of every iteration counted: beyond it a loop's iterations are taken together.
MOST_OPERATORS = 2000
ROUNDS = 4  # until the carry of a loop depends on all that it will

Masks = list[np.ndarray | None]  # None: depends on no input


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
    chosen = np.unique(np.linspace(0, ends[-1] - 1, min(ends[-1], SAMPLES)).astype(int))
    words[chosen] = np.uint64(1) << np.arange(len(chosen), dtype=np.uint64)
    parts = [part.reshape(shape) for part, shape in zip(np.split(words, ends[:-1]), shapes, strict=True)]
    given: Masks = [*parts, *(None for _ in jaxpr.invars[leaves:])]
    results = _Reader().run(jaxpr, given)
    total = sum(prod(v.aval.shape) for v in jaxpr.outvars)
    found = sum(int(np.bitwise_count(r).sum()) for r in results if r is not None)
    return found / max(1, total * len(chosen))


class _Reader:
    """One pass over a program and the programs in it, with a count of the operators looked at."""

    def __init__(self) -> None:
        self.looked = 0
        self.random = np.random.default_rng(0)

    def run(self, jaxpr: Any, given: Masks) -> Masks:
        words: dict[Any, np.ndarray | None] = dict(zip(jaxpr.invars, given, strict=True))
        read = lambda v: None if isinstance(v, core.Literal) else words.get(v)
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            if any(o is not None for o in operands):
                self.looked += 1
                words.update(zip(eqn.outvars, self._operator(eqn, operands), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _operator(self, eqn: Any, operands: Masks) -> Masks:
        name = eqn.primitive.name
        if name in CALLS:
            return self.run(jaxpr_of(called(eqn)), operands)
        if name == "cond":
            found = [self.run(jaxpr_of(branch), operands[1:]) for branch in eqn.params["branches"]]
            return [_either(list(column)) for column in zip(*found, strict=True)]
        if name == "scan":
            return self._scan(eqn, operands)
        if name == "while":
            return self._while(eqn, operands)
        # A scatter holds a program too, which says how to combine numbers: what has a rule goes by that.
        if name not in _RULES and any(True for _ in programs(eqn)):
            return _everything(eqn, operands)
        return _RULES.get(name, _elementwise)(self, eqn, operands)

    def starts(self, count: int, extents: Sequence[int]) -> list[np.ndarray]:
        """So many places, a number for each axis: each place once where there are as many, else drawn at random."""
        total = prod(extents)
        flat = np.arange(count) if count == total else self.random.integers(0, total, count)
        return list(np.unravel_index(flat, tuple(extents))) if extents else []

    def _scan(self, eqn: Any, operands: Masks) -> Masks:
        body = jaxpr_of(eqn.params["jaxpr"])
        consts, count = scan_counts(eqn)
        length = eqn.params["length"]
        fixed, carry, xs = operands[:consts], operands[consts : consts + count], operands[consts + count :]
        exact = self.looked + length * len(body.eqns) <= MOST_OPERATORS
        steps = range(length) if exact else range(min(length, ROUNDS))
        ys: list[Masks] = []
        for t in reversed(steps) if eqn.params["reverse"] and exact else steps:
            at = lambda x, t=t: None if x is None else x[t] if exact else np.bitwise_or.reduce(x, axis=0)
            results = self.run(body, [*fixed, *carry, *map(at, xs)])
            carry = results[:count]
            ys.append(results[count:])
        order = ys[::-1] if eqn.params["reverse"] and exact else ys
        stack = lambda column, v: _stacked(column if exact else [column[-1]] * length, v.aval.shape)
        columns = zip(*order, strict=True) if order else ()
        return [*carry, *(stack(list(c), v) for c, v in zip(columns, eqn.outvars[count:], strict=True))]

    def _while(self, eqn: Any, operands: Masks) -> Masks:
        body = jaxpr_of(eqn.params["body_jaxpr"])
        carried = len(eqn.outvars)
        fixed = operands[len(operands) - carried - (len(body.invars) - carried) : len(operands) - carried]
        carry = operands[len(operands) - carried :]
        for _ in range(ROUNDS):
            carry = [_either([a, b]) for a, b in zip(carry, self.run(body, [*fixed, *carry]), strict=True)]
        return carry


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


def _elementwise(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    shape = eqn.outvars[0].aval.shape
    known = [o for o in operands if o is not None]
    fits = lambda o: (
        not o.ndim or (o.ndim == len(shape) and all(a in (1, b) for a, b in zip(o.shape, shape, strict=True)))
    )
    if len(eqn.outvars) > 1 or not all(map(fits, known)):
        return _everything(eqn, operands)
    joined = np.bitwise_or.reduce([np.broadcast_to(o, shape) for o in known])
    return [joined]


def _moved(move: Callable[[np.ndarray, Any], np.ndarray]) -> Callable[[_Reader, Any, Masks], Masks]:
    """The rule of an operator that only moves the numbers of its first operand."""
    return lambda reader, eqn, operands: [None if operands[0] is None else move(operands[0], eqn)]


def _broadcast(words: np.ndarray, eqn: Any) -> np.ndarray:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    expanded = [1] * len(shape)
    for place, length in zip(places, words.shape, strict=True):
        expanded[place] = length
    return np.broadcast_to(words.reshape(expanded), shape)


def _slice(words: np.ndarray, eqn: Any) -> np.ndarray:
    p = eqn.params
    strides = p["strides"] or (1,) * words.ndim
    return words[tuple(slice(a, b, s) for a, b, s in zip(p["start_indices"], p["limit_indices"], strides, strict=True))]


def _pad(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
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


def _joined(join: Callable[..., np.ndarray], axis: str) -> Callable[["_Reader", Any, Masks], Masks]:
    """The rule of an operator that lays its operands side by side, along the axis of this parameter."""

    def rule(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
        filled = lambda o, v: np.zeros(v.aval.shape, np.uint64) if o is None else o
        return [join(list(map(filled, operands, eqn.invars)), axis=eqn.params[axis])]

    return rule


def _split(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    if operands[0] is None:
        return [None] * len(eqn.outvars)
    return list(np.split(operands[0], np.cumsum(eqn.params["sizes"])[:-1], axis=eqn.params["axis"]))


def _unstack(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    return [None] * len(eqn.outvars) if operands[0] is None else list(np.moveaxis(operands[0], eqn.params["axis"], 0))


def _cumulate(words: np.ndarray, eqn: Any) -> np.ndarray:
    axis, backward = eqn.params["axis"], eqn.params["reverse"]
    turned = np.flip(words, axis) if backward else words
    found = np.bitwise_or.accumulate(turned, axis=axis)
    return np.flip(found, axis) if backward else found


def _sort(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    axis = eqn.params.get("dimension", -1)
    known = np.bitwise_or.reduce([o for o in operands if o is not None])
    joined = np.bitwise_or.reduce(known, axis=axis, keepdims=True)
    return [np.broadcast_to(joined, v.aval.shape) for v in eqn.outvars]


def _dot(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
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


def _convolution(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
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
    reader: _Reader,
    shape: Sequence[int],
    extents: Sequence[int],
    sizes: Sequence[int],
    dropped: Sequence[int] = (),
    offsets: Sequence[int] | None = None,
    batched: dict[int, int] | None = None,
) -> tuple[np.ndarray, ...]:
    """Where in an operand the numbers of a gather's result, or of a scatter's updates, might lie.

    Args:
        reader: draws where each window starts, which is not known here.
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
    starts = dict(zip(free, reader.starts(prod(lengths), [extents[d] - sizes[d] + 1 for d in free]), strict=True))
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


def _gathered(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    if operands[0] is None or not operands[0].size:
        return _everything(eqn, operands)
    numbers = eqn.params["dimension_numbers"]
    places = _places(
        reader,
        eqn.outvars[0].aval.shape,
        operands[0].shape,
        eqn.params["slice_sizes"],
        (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims),
        numbers.offset_dims,
        dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)),
    )
    return [operands[0][places]]


def _scattered(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    base, _, updates = operands
    words = np.zeros(eqn.outvars[0].aval.shape, np.uint64) if base is None else base.copy()
    if updates is not None and words.size:
        numbers = eqn.params["dimension_numbers"]
        dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
        sizes = iter([updates.shape[axis] for axis in numbers.update_window_dims])
        places = _places(
            reader,
            updates.shape,
            words.shape,
            [1 if d in dropped else next(sizes) for d in range(words.ndim)],
            dropped,
            numbers.update_window_dims,
            dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)),
        )
        np.bitwise_or.at(words, places, updates)
    return [words]


def _sliced(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    if operands[0] is None or not operands[0].size:
        return _everything(eqn, operands)
    size = eqn.params["slice_sizes"]
    return [operands[0][_places(reader, size, operands[0].shape, size)]]


def _updated(reader: _Reader, eqn: Any, operands: Masks) -> Masks:
    shape, size = eqn.outvars[0].aval.shape, eqn.invars[1].aval.shape
    words = np.zeros(shape, np.uint64) if operands[0] is None else operands[0].copy()
    words[_places(reader, size, shape, size)] = 0 if operands[1] is None else operands[1]
    return [words]


_reshape = _moved(lambda w, eqn: w.reshape(eqn.outvars[0].aval.shape))
_reduce = _moved(lambda w, eqn: np.bitwise_or.reduce(w, axis=tuple(eqn.params["axes"])))
_RULES: dict[str, Callable[[_Reader, Any, Masks], Masks]] = {
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    **dict.fromkeys(REDUCES, _reduce),
    **dict.fromkeys(CUMULATES, _moved(_cumulate)),
    "transpose": _moved(lambda w, eqn: w.transpose(eqn.params["permutation"])),
    "rev": _moved(lambda w, eqn: np.flip(w, eqn.params["dimensions"])),
    "broadcast_in_dim": _moved(_broadcast),
    "slice": _moved(_slice),
    "pad": _pad,
    "concatenate": _joined(np.concatenate, "dimension"),
    "stack": _joined(np.stack, "axis"),
    "tile": _moved(lambda w, eqn: np.tile(w, eqn.params["reps"])),
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

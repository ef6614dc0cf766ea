"""Which operator first made a number that is not finite out of numbers that are, in the order of the backward pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.graphs.build import Made, opened, within
from gradlab.graphs.passes import Mark, Watched, consumers, host, producers
from gradlab.jaxprs import body_of, unrolled

NAN = 2  # among the codes of `Passes`
Index = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Fault:
    """Where numbers stopped being finite.

    Attributes:
        made: the graph, or that of a program inside one of its operators.
        operator: which operator; None where the numbers came in as they are.
        forward: whether its result is at fault, or else its pullback.
        index: where, in its result or in the operand whose cotangent is not finite.
        operands: the numbers that it read there; None for operands of another shape.
        cotangent: the number that came back to it there, None where that is not known.
    """

    made: Made
    operator: int | None
    forward: bool = False
    index: Index = ()
    operands: tuple[Any, ...] = ()
    cotangent: Any = None


def fault_of(whole: Made, slots: Iterable[int]) -> Fault:
    """The fault behind adjoints that are not finite.

    Args:
        whole: a graph with adjoints.
        slots: whose adjoints they are.
    """
    makers = _makers(whole, slots)
    if not makers:
        return Fault(whole, None)
    i, j = max(makers)
    met = whole.met(i)[i]
    index = _first_bad(met.pulled[j])
    op = whole.listing.operators[i]
    shape = np.shape(met.operands[j])
    for slot, a in zip(op.operands, met.operands, strict=True):
        start = _bad_index(whole, slot, index if np.shape(a) == shape else None)
        born = None if start is None else origin(whole, slot, start)
        if born is not None:
            return in_forward(whole, *born)
    return _in_backward(whole, i, met, index, j)


def _makers(whole: Made, slots: Iterable[int]) -> set[tuple[int, int]]:
    """Operators with finite cotangents whose pullback is not, on the way of what reaches these slots."""
    read, operators, passes = consumers(whole.listing.operators), whole.listing.operators, whole.passes
    seen, waiting, found = set(slots), list(slots), set()
    while waiting:
        for i, j in read.get(waiting.pop(), ()):
            if i not in passes.marks or passes.marks[i][j] is not Mark.BAD:
                continue
            worse = [s for s in operators[i].results if s in passes.adjoints and not passes.adjoints[s].finite]
            if not worse:
                found.add((i, j))
            waiting += [s for s in worse if s not in seen]
            seen.update(worse)
    return found


def _first_bad(a: Any) -> Index:
    places = np.argwhere(~np.isfinite(np.asarray(a)))
    return tuple(int(k) for k in places[0]) if len(places) else ()


def _bad_index(whole: Made, slot: int, index: Index | None) -> Index | None:
    """Where a value is not finite: at this index, or the first such place where None; None where it is finite."""
    codes = whole.passes.codes.get(slot)
    if codes is None:
        return None
    if index is not None:
        return index if codes[index] else None
    return tuple(int(k) for k in np.argwhere(codes)[0])


def origin(whole: Made, slot: int, index: Index) -> tuple[int, Index] | None:
    """The operator that made a value that is not finite from finite ones, or else a NaN from what was infinite.

    Args:
        whole: a graph.
        slot, index: the value.

    Returns:
        The operator, and the index in its result: the one that puts a literal infinity in, where no other made it.
        None where the value came in as it is.
    """
    makers, operators = dict(producers(whole.listing.operators)), whole.listing.operators
    turned: tuple[int, Index] | None = None
    last: tuple[int, Index] | None = None
    while slot in makers:
        i = makers[slot]
        op, codes = operators[i], whole.passes.codes
        if op.taken:
            slot = op.taken[op.results.index(slot)]
            continue
        code, shape = codes[slot][index], codes[slot].shape
        alike = {s for s in op.operands if s in codes and codes[s].shape == shape and elementwise(op.name)}
        worse = [(s, _bad_index(whole, s, index if s in alike else None)) for s in op.operands]
        bad = [(s, place) for s, place in worse if place is not None]
        if not bad:
            return i, index
        last = i, index
        if code == NAN and all(codes[s][place] != NAN for s, place in bad):
            turned = i, index
        slot, index = bad[0]
    return turned or (last if slot in whole.listing.constants and slot not in whole.listing.named else None)


# Operators between arrays of one shape whose results depend on other places of their operands.
_MIXING: tuple[str, ...] = (
    "dot_general",
    "sort",
    "rev",
    "cum",
    "reduce_window",
    "conv",
    "fft",
    "transpose",
    "gather",
    "triangular",
)
_MIXING += ("cholesky", "lu", "qr", "eigh", "svd", "scan", "while", "cond", "custom", "jit", "pjit", "remat", "scatter")


def elementwise(name: str) -> bool:
    """Whether an operator's result at a place depends on its operands at that place alone, where shapes are equal."""
    return not name.startswith(_MIXING)


def in_forward(whole: Made, i: int, index: Index) -> Fault:
    """The fault behind a result that is not finite, of an operator whose operands are."""
    op = whole.listing.operators[i]
    operands = whole.met(i)[i].operands
    inside: Made | None = None
    if op.kind == "loop":
        loop = op.loop(operands)
        assert loop is not None
        seen = unrolled(loop, None)
        k = _first_bad_iteration(seen.states, seen.ys, op.run(operands)[: len(loop.carry)], loop.length)
        if k is not None:
            inside = within(op, body_of(loop), loop.iteration(k, seen.states))
    elif (found := op.inner(operands)) is not None and op.taken is None:
        program, own = found
        inside = within(op, program, [operands[j] for j in own])
    if inside is not None and (deeper := fault_of_results(inside)) is not None:
        return deeper
    return Fault(whole, i, True, index, _at(operands, index, op.shapes[0].shape))


def fault_of_results(inside: Made) -> Fault | None:
    """The fault behind the first output of a program that is not finite."""
    for slot in inside.listing.outputs:
        start = _bad_index(inside, slot, None)
        born = None if start is None else origin(inside, slot, start)
        if born is not None:
            return in_forward(inside, *born)
    return None


def _first_bad_iteration(states: list[Any], ys: list[Any], last: list[Any], length: int) -> int | None:
    """The first iteration whose carry or output is not finite."""
    after = [np.concatenate([np.asarray(s)[1:], np.asarray(a)[None]]) for s, a in zip(states, last, strict=True)]
    for k in range(length):
        if any(not _finite(np.asarray(a)[k]) for a in (*after, *ys)):
            return k
    return None


def _finite(a: np.ndarray) -> bool:
    return bool(np.isfinite(host(a)).all())


def _in_backward(whole: Made, i: int, met: Watched, index: Index, j: int) -> Fault:
    """The fault behind an operator whose pullback is not finite, all that it reads being so."""
    op = whole.listing.operators[i]
    here = Fault(whole, i, False, index, _at(met.operands, index, np.shape(met.operands[j])), _cotangent(met, index))
    if op.kind == "loop":
        loop = op.loop(met.operands)
        assert loop is not None
        seen = unrolled(loop, met.cotangents)
        fine = lambda arrays, k: all(a is None or _finite(np.asarray(a)[k]) for a in arrays)
        bad = [k for k in range(loop.length) if fine(seen.cotangents, k) and not fine(seen.pulled, k)]
        inside = opened(whole, i, bad[-1], met) if bad else None
    elif op.kind in ("branch", "call"):
        inside = opened(whole, i, None, met)
    elif op.kind == "rule":
        return fault_of_results(rule_of(whole, i, met)) or here
    else:
        return here
    if inside is None:
        return here
    bad_slots = [s for s in inside.listing.inputs if (r := inside.reading(s)) is not None and not r.finite]
    deeper = fault_of(inside, bad_slots)
    if deeper.operator is not None:
        return deeper
    # The values came into this iteration as they are: an earlier one made them.
    return in_forward(whole, i, ()) if whole.passes.codes.keys() & set(op.results) else here


def rule_of(whole: Made, i: int, met: Watched) -> Made:
    """The pullback of an operator as a program of its own, run at what the operator met."""
    op = whole.listing.operators[i]
    program = op.rule(met.operands, tuple(a is not None for a in met.pulled))
    operands = [*met.operands, *(w for w in met.cotangents if w is not None)]
    return within(op, program, operands)


def _at(arrays: Sequence[Any], index: Index, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The numbers of some arrays at an index of an array of this shape; None for arrays of another shape."""
    inside = len(index) == len(shape)
    return tuple(
        np.asarray(a)[index] if np.shape(a) == shape and inside else np.asarray(a)[()] if np.ndim(a) == 0 else None
        for a in arrays
    )


def _cotangent(met: Watched, index: Index) -> Any:
    given = [w for w in met.cotangents if w is not None]
    if len(given) != 1:
        return None
    return _at(given, index, np.shape(given[0]))[0]

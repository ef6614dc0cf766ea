"""Where the way from an input to the output was cut, so that its derivative is identically zero."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.graphs.blocks import compiled
from gradlab.graphs.build import Made, opened, within
from gradlab.graphs.nonfinite import rule_of
from gradlab.graphs.passes import Mark, Watched, consumers, producers
from gradlab.jaxprs import Operator, moves, unrolled

# What says most comes first, where the way is cut in several places.
Reason = Literal[
    "vanished", "saturated", "dead", "branch", "stopped", "rounded", "rule", "overwritten", "cast", "index",
    "comparison", "discrete", "untaken", "factor", "cancelled", "unused",
]  # fmt: skip
_ORDER: tuple[Reason, ...] = get_args(Reason)
# Slopes that are zero here by chance, and not nearby: at a stationary point, beside a factor that is zero.
_BY_CHANCE: tuple[Reason, ...] = ("factor", "cancelled")
# Functions whose slope is nowhere zero: a zero is one that was rounded to it.
_NEVER_FLAT = "exp exp2 expm1 logistic tanh erf erfc erf_inv atan sinh asinh log log1p sqrt rsqrt cbrt lgamma"
_CHOOSES = ("max", "min", "clamp", "reduce_max", "reduce_min", "cummax", "cummin", "select_and_gather_add")
_WRITES = ("scatter", "dynamic_update_slice", "gather", "dynamic_slice", "slice", "pad", "concatenate")
_BY_NAME: dict[str, Reason] = {
    "stop_gradient": "stopped",
    "select_n": "branch",
    **dict.fromkeys(("floor", "ceil", "round", "sign", "rem"), "rounded"),
    **dict.fromkeys(("argmax", "argmin", "sort", "top_k"), "index"),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "is_finite"), "comparison"),
    **dict.fromkeys(_NEVER_FLAT.split(), "saturated"),
    **dict.fromkeys(_CHOOSES, "dead"),
}
# How far inputs are moved, relative to their size, to see whether a slope that is zero stays so.
_NUDGE = 0.01
# What comes back is faint below so many of the smallest normal numbers.
FAINT = 1e6
# A part of a carry is followed through so many iterations.
FOLLOWED = 8
# A part of an array is followed through so many operators; behind them, the whole array counts.
TRACKED = 64


@dataclass(frozen=True, eq=False)
class Cut:
    """One place where the way is cut.

    Attributes:
        made: the graph, or that of a program inside one of its operators.
        operator: which one; None where the input is not used.
        reason: what it did.
        largest: the largest operand there; NaN where it was not looked at.
    """

    made: Made
    operator: int | None
    reason: Reason
    largest: float = np.nan


def cut_of(whole: Made, j: int, part: np.ndarray | None = None) -> Cut | None:
    """What cuts the way of the j-th input, or of a part of it, as a mask.

    Returns:
        The cut that says most; None where the derivative is zero by chance, or not known.
    """
    cuts = _cuts(whole, whole.listing.inputs[j], part)
    if cuts is None:
        return None
    if any(cut.reason in _BY_CHANCE for cut in cuts) and _moves_nearby(whole, j, part):
        return None
    if not cuts:
        return Cut(whole, None, "unused")
    first = min(cuts, key=lambda cut: _ORDER.index(cut.reason))
    return _behind(first) if first.reason == "factor" else first


def _moves_nearby(whole: Made, j: int, part: np.ndarray | None) -> bool:
    """Whether the derivative by the j-th input, or a part of it, is not zero when all inputs are moved a little."""
    random = np.random.default_rng(0)

    def nudged(a: Any) -> jax.Array:
        array = np.asarray(a)
        wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
        size = np.maximum(np.abs(wide), np.sqrt(np.mean(np.abs(wide) ** 2)) if wide.size else 0.0)
        size = np.where(size > 0, size, 1.0)
        return jnp.asarray(
            wide + _NUDGE * size * random.uniform(0.5, 1, wide.shape) * random.choice([-1, 1], wide.shape), array.dtype
        )

    runner = replace(whole.runner, inputs=[nudged(a) for a in whole.runner.inputs])
    reading = runner.run().adjoints.get(whole.listing.inputs[j])
    return reading is not None and bool(np.asarray(reading.shown)[... if part is None else part].any())


def _cuts(whole: Made, slot: int, part: np.ndarray | None = None) -> list[Cut] | None:
    """Every cut on the ways from a slot to the outputs; None where an operator without a rule hides some."""
    read, reaching = consumers(whole.listing.operators), _reaching(whole)
    seen, waiting = {slot}, [Way(slot, part)]
    cuts: list[Cut] = []
    waves = 0
    while waiting:
        arrived = [(i, j, way.part) for way in waiting for i, j in read.get(way.slot, ()) if i in reaching]
        if any(_mark(whole, i, j) is Mark.UNKNOWN for i, j, _ in arrived):
            return None
        arrived = [(i, j, part if waves < TRACKED else None) for i, j, part in arrived]
        waves += 1
        looked = {i for i, j, part in arrived if part is not None or _closes(whole, i, j)}
        met = whole.met(*looked) if looked else {}
        waiting = []
        for i, j, part in arrived:
            found, onward = _passed(whole, i, j, part, met.get(i), reaching)
            cuts += found
            waiting += [way for way in onward if way.slot not in seen]
            seen.update(way.slot for way in onward)
    return [
        replace(cut, reason="vanished") if cut.reason in (*_BY_CHANCE, "saturated") and _faint(cut) else cut
        for cut in cuts
    ]


@dataclass(frozen=True, eq=False)
class Way:
    """How far an input has come: a slot, and the part of its numbers that depends on it; None for all."""

    slot: int
    part: np.ndarray | None = None


def _passed(
    whole: Made, i: int, j: int, part: np.ndarray | None, met: Watched | None, reaching: dict[int, set[int]]
) -> tuple[list[Cut], list[Way]]:
    """The cuts that an operator makes on the way of its j-th operand, and where the way goes on without one."""
    op = whole.listing.operators[i]
    smooth = [s for s, shape in zip(op.results, op.shapes, strict=True) if moves(shape)]
    cuts = [Cut(whole, i, _reason(op, discrete=True))] if reaching[i] - set(smooth) else []
    if not smooth:
        return cuts, []
    parts = _spread(whole, op, met.operands, j, part) if met is not None else None
    if _unreached(whole, i):
        return cuts, [Way(s, parts[op.results.index(s)] if parts else None) for s in smooth]
    if met is None:
        return [*cuts, Cut(whole, i, "cancelled")], []
    if parts and any(p.any() for p in parts):
        back = [np.asarray(w)[p] for w, p in zip(met.cotangents, parts, strict=True) if w is not None]
        if not any(w.any() for w in back):
            return cuts, [Way(s, parts[op.results.index(s)]) for s in smooth]
    if part is not None and np.asarray(met.pulled[j])[part].any():
        return [*cuts, Cut(whole, i, "cancelled")], []
    return [*cuts, *_inside(whole, i, j, met, part)], []


def _mark(whole: Made, i: int, j: int) -> Mark:
    """What came back through an operator to its j-th operand."""
    return whole.passes.marks[i][j] if i in whole.passes.marks else Mark.NONE


def _closes(whole: Made, i: int, j: int) -> bool:
    """Whether something comes back to an operator, and nothing through it to its j-th operand."""
    return _mark(whole, i, j) is Mark.ZERO and not _unreached(whole, i)


def _unreached(whole: Made, i: int) -> bool:
    """Whether nothing, or nothing but zeros, comes back to an operator."""
    adjoints = whole.passes.adjoints
    given = (adjoints.get(s) for s in whole.listing.operators[i].results)
    return i not in whole.passes.marks or all(found is None or found.zero for found in given)


def _spread(whole: Made, op: Operator, operands: list[Any], j: int, part: np.ndarray | None) -> list[np.ndarray] | None:
    """Which numbers of the results move with a part of the j-th operand (None for all of it); None where all may."""
    if op.kind != "operator":
        return None
    part = np.ones(np.shape(operands[j]), bool) if part is None else part
    direction = np.random.default_rng(0).uniform(0.5, 1.5, part.shape) * part
    wanted = tuple(k == j for k in range(len(operands)))
    push = compiled(whole.runner.programs, ("push", op.signature(operands, wanted)), partial(_pushed, op, j))
    tangents = push(operands, jnp.asarray(direction, jnp.result_type(operands[j])))
    return [
        np.zeros(s.shape, bool) if t is None else np.asarray(t) != 0 for t, s in zip(tangents, op.shapes, strict=True)
    ]


def _pushed(op: Operator, j: int, operands: list[Any], tangent: jax.Array) -> list[jax.Array | None]:
    """The tangents of an operator's results along a tangent of its j-th operand; None for integers."""
    smooth = [moves(s) for s in op.shapes]
    run = lambda a: [y for y, m in zip(op.run([*operands[:j], a, *operands[j + 1 :]]), smooth, strict=True) if m]
    found = iter(jax.jvp(run, (operands[j],), (tangent,))[1])
    return [next(found) if m else None for m in smooth]


def _faint(cut: Cut) -> bool:
    """Whether what came back to an operator is hardly above the smallest number of its dtype."""
    assert cut.operator is not None
    op, adjoints = cut.made.listing.operators[cut.operator], cut.made.passes.adjoints
    pairs = [(adjoints[s], shape.dtype) for s, shape in zip(op.results, op.shapes, strict=True) if s in adjoints]
    return bool(pairs) and all(found.statistics.rms < FAINT * float(jnp.finfo(dtype).tiny) for found, dtype in pairs)


def _reaching(whole: Made) -> dict[int, set[int]]:
    """The operators that an output with a cotangent depends on, with those of their results that it does depend on."""
    makers = dict(producers(whole.listing.operators))
    waiting = [s for s, w in zip(whole.listing.outputs, whole.runner.seeds, strict=True) if w is not None]
    found: dict[int, set[int]] = {}
    while waiting:
        slot = waiting.pop()
        if slot not in makers:
            continue
        i = makers[slot]
        if i not in found:
            waiting += whole.listing.operators[i].operands
        found.setdefault(i, set()).add(slot)
    return found


def _reason(op: Operator, *, discrete: bool = False) -> Reason:
    if op.name in _BY_NAME:
        return _BY_NAME[op.name]
    if op.name == "convert_element_type" and discrete:
        return "cast"
    if op.name.startswith(_WRITES):
        return "overwritten"
    if op.kind == "rule":
        return "dead" if op.label.startswith(("relu", "hard_", "clip")) else "rule"
    return "discrete" if discrete else "factor"


def _inside(whole: Made, i: int, j: int, met: Watched, part: np.ndarray | None) -> Iterator[Cut]:
    """The cuts that an operator makes on the way of its j-th operand: those of the program that it holds."""
    op = whole.listing.operators[i]
    reason = _reason(op)
    if op.kind == "rule" and reason == "rule":
        yield _rule_cut(whole, i, j, met)
    elif op.kind in ("branch", "call"):
        found = op.inner(met.operands)
        assert found is not None
        inside = opened(whole, i, None, met)
        cuts = _cuts(inside, inside.listing.inputs[found[1].index(j)], part) if j in found[1] else []
        yield from cuts or [Cut(whole, i, "untaken")]
    elif op.kind == "loop":
        yield from _loop_cuts(whole, i, j, met, part)
    else:
        numbers = np.abs(np.asarray(met.operands[j], np.complex128 if np.iscomplexobj(met.operands[j]) else np.float64))
        yield Cut(whole, i, reason, float(numbers.max(initial=0.0)))


def _loop_cuts(whole: Made, i: int, j: int, met: Watched, part: np.ndarray | None) -> list[Cut]:
    """The cuts in the last iteration that had something to pass on and passed nothing on to this operand.

    A part of the carry is followed from the first iteration on.
    """
    op = whole.listing.operators[i]
    loop = op.loop(met.operands)
    assert loop is not None
    seen = unrolled(loop, met.cotangents)
    own = len(met.operands) - len(loop.constants) - len(loop.carry) - len(loop.xs)  # a while_loop's condition's
    pulled = seen.pulled[j - own] if j >= own else None
    if pulled is None:
        return [_test_cut(whole, i, j, met)]
    given = [np.asarray(w) for w in seen.cotangents if w is not None]
    cut = [k for k in range(loop.length) if not np.asarray(pulled)[k].any() and any(w[k].any() for w in given)]
    carried = len(loop.constants) <= j - own < len(loop.constants) + len(loop.carry)
    for k in range(min(loop.length, FOLLOWED)) if part is not None and carried else cut[-1:]:
        inside = opened(whole, i, k, met)
        if cuts := _cuts(inside, inside.listing.inputs[j - own], part if carried else None):
            return cuts
    return [Cut(whole, i, "untaken")]


def _test_cut(whole: Made, i: int, j: int, met: Watched) -> Cut:
    """Where the condition of a while_loop reads this operand, if not its body."""
    op = whole.listing.operators[i]
    test, own = op.test(met.operands)
    inside = within(op, test, [met.operands[k] for k in own])
    readers = consumers(inside.listing.operators).get(inside.listing.inputs[own.index(j)]) if j in own else None
    return Cut(inside, readers[0][0], "comparison") if readers else Cut(whole, i, "untaken")


def _rule_cut(whole: Made, i: int, j: int, met: Watched) -> Cut:
    """The operator of a rule that gives zero, though what comes in is not."""
    rule = rule_of(whole, i, met)
    wanted = [k for k, a in enumerate(met.pulled) if a is not None]
    slot = rule.listing.outputs[wanted.index(j)]
    makers, operators = dict(producers(rule.listing.operators)), rule.listing.operators
    fed = set(rule.listing.inputs[len(met.operands) :])
    for op in operators:
        if any(s in fed for s in op.operands):
            fed.update(op.results)
    zero = lambda s: s in rule.passes.values and rule.passes.values[s].zero
    while slot in makers:
        op = operators[makers[slot]]
        if op.taken:
            slot = op.taken[op.results.index(slot)]
            continue
        onward = [s for s in op.operands if s in fed and zero(s)]
        if not onward:
            return Cut(rule, makers[slot], "rule") if op.frames else Cut(whole, i, "rule")
        slot = onward[0]
    return Cut(whole, i, "rule")


def _behind(cut: Cut) -> Cut:
    """The operator that made the factor that is zero, where one did and stays so: what saturated, died, was rounded."""
    whole, operator = cut.made, cut.operator
    assert operator is not None
    makers, operators, values = dict(producers(whole.listing.operators)), whole.listing.operators, whole.passes.values
    zero = lambda s: s in values and values[s].zero
    waiting, seen = [s for s in operators[operator].operands if zero(s)], set()
    while waiting:
        slot = waiting.pop()
        if slot not in makers or slot in seen:
            continue
        seen.add(slot)
        op = operators[makers[slot]]
        reason = _reason(op)
        if reason in ("saturated", "dead", "branch", "rounded") and not (
            reason == "saturated" and all(map(zero, op.operands))
        ):
            return Cut(whole, makers[slot], reason)
        waiting += [s for s in op.operands if zero(s)] + ([op.taken[op.results.index(slot)]] if op.taken else [])
    return cut

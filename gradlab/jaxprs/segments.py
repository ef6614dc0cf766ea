"""A program cut into segments: what crosses at each place, and each segment as a function of what crosses before it.

A slot *moves* when it is floating, depends on an input, and an output depends on it through such slots alone. Only what
moves has a derivative to be chained; everything else that depends on an input (indices, comparisons, what
`stop_gradient` returns) crosses a cut as a value.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from math import inf, prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradlab.jaxprs.flops import flops
from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, bound, called, jaxpr_of, moves
from gradlab.jaxprs.sources import Frames, frames_of

Values = dict[int, Any]

# Calls whose program may be listed in their place: they have no rule of their own and keep no value back.
_OPENED = ("jit", "pjit", "closed_call", "core_call")


@dataclass(frozen=True, eq=False)
class Step:
    """One operator of a flat program.

    Attributes:
        operands, results: slots.
        eqn: JAX's own record, for this package alone.
        holders: the calls that it was opened from, the innermost first.
    """

    operands: tuple[int, ...]
    results: tuple[int, ...]
    eqn: Any = field(repr=False)
    holders: tuple[Any, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """JAX's name of the operator."""
        return self.eqn.primitive.name

    @property
    def has_effects(self) -> bool:
        """Whether it does more than it returns, as a print does."""
        return bool(self.eqn.effects)

    @cached_property
    def work(self) -> float:
        """Operations and numbers written; where the operations are not known, the bytes that come and go."""
        written = sum(_size(v.aval) for v in self.eqn.outvars)
        counted = flops(self.eqn)
        if counted is None:
            counted = sum(_bytes(v.aval) for v in (*self.eqn.invars, *self.eqn.outvars))
        return counted + written

    @property
    def scope(self) -> str:
        """The path of `jax.named_scope`s."""
        stacks = (str(eqn.source_info.name_stack) for eqn in reversed((self.eqn, *self.holders)))
        return "/".join(stack for stack in stacks if stack)

    @property
    def frames(self) -> Frames:
        """The lines that led to it, the innermost first."""
        return tuple(chain.from_iterable(frames_of(eqn) for eqn in (self.eqn, *self.holders)))

    @cached_property
    def key(self) -> Hashable:
        """Operators with the same one, at operands of the same shapes, have rules for the same modes."""
        if self.name in CALLS and self.name.startswith("custom_"):
            # Every call of a function with rules has its own copies of them: its name and its program tell which it is.
            inside = tuple(eqn.primitive.name for eqn in jaxpr_of(called(self.eqn)).eqns)
            return (self.name, self.eqn.params.get("name"), inside)
        options = tuple(sorted(self.eqn.params.items()))
        try:
            hash(options)
        except TypeError:
            return id(self.eqn)
        return (self.name, options)

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """The results at these operands."""
        return bound(self.eqn, list(operands))


@dataclass(frozen=True, eq=False)
class Flow:
    """A program whose first outputs are differentiated by its inputs.

    Attributes:
        inputs, targets, extras: slots of the inputs, of the differentiated outputs and of the other outputs.
        constants: what is known before it runs, by slot.
        shapes: of every slot.
        head: steps that do not depend on an input, and that a target needs.
        middle: steps that depend on an input, and that a target needs.
        tail: the rest of what extras and effects need.
        moving: the slots that move.
    """

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    extras: tuple[int, ...]
    constants: Values
    shapes: dict[int, jax.ShapeDtypeStruct]
    head: tuple[Step, ...]
    middle: tuple[Step, ...]
    tail: tuple[Step, ...]
    moving: frozenset[int]

    def size(self, slot: int) -> int:
        """How many numbers a slot holds."""
        return _size(self.shapes[slot])

    def carries(self, step: Step) -> bool:
        """Whether a derivative goes through a step."""
        return not self.moving.isdisjoint(step.results)

    def start(self, leaves: Sequence[Any]) -> Values:
        """The values that the middle begins with, at these inputs."""
        return run(self.head, {**self.constants, **dict(zip(self.inputs, leaves, strict=True))})

    def finish(self, values: Values) -> list[Any]:
        """The extras, from the values that the middle leaves."""
        after = run(self.tail, values)
        return [after[s] for s in self.extras]

    def ordered(self, order: Sequence[int]) -> "Schedule":
        """The middle in this order, which puts no step before what it needs."""
        return Schedule(self, tuple(self.middle[i] for i in order))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The middle of a program in one order; place k is before its k-th step.

    Attributes:
        flow: the program.
        steps: of its middle, in this order.
    """

    flow: Flow
    steps: tuple[Step, ...]

    @cached_property
    def spans(self) -> dict[int, tuple[int, int]]:
        """The first and the last place that each moving slot crosses."""
        end = len(self.steps)
        born = dict.fromkeys(self.flow.inputs, 0)
        last: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            born.update((s, i + 1) for s in step.results)
            if self.flow.carries(step):
                last.update((s, i) for s in step.operands)
        last.update((s, end) for s in self.flow.targets)
        return {s: (born[s], last[s]) for s in sorted(self.flow.moving)}

    @cached_property
    def widths(self) -> list[float]:
        """How many numbers cross at each place; infinitely many where one is complex: the Jacobians are real."""
        complex_slots = {s for s in self.spans if jnp.issubdtype(self.flow.shapes[s].dtype, jnp.complexfloating)}
        blocked = self._crossing((s, 1) for s in complex_slots)
        sizes = self._crossing((s, self.flow.size(s)) for s in self.spans)
        return [inf if b else float(n) for b, n in zip(blocked, sizes, strict=True)]

    def _crossing(self, weights: Iterable[tuple[int, int]]) -> list[int]:
        changes = [0] * (len(self.steps) + 2)
        for slot, weight in weights:
            first, last = self.spans[slot]
            changes[first] += weight
            changes[last + 1] -= weight
        return list(accumulate(changes))[:-1]

    @cached_property
    def works(self) -> list[float]:
        """The work of the steps before each place that a derivative goes through."""
        return [0.0, *accumulate(step.work if self.flow.carries(step) else 0.0 for step in self.steps)]

    def crossing(self, place: int) -> list[int]:
        """The moving slots that cross at a place."""
        return [s for s, (first, last) in self.spans.items() if first <= place <= last]

    def segment(self, start: int, stop: int, values: Values) -> tuple[Callable[..., Any], list[int]]:
        """The steps between two places, as a function of what moves and crosses at the first.

        Args:
            start, stop: places.
            values: of every slot that the steps read and that does not cross the first place moving.

        Returns:
            The function, from the arrays of `crossing(start)` to those of `crossing(stop)` and to the other values that
            are read later, and the slots of those.
        """
        incoming, outgoing, steps = self.crossing(start), self.crossing(stop), self.steps[start:stop]
        later = {s for step in (*self.steps[stop:], *self.flow.tail) for s in step.operands}.union(self.flow.extras)
        kept = [s for step in steps for s in step.results if s in later and s not in outgoing]

        def apply(*moved: Any) -> tuple[list[Any], list[Any]]:
            after = run(steps, {**values, **dict(zip(incoming, moved, strict=True))}, held=self._held)
            return [after[s] for s in outgoing], [after[s] for s in kept]

        return apply, kept

    def _held(self, step: Step) -> bool:
        return not self.flow.carries(step)


def run(steps: Iterable[Step], values: Values, held: Callable[[Step], bool] = lambda step: False) -> Values:
    """The values after these steps, with those before them.

    Args:
        steps: operators.
        values: of the slots that they read.
        held: steps that no derivative goes through, whatever their operands are.
    """
    values = dict(values)
    for step in steps:
        operands = [values[s] for s in step.operands]
        if held(step):
            operands = [jax.lax.stop_gradient(a) for a in operands]
        values.update(zip(step.results, step.run(operands), strict=True))
    return values


def flow_of(program: Traced, targets: int) -> Flow:
    """A traced program as a `Flow`.

    Args:
        program: its inputs are floating.
        targets: so many of its first outputs are differentiated.

    >>> from gradlab.jaxprs import trace
    >>> found = flow_of(trace(lambda x: jnp.exp(jnp.sum(x)) * jnp.arange(5.0), jnp.ones(3)), 1)
    >>> [step.name for step in found.head], [step.name for step in found.middle], found.ordered(range(3)).widths
    (['iota'], ['reduce_sum', 'exp', 'mul'], [3.0, 1.0, 1.0, 5.0])
    """
    flat = _Flattener()
    inputs = tuple(flat.slot(v) for v in jaxpr_of(program.closed).invars)
    outputs = flat.walk(program.closed, inputs, ())
    moving = _moving(flat, inputs, outputs[:targets])
    dependent = set(inputs)
    for step in flat.steps:
        if not dependent.isdisjoint(step.operands):
            dependent.update(step.results)
    for_targets = _needed(flat.steps, outputs[:targets], effects=False)
    wanted = _needed(flat.steps, outputs, effects=True)
    turns = lambda i: not dependent.isdisjoint(flat.steps[i].operands)
    pick = lambda test: tuple(step for i, step in enumerate(flat.steps) if test(i))
    return Flow(
        inputs=inputs,
        targets=outputs[:targets],
        extras=outputs[targets:],
        constants=flat.constants,
        shapes=flat.shapes,
        head=pick(lambda i: i in for_targets and not turns(i)),
        middle=pick(lambda i: i in for_targets and turns(i)),
        tail=pick(lambda i: i in wanted and i not in for_targets),
        moving=moving,
    )


def _moving(flat: "_Flattener", inputs: Sequence[int], targets: Sequence[int]) -> frozenset[int]:
    """The slots that move: reached from an input, and reaching a target."""
    reached = set(inputs)
    for step in flat.steps:
        if step.name != "stop_gradient" and not reached.isdisjoint(step.operands):
            reached.update(s for s in step.results if moves(flat.shapes[s]))
    reaching = reached.intersection(targets)
    for step in reversed(flat.steps):
        if not reaching.isdisjoint(step.results):
            reaching.update(reached.intersection(step.operands))
    return frozenset(reaching)


def _needed(steps: Sequence[Step], outputs: Iterable[int], *, effects: bool) -> set[int]:
    """Which steps the outputs need, by their indices, with those that have effects where they count."""
    slots, found = set(outputs), set()
    for i in reversed(range(len(steps))):
        step = steps[i]
        if not slots.isdisjoint(step.results) or (effects and step.has_effects):
            found.add(i)
            slots.update(step.operands)
    return found


class _Flattener:
    """Numbers the variables of a program, and of the calls that may be opened, while it walks through them."""

    def __init__(self) -> None:
        self.shapes: dict[int, jax.ShapeDtypeStruct] = {}
        self.constants: Values = {}
        self.steps: list[Step] = []

    def slot(self, atom: Any) -> int:
        number = len(self.shapes)
        aval = atom.aval
        dtype = getattr(aval, "dtype", jax.dtypes.float0)
        self.shapes[number] = jax.ShapeDtypeStruct(getattr(aval, "shape", ()), dtype)
        return number

    def constant(self, atom: Any, value: Any) -> int:
        number = self.slot(atom)
        self.constants[number] = value
        return number

    def walk(self, closed: Any, inputs: Sequence[int], holders: tuple[Any, ...]) -> tuple[int, ...]:
        """List a program's operators; return the slots of its outputs."""
        jaxpr = jaxpr_of(closed)
        slots: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        slots.update((v, self.constant(v, c)) for v, c in zip(jaxpr.constvars, closed.consts, strict=True))
        read = lambda atom: self.constant(atom, atom.val) if isinstance(atom, core.Literal) else slots[atom]
        for eqn in jaxpr.eqns:
            operands = tuple(read(v) for v in eqn.invars)
            if eqn.primitive.name in _OPENED:
                results = self.walk(called(eqn), operands, (eqn, *holders))
            else:
                results = tuple(self.slot(v) for v in eqn.outvars)
                self.steps.append(Step(operands, results, eqn, holders))
            slots.update(zip(eqn.outvars, results, strict=True))
        return tuple(read(v) for v in jaxpr.outvars)


def _size(aval: Any) -> int:
    return prod(getattr(aval, "shape", ()))


def _bytes(aval: Any) -> int:
    return _size(aval) * getattr(getattr(aval, "dtype", None), "itemsize", 1)

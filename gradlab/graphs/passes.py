"""Forward and backward through a listing, one operator at a time, in bounded memory."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from math import ceil, sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.errors import first_sentence
from gradlab.graphs.blocks import Block, Plan, blocks, compiled, filled
from gradlab.graphs.record import Shown, Statistics, statistics
from gradlab.jaxprs import Listing, Operator, Pullback, moves

# All values are kept from forward to backward up to this many bytes; beyond, those inside of a block are computed anew.
RESIDENT_BYTES = 512 * 2**20
# Arrays of so many numbers are shown whole.
SHOWN = 1024


class Mark(Enum):
    """What an operator's pullback gives to one of its operands."""

    NONE = "no derivative"  # an integer, or nothing that depends on the inputs
    UNKNOWN = "no rule"
    ZERO = "zero"
    FINITE = "finite"
    BAD = "not finite"


@dataclass(frozen=True)
class Reading:
    """What is kept of one array: the array where it is small, and numbers about it."""

    shown: Shown
    statistics: Statistics

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        return self.statistics.nonfinite == 0

    @property
    def zero(self) -> bool:
        """Whether every number is exactly zero."""
        return self.finite and self.statistics.rms == 0


@dataclass(frozen=True)
class Watched:
    """One operator as it was met: arrays on the device.

    Attributes:
        operands: its operands.
        cotangents: of its results, None for those without one; empty where none came.
        pulled: cotangents of its operands, alike.
    """

    operands: list[Any]
    cotangents: list[Any]
    pulled: list[Any]


@dataclass
class Passes:
    """What one run through a listing has seen.

    Attributes:
        values, adjoints: by slot; no adjoint where there is no derivative or no rule for one.
        codes: for values that are not all finite, 0 finite, 1 infinite, 2 NaN, by slot.
        marks: for each operator, one of each operand; empty where no cotangent came.
        reasons: why an operator has no pullback, by its index.
        pullbacks: the program of each operator's pullback, by its index.
        watched: the operators that were asked for.
    """

    values: dict[int, Reading] = field(default_factory=dict)
    adjoints: dict[int, Reading] = field(default_factory=dict)
    codes: dict[int, np.ndarray] = field(default_factory=dict)
    marks: dict[int, tuple[Mark, ...]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    pullbacks: dict[int, Pullback] = field(default_factory=dict)
    watched: dict[int, Watched] = field(default_factory=dict)


Values = dict[int, Any]


@dataclass(frozen=True, eq=False)
class Runner:
    """How a listing is run at inputs.

    Attributes:
        listing, inputs: what is run, and where.
        seeds: cotangents of the outputs, None for those without; empty for a forward pass alone.
        keep: whether arrays of any size are shown whole.
        programs: pullbacks and compiled blocks, shared by the runs of one listing.
    """

    listing: Listing
    inputs: Sequence[Any]
    seeds: Sequence[Any]
    keep: bool = False
    programs: dict[Hashable, Any] = field(default_factory=dict)

    def run(self, watch: frozenset[int] = frozenset()) -> Passes:
        """One forward pass, and one backward where there are seeds."""
        found = Passes()
        named = {slot: jnp.asarray(self.listing.constants[slot]) for slot in self.listing.named}
        values: Values = {**named, **dict(zip(self.listing.inputs, self.inputs, strict=True))}
        for slot in values:
            self._read(found, slot, values[slot], keep=slot in self.listing.inputs)
        for slot in self.listing.constants.keys() - named.keys():
            self._code(found, slot, self.listing.constants[slot])
        snapshots: list[Values] = []
        for k, block in enumerate(self.blocks):
            if not self.resident and k % self._stride == 0:
                snapshots.append(values)
            values = {**values, **self._forward(block, values)}
            for slot in block.made:
                self._read(found, slot, values[slot])
            for i in watch & set(range(block.start, block.stop)):
                found.watched[i] = Watched(self._operands(i, values), [], [])
            values = self._kept(block, values)
        if self.seeds:
            self._pull_back(found, self._backwards(snapshots, values), watch)
        return found

    def _kept(self, block: Block, values: Values) -> Values:
        """What stays behind a block: everything where there is room, else what is still read."""
        if self.resident:
            return values
        return {slot: a for slot, a in values.items() if self._last_use.get(slot, -1) >= block.stop}

    def _backwards(self, snapshots: list[Values], values: Values) -> Iterator[tuple[Block, Values]]:
        """The blocks from the last to the first, each with the values that it reads and makes.

        Without room for all of them, those at the start of a block are computed anew from the snapshot before it, and
        those inside from these: three forward passes, and memory for about 2 √n starts and one block.
        Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), section 12.2.
        """
        if self.resident:
            yield from ((block, values) for block in reversed(self.blocks))
            return
        for s in reversed(range(len(snapshots))):
            segment = self.blocks[s * self._stride : (s + 1) * self._stride]
            starts = [snapshots.pop()]
            for block in segment[:-1]:
                starts.append(self._kept(block, {**starts[-1], **self._forward(block, starts[-1])}))
            for block in reversed(segment):
                start = starts.pop()
                yield block, {**start, **self._forward(block, start)}

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The operators in blocks."""
        return blocks(self.listing, None if self.resident else RESIDENT_BYTES // 4)

    @cached_property
    def _stride(self) -> int:
        """From one snapshot to the next, in blocks."""
        return ceil(sqrt(len(self.blocks)))

    @cached_property
    def resident(self) -> bool:
        """Whether all values stay until the backward pass; else only those that a later block reads."""
        return sum(op.bytes for op in self.listing.operators) <= RESIDENT_BYTES

    @cached_property
    def _last_use(self) -> dict[int, int]:
        uses = {slot: i for i, op in enumerate(self.listing.operators) for slot in (*op.operands, *(op.taken or ()))}
        return {**uses, **{slot: len(self.listing.operators) for slot in self.listing.outputs}}

    @cached_property
    def _active(self) -> frozenset[int]:
        """The slots that depend on an input by numbers with a tangent space."""
        active = {s for s, shape in zip(self.listing.inputs, self.listing.shapes, strict=True) if moves(shape)}
        for op in self.listing.operators:
            if op.owner is None and any(s in active for s in op.operands):
                active.update(s for s, shape in zip(op.results, op.shapes, strict=True) if moves(shape))
        return frozenset(active)

    def _operands(self, i: int, values: Values) -> list[Any]:
        constants = self.listing.constants
        return [values[s] if s in values else constants[s] for s in self.listing.operators[i].operands]

    def _forward(self, block: Block, values: Values) -> Values:
        """What the operators of a block give."""
        forward = compiled(self.programs, ("forward", block.key), block.forward)
        return dict(zip(block.made, forward([values[slot] for slot in block.read]), strict=True))

    def _read(self, found: Passes, slot: int, value: Any, *, keep: bool = False) -> None:
        found.values[slot] = reading(value, keep or self.keep)
        if not found.values[slot].finite:
            self._code(found, slot, value)

    def _code(self, found: Passes, slot: int, value: Any) -> None:
        array = host(value)
        codes = np.isinf(array) + np.uint8(2) * np.isnan(array)
        if codes.any():
            found.codes[slot] = codes

    def _pull_back(self, found: Passes, backwards: Iterator[tuple[Block, Values]], watch: frozenset[int]) -> None:
        cotangents: Values = {}
        for slot, seed in zip(self.listing.outputs, self.seeds, strict=True):
            if seed is not None:
                cotangents[slot] = cotangents[slot] + seed if slot in cotangents else seed
        unknown: set[int] = set()
        for block, values in backwards:
            plan = self._plan(found, block, values, set(cotangents), unknown)
            pulled = self._backward(block, plan, values, cotangents)
            for i, given in pulled.items():
                found.marks[i] = tuple(map(_mark, given))
                if i in watch:
                    op = self.listing.operators[i]
                    back = [filled(cotangents.get(s), shape) for s, shape in zip(op.results, op.shapes, strict=True)]
                    found.watched[i] = Watched(self._operands(i, values), back, given)
            for slot in block.made:
                self._adjoint(found, slot, values[slot], cotangents.get(slot), unknown)
                if not self.resident:
                    cotangents.pop(slot, None)
        for slot, a in zip(self.listing.inputs, self.inputs, strict=True):
            self._adjoint(found, slot, a, cotangents.get(slot), unknown, keep=True)
        for slot in self.listing.named:
            self._adjoint(found, slot, self.listing.constants[slot], cotangents.get(slot), unknown)

    def _plan(self, found: Passes, block: Block, values: Values, present: set[int], unknown: set[int]) -> Plan:
        """The operators of a block that have something to pull back, the last one first, each with its pullback."""
        plan = []
        for i in range(block.stop - 1, block.start - 1, -1):
            op = self.listing.operators[i]
            wanted = tuple(slot in self._active for slot in op.operands)
            if op.owner is not None or not any(wanted) or present.isdisjoint(op.results):
                continue
            pullback = None if unknown & set(op.results) else self._pullback(found, i, values, wanted)
            linked = wanted if pullback is None else pullback.linked
            reached = {slot for slot, link in zip(op.operands, linked, strict=True) if link}
            present |= reached
            if pullback is None:
                unknown |= reached
                found.marks[i] = tuple(Mark.UNKNOWN if w else Mark.NONE for w in wanted)
            else:
                found.pullbacks[i] = pullback
                plan.append((i - block.start, pullback))
        return tuple(plan)

    def _pullback(self, found: Passes, i: int, values: Values, wanted: tuple[bool, ...]) -> Pullback | None:
        op, operands = self.listing.operators[i], self._operands(i, values)
        # How often a while_loop runs is no part of its signature.
        key = (op.signature(operands, wanted), i if op.name == "while" else None)
        try:
            if key not in self.programs:
                self.programs[key] = op.pullback(operands, wanted)
            return self.programs[key]
        except Exception as error:  # whatever a rule raises: this operator has no pullback, and the graph says why
            found.reasons[i] = f"{type(error).__name__}: {first_sentence(error)[:200]}"
            return None

    def _backward(self, block: Block, plan: Plan, values: Values, cotangents: Values) -> dict[int, list[Any]]:
        """Add to the cotangents what comes through a block; return what each operator's pullback gave."""
        if not plan:
            return {}
        slots = (*block.read, *block.made)
        key = ("backward", block.key, tuple((i, id(pullback)) for i, pullback in plan))
        backward = compiled(self.programs, key, lambda values, cotangents: block.backward(plan, values, cotangents))
        given, pulled = backward([values[s] for s in slots], [cotangents.get(s) for s in slots])
        cotangents.update({slot: a for slot, a in zip(slots, given, strict=True) if a is not None})
        return {block.start + i: a for (i, _), a in zip(plan, pulled, strict=True)}

    def _adjoint(
        self, found: Passes, slot: int, value: Any, cotangent: Any, unknown: set[int], *, keep: bool = False
    ) -> None:
        if slot in unknown or not moves(value) or not (slot in self._active or slot in self.listing.named):
            return
        none = np.broadcast_to(np.zeros((), jnp.result_type(value)), jnp.shape(value))
        found.adjoints[slot] = reading(none if cotangent is None else cotangent, keep or self.keep)


def _mark(a: Any) -> Mark:
    if a is None:
        return Mark.NONE
    array = host(a)
    if not np.isfinite(array).all():
        return Mark.BAD
    return Mark.FINITE if array.any() else Mark.ZERO


def host(a: Any) -> np.ndarray:
    """An array in a dtype that NumPy computes with."""
    if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
        return np.zeros(jnp.shape(a), np.uint8)
    array = np.asarray(a)
    return array.astype(np.float32) if array.dtype.kind == "V" else array


def reading(a: Any, keep: bool) -> Reading:
    """What is kept of an array."""
    array = host(a)
    numbers = statistics(array)
    return Reading(array.copy() if keep or array.size <= SHOWN else numbers, numbers)


def consumers(operators: Sequence[Operator]) -> dict[int, list[tuple[int, int]]]:
    """Who reads a slot: pairs of an operator and which of its operands, those whose rule is another's left out."""
    found: dict[int, list[tuple[int, int]]] = {}
    for i, op in enumerate(operators):
        for j, slot in enumerate(op.operands if op.owner is None else ()):
            found.setdefault(slot, []).append((i, j))
    return found


def producers(operators: Sequence[Operator]) -> Iterator[tuple[int, int]]:
    """Pairs of a slot and the operator that makes it."""
    return ((slot, i) for i, op in enumerate(operators) for slot in op.results)

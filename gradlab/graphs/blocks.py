"""Operators in blocks, each compiled as one program that returns every result, and every cotangent backward.

Compiling a hundred operators at once takes hardly longer than compiling one. A barrier behind each of them keeps the
compiler from turning log(exp(x)) into x: every operator gets the numbers that the one before it gave. Blocks with the
same operators between the same places, as in a loop that Python unrolled, are compiled once.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.jaxprs import Listing, Operator, Pullback, moves

# So many operators are compiled as one program, and operators may repeat at this distance at most.
LONGEST = 256
# The share of operators that must be the same at a distance that counts as a period.
PERIODIC = 0.9

Plan = tuple[tuple[int, Pullback], ...]
Pulled = list[list[Any]]


@dataclass(frozen=True, eq=False)
class Block:
    """Operators that are compiled together; inside, slots have the numbers of their order of appearance.

    Attributes:
        listing: that they belong to.
        start, stop: which operators.
    """

    listing: Listing
    start: int
    stop: int

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """Its operators."""
        return self.listing.operators[self.start : self.stop]

    @cached_property
    def made(self) -> tuple[int, ...]:
        """The slots that the operators make."""
        return tuple(slot for op in self.operators for slot in op.results)

    @cached_property
    def read(self) -> tuple[int, ...]:
        """The slots that they read and do not make, literals left out."""
        listing, made = self.listing, set(self.made)
        literals = listing.constants.keys() - set(listing.named)
        slots = (s for op in self.operators for s in (*op.operands, *(op.taken or ())))
        return tuple(dict.fromkeys(s for s in slots if s not in made and s not in literals))

    @cached_property
    def _places(self) -> dict[int, int]:
        return {slot: place for place, slot in enumerate((*self.read, *self.made))}

    @cached_property
    def key(self) -> Hashable:
        """Blocks with the same one compute the same."""
        return tuple(
            (op.key, self._wired(op.operands), self._wired(op.taken or ()), op.owner is None) for op in self.operators
        )

    def _wired(self, slots: Sequence[int]) -> Hashable:
        literal = lambda slot: _literal_key(self.listing.constants[slot])
        return tuple(self._places[s] if s in self._places else literal(s) for s in slots)

    def get(self, slot: int, values: Sequence[Any]) -> Any:
        """What a slot holds, from the values of `read` and `made` in their order."""
        return values[self._places[slot]] if slot in self._places else self.listing.constants[slot]

    def forward(self, values: Sequence[Any]) -> list[Any]:
        """The values of `made`, from those of `read`."""
        values = list(values)
        for op in self.operators:
            taken = op.taken and [self.get(s, values) for s in op.taken]
            values += _apart(taken or op.run([self.get(s, values) for s in op.operands]))
        return values[len(self.read) :]

    def backward(self, plan: Plan, values: Sequence[Any], cotangents: Sequence[Any]) -> tuple[list[Any], Pulled]:
        """Cotangents of `read` and `made`, None where none came, and what each pullback of the plan gives.

        Args:
            plan: the operators to pull back, the last one first, by their place in the block.
            values: of `read` and `made`.
            cotangents: of the same, as far as they are known.
        """
        cotangents, pulled = list(cotangents), []
        for i, pullback in plan:
            op = self.operators[i]
            given = [filled(self.get(s, cotangents), shape) for s, shape in zip(op.results, op.shapes, strict=True)]
            pulled.append(_apart(pullback.program([self.get(s, values) for s in op.operands], given)))
            for slot, a, linked in zip(op.operands, pulled[-1], pullback.linked, strict=True):
                if linked:
                    place = self._places[slot]
                    cotangents[place] = a if cotangents[place] is None else cotangents[place] + a
        return cotangents, pulled


def blocks(listing: Listing, most_bytes: int | None = None) -> tuple[Block, ...]:
    """A listing's operators in blocks, whose length is a multiple of the period at which operators repeat.

    Args:
        listing: the operators.
        most_bytes: that the results of one block may take, where it has more than one operator.
    """
    count, period = len(listing.operators), _period(listing.operators)
    length = period * (LONGEST // period)
    sizes = np.array([op.bytes for op in listing.operators])
    heaviest = lambda length: max((sizes[i : i + length].sum() for i in range(0, count, length)), default=0)
    while most_bytes is not None and length > 1 and heaviest(length) > most_bytes:
        length //= 2
    return tuple(Block(listing, start, min(start + length, count)) for start in range(0, count, length))


def _period(operators: Sequence[Operator]) -> int:
    """The shortest distance at which most operators repeat; 1 where there is none."""
    if len(operators) <= LONGEST:
        return 1
    numbers: dict[Hashable, int] = {}
    kinds = np.array([numbers.setdefault(op.key, len(numbers)) for op in operators])
    same = (p for p in range(1, LONGEST + 1) if np.mean(kinds[:-p] == kinds[p:]) >= PERIODIC)
    return next(same, 1)


def compiled(programs: dict[Hashable, Any], key: Hashable, f: Callable[..., Any]) -> Callable[..., Any]:
    """f compiled, once for each key. A program that runs a few times is compiled in a hurry."""
    if key not in programs:
        quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        programs[key] = jax.jit(f, compiler_options=quick)
    return programs[key]


def filled(cotangent: Any, shape: jax.ShapeDtypeStruct) -> Any:
    """A cotangent of this shape: zeros where none came, None where it has none."""
    if not moves(shape):
        return None
    return jnp.zeros(shape.shape, shape.dtype) if cotangent is None else cotangent


def _apart(results: Sequence[Any]) -> list[Any]:
    """The same numbers, which the compiler may not look behind."""
    return [jax.lax.optimization_barrier(a) if a is not None and moves(a) else a for a in results]


def _literal_key(value: Any) -> Hashable:
    return ("literal", np.asarray(value).tobytes(), str(jnp.result_type(value)), np.shape(value))

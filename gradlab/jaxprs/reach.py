"""Where a program's inputs get to: the operators that they move, and the rules and loops on their way."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.extend import core

from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, called, jaxpr_of, moves, programs, scan_counts

_RULES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_JAX = str(Path(jax.__file__).parent) + os.sep


@dataclass(frozen=True)
class Reach:
    """What depends on the inputs, through numbers that have a tangent space.

    Attributes:
        operators: their names, those of inner programs included.
        rules: the functions with a rule of their own that is not JAX's.
        steps: of the longest scan that they enter, with the steps of those that hold it multiplied; 0 for none.
    """

    operators: frozenset[str]
    rules: tuple[str, ...]
    steps: int


def reach(program: Traced) -> Reach:
    """Where the inputs of a program get to.

    >>> from gradlab.jaxprs import trace
    >>> found = reach(trace(lambda x: jax.lax.scan(lambda c, _: (c * x, None), jax.numpy.sin(2.0), length=3)[0], 1.0))
    >>> sorted(found.operators), found.rules, found.steps
    (['mul', 'scan'], (), 3)
    """
    walk = _Walk()
    walk.program(program.closed, [moves(v.aval) for v in jaxpr_of(program.closed).invars])
    return Reach(frozenset(walk.operators), tuple(dict.fromkeys(walk.rules)), walk.steps)


def is_of_jax(closed: Any) -> bool:
    """Whether the function that a program was traced from is JAX's own."""
    return _is_of_jax(getattr(jaxpr_of(closed), "debug_info", None))


def _is_of_jax(info: Any) -> bool:
    _, _, place = str(getattr(info, "func_src_info", "")).rpartition(" at ")
    return place.startswith(_JAX)


@dataclass
class _Walk:
    """One pass over a program and the programs in it, with what it has found so far."""

    operators: set[str] = field(default_factory=set)
    rules: list[str] = field(default_factory=list)
    steps: int = 0
    around: int = 1

    def program(self, closed: Any, moved: list[bool]) -> list[bool]:
        """Which results of a program depend on its operands that move."""
        jaxpr = jaxpr_of(closed)
        known = {v for v, flag in zip(jaxpr.invars, moved, strict=True) if flag}
        read = lambda atom: not isinstance(atom, core.Literal) and atom in known
        for eqn in jaxpr.eqns:
            operands = [read(v) for v in eqn.invars]
            if any(operands):
                results = self.operator(eqn, operands)
                known.update(v for v, flag in zip(eqn.outvars, results, strict=True) if flag)
        return [read(v) for v in jaxpr.outvars]

    def operator(self, eqn: Any, moved: list[bool]) -> list[bool]:
        name = eqn.primitive.name
        self.operators.add(name)
        if name == "scan":
            return self.scan(eqn, moved)
        if name in CALLS and name not in _RULES:
            return self.program(called(eqn), moved)
        self.rules += _foreign(eqn)
        self.operators.update(inner.primitive.name for held in programs(eqn) for inner in _all(held))
        return [name != "stop_gradient" and moves(v.aval) for v in eqn.outvars]

    def scan(self, eqn: Any, moved: list[bool]) -> list[bool]:
        consts, count = scan_counts(eqn)
        outside, self.around = self.around, self.around * eqn.params["length"]
        self.steps = max(self.steps, self.around)
        carry = moved[consts : consts + count]
        while True:
            results = self.program(eqn.params["jaxpr"], [*moved[:consts], *carry, *moved[consts + count :]])
            wider = [before or after for before, after in zip(carry, results[:count], strict=True)]
            if wider == carry:
                break
            carry = wider
        self.around = outside
        return [*carry, *results[count:]]


def _all(closed: Any) -> Iterator[Any]:
    """Every operator of a program, those of inner programs included."""
    for eqn in jaxpr_of(closed).eqns:
        yield eqn
        for held in programs(eqn):
            yield from _all(held)


def _foreign(eqn: Any) -> list[str]:
    """The names of the functions whose rule is not JAX's, in an operator and in the programs that it holds."""
    found = []
    for inner in (eqn, *(inner for held in programs(eqn) for inner in _all(held))):
        if inner.primitive.name in _RULES:
            info = getattr(jaxpr_of(called(inner)), "debug_info", None)
            # A rule that a user gives to one of JAX's functions says where it is from.
            rule = getattr(inner.params.get("jvp_jaxpr_fun"), "debug_info", None)
            if not (_is_of_jax(info) and _is_of_jax(rule)):
                found.append(str(getattr(info, "func_name", "") or inner.primitive.name))
    return found

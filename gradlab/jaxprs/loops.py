"""Loops at concrete operands: the values at any iteration, and the cotangents that come back to it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradlab.jaxprs.reading import jaxpr_of, moves, scan_counts

Arrays = list[Any]


@dataclass(frozen=True, eq=False)
class Loop:
    """A `scan`, or a `while_loop` whose number of iterations is known by now.

    Attributes:
        body: the program of one iteration, `[*constants, *carry, *x] -> [*carry, *y]`.
        constants, carry, xs: the operands; xs have the iterations as their first axis.
        length: how many iterations.
        reverse: whether the last x comes first.
    """

    body: Any
    constants: Arrays
    carry: Arrays
    xs: Arrays
    length: int
    reverse: bool = False

    def step(self, constants: Arrays, carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        """One iteration: the carry after it, and its outputs."""
        results = core.jaxpr_as_fun(self.body)(*constants, *carry, *x)
        return list(results[: len(carry)]), list(results[len(carry) :])

    def run(self, constants: Arrays, carry: Arrays, xs: Arrays) -> Arrays:
        """The whole loop, as a scan, which has a reverse mode."""
        body = lambda carry, x: self.step(constants, carry, x)
        last, ys = jax.lax.scan(body, carry, xs, length=self.length, reverse=self.reverse)
        return [*last, *ys]

    def iteration(self, k: int, states: Arrays) -> Arrays:
        """The operands of the body at the k-th iteration that is run, from the carries before each."""
        index = self.length - 1 - k if self.reverse else k
        return [*self.constants, *(s[k] for s in states), *(x[index] for x in self.xs)]


def loop_of(eqn: Any, operands: Arrays) -> Loop | None:
    """The loop that an operator is at these operands; None where it is none."""
    if eqn.primitive.name == "scan":
        fixed, carried = scan_counts(eqn)
        split = operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]
        return Loop(eqn.params["jaxpr"], *split, eqn.params["length"], eqn.params["reverse"])
    if eqn.primitive.name == "while":
        tests, bodies = while_constants(eqn)
        tested, constants, carry = operands[:tests], operands[tests : tests + bodies], operands[tests + bodies :]
        return Loop(eqn.params["body_jaxpr"], constants, carry, [], _trips(eqn, tested, constants, carry))
    return None


def while_constants(eqn: Any) -> tuple[int, int]:
    """How many operands of a `while` belong to its condition alone, and how many to its body alone."""
    total, carried = len(eqn.invars), len(eqn.outvars)
    tested = len(jaxpr_of(eqn.params["cond_jaxpr"]).invars) - carried
    return tested, total - carried - tested


def _trips(eqn: Any, tested: Arrays, fixed: Arrays, carry: Arrays) -> int:
    goes_on, body = (core.jaxpr_as_fun(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    _, count = jax.lax.while_loop(
        lambda state: goes_on(*tested, *state[0])[0],
        lambda state: (list(body(*fixed, *state[0])), state[1] + 1),
        (carry, 0),
    )
    return int(count)


@dataclass(frozen=True, eq=False)
class Unrolled:
    """What every iteration of a loop saw, stacked along a first axis in the order in which they are run.

    Attributes:
        states: the carries before each iteration.
        ys: its outputs.
        cotangents: of the carries after it, and of its outputs, `[*carry, *y]`; None where there is no derivative.
        pulled: of its operands, `[*constants, *carry, *x]`, alike.
    """

    states: Arrays
    ys: Arrays
    cotangents: Arrays
    pulled: Arrays


def unrolled(loop: Loop, cotangents: Arrays | None) -> Unrolled:
    """Run a loop forward, and backward where cotangents of its results are given (None for those without one)."""
    states, ys = jax.jit(lambda c, s, x: _forward(loop, c, s, x))(loop.constants, loop.carry, loop.xs)
    if cotangents is None:
        return Unrolled(states, ys, [], [])
    given, pulled = jax.jit(lambda *operands: _backward(loop, *operands))(
        loop.constants, states, _ordered(loop, loop.xs), *_seeds(loop, ys, cotangents)
    )
    return Unrolled(states, ys, given, pulled)


def _ordered(loop: Loop, stacked: Arrays) -> Arrays:
    """Arrays of the user's order in the order of execution, or back."""
    return [s[::-1] for s in stacked] if loop.reverse else stacked


def _forward(loop: Loop, constants: Arrays, carry: Arrays, xs: Arrays) -> tuple[Arrays, Arrays]:
    def body(carry: Arrays, x: Arrays) -> tuple[Arrays, Any]:
        after, y = loop.step(constants, carry, x)
        return after, (carry, y)

    _, (states, ys) = jax.lax.scan(body, carry, _ordered(loop, xs), length=loop.length)
    return states, ys


def _seeds(loop: Loop, ys: Arrays, cotangents: Arrays) -> tuple[Arrays, Arrays]:
    """Cotangents of the last carry and of the stacked outputs, in the order of execution; zeros for those not given."""
    count = len(loop.carry)
    zero = lambda w, like: (jnp.zeros_like(like) if w is None else w) if moves(like) else None
    carried = [zero(w, s) for w, s in zip(cotangents[:count], loop.carry, strict=True)]
    stacked = [None if w is None else w[::-1] if loop.reverse else w for w in cotangents[count:]]
    return carried, [zero(w, y) for w, y in zip(stacked, ys, strict=True)]


def _backward(
    loop: Loop, constants: Arrays, states: Arrays, xs: Arrays, carried: Arrays, outputs: Arrays
) -> tuple[Arrays, Arrays]:
    count = len(loop.carry)

    def body(carried: Arrays, one: Any) -> tuple[Arrays, Any]:
        carry, x, outputs = one
        given = [*carried, *outputs]
        pulled = pullback(lambda *a: core.jaxpr_as_fun(loop.body)(*a), [*constants, *carry, *x], given)
        return pulled[len(constants) : len(constants) + count], (given, pulled)

    _, (given, pulled) = jax.lax.scan(body, carried, (states, xs, outputs), length=loop.length, reverse=True)
    return given, pulled


def pullback(f: Callable[..., Any], operands: Arrays, cotangents: Arrays, wanted: tuple[bool, ...] = ()) -> Arrays:
    """Cotangents of f's operands from those of its results; None for what has no tangent space, or is not wanted.

    Args:
        f: flat operands to a flat sequence of results.
        operands: where.
        cotangents: of the results, None for those that have none.
        wanted: which operands, all of them where it is left out.
    """
    places = [i for i, a in enumerate(operands) if moves(a) and (not wanted or wanted[i])]
    given = [i for i, w in enumerate(cotangents) if w is not None]

    def g(*moved: Any) -> Arrays:
        full = list(operands)
        for i, a in zip(places, moved, strict=True):
            full[i] = a
        results = f(*full)
        return [results[i] for i in given]

    found = jax.vjp(g, *(operands[i] for i in places))[1]([cotangents[i] for i in given])
    pulled = dict(zip(places, found, strict=True))
    return [pulled.get(i) for i in range(len(operands))]

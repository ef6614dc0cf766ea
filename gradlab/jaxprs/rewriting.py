"""The same program written anew: its loops in segments, their bodies under a policy, or its calls opened."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from gradlab.jaxprs.loops import Arrays, Loop, loop_of
from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reach import is_of_jax
from gradlab.jaxprs.reading import bound, called, jaxpr_of, programs
from gradlab.types import PyTree

# A shorter loop has nothing to gain from segments.
LEAST_STEPS = 4
# Calls that only name a program; opening them changes nothing.
_PLAIN = {"jit", "pjit", "closed_call", "core_call"}
_KEPT_LESS = {"checkpoint", "remat2"}
Step = Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]]
Rewrite = Callable[[Loop, Step, Any], Arrays]
Opens = Callable[[Any], bool]


def segmented(program: Traced, segment: int | None = None) -> Callable[..., PyTree]:
    """The same function, of which reverse mode keeps √n states where it kept n, and runs the rest once more.

    A `scan` of n steps becomes a scan of about √n segments, each a scan of about √n steps of which only the start is
    kept. While one segment is pulled back, its steps keep what they need. Scans inside scans are cut too, and then each
    level runs the inner steps once more. What has a rule of its own, a `while_loop` and a `cond` stay whole.

    Args:
        program: a traced function.
        segment: steps in a segment; None for about √n, and a divisor of n where one is near.

    Source: Griewank and Walther, Algorithm 799: revolve, ACM Transactions on Mathematical Software 26 (2000); Chen et
    al., Training deep nets with sublinear memory cost (2016).

    >>> from gradlab.jaxprs import trace
    >>> f = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=100)[0]
    >>> bool(jnp.isclose(jax.grad(segmented(trace(f, 1.0)))(1.0), jax.grad(f)(1.0)))
    True
    """
    return _rebuilt(program, partial(_in_segments, segment))


def with_bodies_under(program: Traced, policy: Callable[..., bool] | None) -> Callable[..., PyTree]:
    """The same function with the body of every `scan` under `jax.checkpoint`, which does not look into loops itself.

    Args:
        program: a traced function.
        policy: what to keep, as for `jax.checkpoint`; None for nothing.

    >>> from gradlab.jaxprs import trace
    >>> f = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=3)[0]
    >>> trace(with_bodies_under(trace(f, 1.0), None), 1.0).operators & {"checkpoint", "remat2"} != set()
    True
    """
    return _rebuilt(program, partial(_under, policy))


def opened(program: Traced, kept: Collection[str], most_steps: int) -> Callable[..., PyTree]:
    """The same function written out for an interpreter: no call and no short scan, but for rules of its own.

    Args:
        program: a traced function.
        kept: names of JAX's own functions that stay calls; another function of such a name is written out.
        most_steps: a longer scan stays one.

    >>> from gradlab.jaxprs import trace
    >>> step = jax.jit(lambda c, _: (jax.nn.sigmoid(c), None))
    >>> written = opened(trace(lambda x: jax.lax.scan(step, x, length=2)[0], 1.0), ["softplus"], 9)
    >>> trace(written, 1.0).operators
    frozenset({'logistic'})
    """
    opens = lambda eqn: (
        eqn.primitive.name in _KEPT_LESS
        or (eqn.primitive.name in _PLAIN and not (eqn.params.get("name") in kept and is_of_jax(called(eqn))))
    )
    return _rebuilt(program, partial(_unrolled, most_steps), opens, keeps_checkpoints=False)


def _rebuilt(
    program: Traced, rewrite: Rewrite, opens: Opens | None = None, *, keeps_checkpoints: bool = True
) -> Callable[..., PyTree]:
    replay = _Replay(rewrite, opens or _holds_scan, keeps_checkpoints)

    def f(*args: PyTree) -> PyTree:
        results = replay.program(program.closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(program.shape), results)

    return f


def _in_segments(segment: int | None, loop: Loop, step: Step, unroll: Any) -> Arrays:
    """The loop as a loop of segments; what is left over, fewer steps than a segment, is one more, run last."""
    size = segment or _segment(loop.length)
    run = partial(_scan, step, reverse=loop.reverse, unroll=unroll)
    if loop.length < LEAST_STEPS or size >= loop.length:
        return _as_scan(loop, step, unroll)
    count, left = divmod(loop.length, size)
    first = left if loop.reverse else 0
    grouped = [x[first : first + count * size].reshape(count, size, *x.shape[1:]) for x in loop.xs]
    # Inside a scan, the compiler cannot merge what is run again with the first run, so nothing has to prevent it.
    one = jax.checkpoint(partial(run, length=size), prevent_cse=False)
    carry, ys = _scan(one, loop.constants, loop.carry, grouped, count, reverse=loop.reverse, unroll=1)
    ys = [y.reshape(count * size, *y.shape[2:]) for y in ys]
    if left:
        rest = [x[:left] if loop.reverse else x[count * size :] for x in loop.xs]
        carry, ends = jax.checkpoint(partial(run, length=left))(loop.constants, carry, rest)
        order = (lambda y, end: (end, y)) if loop.reverse else (lambda y, end: (y, end))
        ys = [jnp.concatenate(order(y, end)) for y, end in zip(ys, ends, strict=True)]
    return [*carry, *ys]


def _under(policy: Callable[..., bool] | None, loop: Loop, step: Step, unroll: Any) -> Arrays:
    body = jax.checkpoint(step, policy=policy, prevent_cse=False)
    return _as_scan(loop, body, unroll)


def _scan(
    step: Step, constants: Arrays, carry: Arrays, xs: Arrays, length: int, *, reverse: bool, unroll: Any
) -> tuple[Arrays, Arrays]:
    body = lambda carry, x: step(constants, carry, x)
    return jax.lax.scan(body, carry, xs, length=length, reverse=reverse, unroll=unroll)


def _joined(results: tuple[Arrays, Arrays]) -> Arrays:
    return [*results[0], *results[1]]


def _segment(length: int) -> int:
    """About √length; a divisor of it where one is near, so that nothing is left over.

    >>> _segment(3600), _segment(1009)
    (60, 31)
    """
    root = isqrt(length)
    near = [size for size in range(root // 2 + 1, 2 * root) if length % size == 0]
    return min(near, key=lambda size: abs(size - root), default=root)


def _unrolled(most_steps: int, loop: Loop, step: Step, unroll: Any) -> Arrays:
    if not 0 < loop.length <= most_steps:
        return _as_scan(loop, step, unroll)
    carry, ys = loop.carry, []
    for i in range(loop.length)[:: -1 if loop.reverse else 1]:
        carry, y = step(loop.constants, carry, [jax.lax.index_in_dim(x, i, keepdims=False) for x in loop.xs])
        ys.append(y)
    columns = zip(*(ys[::-1] if loop.reverse else ys), strict=True)
    return [*carry, *(jnp.stack(column) for column in columns)]


def _as_scan(loop: Loop, step: Step, unroll: Any) -> Arrays:
    return _joined(_scan(step, loop.constants, loop.carry, loop.xs, loop.length, reverse=loop.reverse, unroll=unroll))


@dataclass(frozen=True)
class _Replay:
    """Runs a program operator by operator.

    Attributes:
        rewrite: what runs in place of a scan.
        opens: which calls are written out.
        keeps_checkpoints: whether a `checkpoint` that is written out stays one.
    """

    rewrite: Rewrite
    opens: Opens
    keeps_checkpoints: bool

    def program(self, closed: Any, operands: Sequence[Any]) -> Arrays:
        jaxpr = jaxpr_of(closed)
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *operands], strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]
        for eqn in jaxpr.eqns:
            values.update(zip(eqn.outvars, self.operator(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in jaxpr.outvars]

    def operator(self, eqn: Any, operands: Arrays) -> Arrays:
        if eqn.primitive.name == "scan":
            # A literal must have the dtype that the loop carries.
            pairs = zip(operands, eqn.invars, strict=True)
            loop = loop_of(eqn, [a if isinstance(a, jax.Array) else jnp.asarray(a, v.aval.dtype) for a, v in pairs])
            assert loop is not None
            return self.rewrite(loop, self.step(loop), eqn.params["unroll"])
        if not self.opens(eqn):
            return bound(eqn, operands)
        inner = lambda *a: self.program(called(eqn), a)
        if eqn.primitive.name in _KEPT_LESS and self.keeps_checkpoints:
            inner = jax.checkpoint(inner, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])
        return list(inner(*operands))

    def step(self, loop: Loop) -> Step:
        def step(constants: Arrays, carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
            results = self.program(loop.body, [*constants, *carry, *x])
            return results[: len(carry)], results[len(carry) :]

        return step


def _holds_scan(eqn: Any) -> bool:
    """Whether there is a loop to rewrite inside a call."""
    return eqn.primitive.name in _PLAIN | _KEPT_LESS and _has_scan(called(eqn))


def _has_scan(program: Any) -> bool:
    eqns = jaxpr_of(program).eqns
    return any(eqn.primitive.name == "scan" or any(map(_has_scan, programs(eqn))) for eqn in eqns)

"""The measurements of a check: f's values along directions, and its derivative in both modes, each compiled once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import finite
from gradlab.checking.flat import Array, Flat
from gradlab.errors import first_sentence
from gradlab.jaxprs import Traced, lacks_forward_rule, trace
from gradlab.mode.support import NO_FORWARD_RULE

# So many random cotangents, of which the last ones weigh all outputs alike, as a user's own do.
COTANGENTS, PLAIN = 7, 2
# The third is this combination of the first two: the pullback of a sum is the sum of the pullbacks.
COMBINED = (2.0, -3.0)
# A function of so few numbers is looked at along each of them alone.
FEW = 16
# Leaves are moved one by one up to this many, and in groups beyond.
MOST_GROUPS = 24
# A while_loop may not end far from where it is known to: the longest steps, of 1/4 and 1/16, are left out.
SKIPPED_WITH_LOOPS = 2


@dataclass(frozen=True)
class Directions:
    """Directions at the scale of the point.

    Attributes:
        v: shape `[D, n]`.
        groups: the rows that move one leaf alone, for each leaf.
        spans: where each of these leaves lies, alike.
        own: the rows whose steps are of each number's own size, `[D]`; in the others, numbers that are small beside
            the rest of their leaf take steps of a tenth of its size, which they need to show, and may not survive.
        whole: the first so many rows move whole leaves; the rest, single numbers.
    """

    v: Array
    groups: tuple[tuple[int, ...], ...]
    spans: tuple[slice, ...]
    own: Array
    whole: int


def directions(flat: Flat, random: np.random.Generator, count: int) -> Directions:
    """`count` directions over all leaves, two over each leaf alone, and each of a few numbers alone.

    All but the last are Gaussian, with the largest step equal to the size of the number that it moves.
    """
    parts = [np.asarray(flat.u[part.place], np.float64) for part in flat.inputs]
    scales = [np.concatenate([finite.scale(x, own=own) for x in parts]) for own in (True, False)]
    rows: list[Array] = []
    own: list[bool] = []
    groups = []

    def add(span: slice, times: int) -> tuple[int, ...]:
        for i in range(times):
            own.append(i % 2 == 0)
            rows.append(_drawn(flat.n, span, random) * scales[i % 2])
        return tuple(range(len(rows) - times, len(rows)))

    spans = _spans(flat)
    for span in spans:
        single = span.stop - span.start == 1
        groups.append(add(span, 1 if single else count if len(spans) == 1 else 2))
    if len(spans) > 1:
        add(slice(0, flat.n), count)
    whole = len(rows)
    if 1 < flat.n <= FEW:
        rows += list(np.diag(scales[0]))
        own += [True] * flat.n
    return Directions(np.stack(rows).astype(flat.u.dtype), tuple(groups), tuple(spans), np.array(own), whole)


def _spans(flat: Flat) -> list[slice]:
    """Where each leaf lies; neighbors together where there are many."""
    spans = [part.place for part in flat.inputs if part.place.stop > part.place.start]
    if len(spans) <= MOST_GROUPS:
        return spans
    bounds = np.array_split(np.arange(len(spans)), MOST_GROUPS)
    return [slice(spans[b[0]].start, spans[b[-1]].stop) for b in bounds]


def _drawn(n: int, span: slice, random: np.random.Generator) -> Array:
    v = np.zeros(n)
    z = random.normal(size=span.stop - span.start)
    v[span] = z / np.max(np.abs(z))
    return v


@dataclass(frozen=True)
class Measured:
    """What one run gives, host arrays in float64.

    Attributes:
        values: f along every direction, for `finite.slopes`, `[D, 1 + 2 steps, m]`.
        forward: J v for every direction, `[D, m]`; None where f has no forward mode.
        w: the cotangents, `[P, m]`: random ones that weigh each output by one over the size of its slopes, with a
            combination of two among them, and then `PLAIN` ones.
        reverse: Jᵀ w for every one, `[P, n]`; None where f has no reverse mode.
    """

    values: Array
    forward: Array | None
    w: Array
    reverse: Array | None


@dataclass(frozen=True)
class Probes:
    """One compiled program for all measurements, compiled when it is first run.

    Attributes:
        run: `(v, z, mask)` to `Measured`: directions `[D, n]`, random numbers `[P, m]` for the cotangents, and which
            outputs these may hold, `[m]`.
        missing: for each mode that f has no rules for the reason.
    """

    run: Callable[[Array, Array, Array], Measured]
    missing: dict[str, str]


def probes(flat: Flat, v: Array) -> Probes:
    """The program that measures a `Flat`: derivatives one at a time, as a user's own call takes them.

    Args:
        flat: the function.
        v: the directions, for their shape.
    """
    values = _values(flat, v)
    found = derivatives(flat, {"forward": v, "reverse": np.ones((COTANGENTS, flat.m))}, jax.lax.map)
    missing = {mode: reason for mode, reason in found.items() if isinstance(reason, str)}
    programs = {"values": values, **{mode: one for mode, one in found.items() if not isinstance(one, str)}}
    bodies = {name: program.hoisted() for name, program in programs.items()}

    def measure(constants: dict[str, list[Any]], u: jax.Array, v: jax.Array, z: jax.Array, mask: jax.Array) -> Any:
        run = lambda name, batch: bodies[name][0](constants[name], u, batch)
        values = run("values", v)
        w = _weighed(z, values) * mask
        derivative = lambda mode, batch: None if mode in missing else run(mode, batch)
        return values, derivative("forward", v), w, derivative("reverse", w)

    # The reference may be compiled in a hurry: it is the same program to rounding, and it runs once.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    compiled = jax.jit(measure, compiler_options=quick)
    constants = {name: constants for name, (_, constants) in bodies.items()}
    narrow = lambda a: jnp.asarray(a, flat.u.dtype)
    host = lambda tree: jax.tree.map(lambda a: np.asarray(a, np.float64), tree)
    run = lambda v, z, mask: Measured(*host(compiled(constants, flat.u, narrow(v), narrow(z), narrow(mask))))
    return Probes(run, missing)


def _values(flat: Flat, v: Array) -> Traced:
    """f along every direction, all steps at once where f can be batched."""
    skip = SKIPPED_WITH_LOOPS if "while" in flat.f.operators else 0

    def traced(batched: bool | None) -> Traced:
        along = lambda u, one: finite.along(flat.differenced(u), u, one, skip=skip, batched=batched)
        return trace(lambda u, v: jax.lax.map(lambda one: along(u, one), v), flat.u, v)

    try:
        return traced(False if flat.calls_host else None)
    except NotImplementedError:  # an operator without a batching rule
        return traced(False)


def derivatives(flat: Flat, batches: dict[str, Array], over: Callable) -> dict[str, Traced | str]:
    """J v and Jᵀ w over batches, traced; the reason where f lacks the rule.

    Args:
        flat: the function.
        batches: tangents `[R, n]` for `forward`, cotangents `[P, m]` for `reverse`, for their shapes.
        over: how a function of one is mapped over a batch.
    """
    singles = {
        "forward": lambda u, v: jax.jvp(flat.f, (u,), (v,))[1],
        "reverse": lambda u, w: jax.vjp(flat.f, u)[1](w)[0],
    }
    many = lambda u, batch: (jnp.broadcast_to(u, (len(batch), *u.shape)), batch)
    mapped = lambda single: lambda u, batch: over(lambda pair: single(*pair), many(u, batch))
    return {mode: _traced(mapped(singles[mode]), flat.u, batch) for mode, batch in batches.items()}


def _traced(f: Callable, u: Array, batch: Array) -> Traced | str:
    try:
        program = trace(f, u, batch.astype(u.dtype))
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        return first_sentence(error)
    return NO_FORWARD_RULE if lacks_forward_rule(program) else program


def _weighed(z: jax.Array, values: jax.Array) -> jax.Array:
    """The cotangents that random numbers z make: see `Measured.w`."""
    k = values.shape[1] // 2
    with_step = values[:, 1 : k + 1] - values[:, k + 1 :]
    steps = finite.STEPS[-k:, None] * 2
    slopes = jnp.nanmedian(jnp.abs(with_step / steps), axis=1).max(axis=0)
    weight = jnp.where((slopes > 0) & jnp.isfinite(slopes), 1 / slopes, 1)
    weight = jnp.where(jnp.isfinite(weight), weight, 1)
    w = z.at[:-PLAIN].multiply(weight / jnp.max(weight))
    first, second = COMBINED
    return w.at[2].set(first * w[0] + second * w[1])


def batched(flat: Flat, batches: dict[str, Array]) -> dict[str, Array]:
    """J v `[R, m]` and Jᵀ w `[P, n]` in one `vmap` each, over points and probes together, compiled as a user's own.

    Args:
        flat: the function.
        batches: tangents for `forward`, cotangents for `reverse`; a mode that f has no rules for is left out.
    """
    over = jax.lax.map if flat.calls_host else lambda g, pair: jax.vmap(g)(pair)
    batches = {mode: batch.astype(flat.u.dtype) for mode, batch in batches.items()}
    found = derivatives(flat, batches, over)
    bodies = {mode: one.hoisted() for mode, one in found.items() if not isinstance(one, str)}

    @jax.jit
    def run(constants: dict[str, list[Any]], u: jax.Array, batches: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {mode: body(constants[mode], u, batches[mode]) for mode, (body, _) in bodies.items()}

    constants = {mode: constants for mode, (_, constants) in bodies.items()}
    return {mode: np.asarray(a, np.float64) for mode, a in run(constants, flat.u, batches).items()}

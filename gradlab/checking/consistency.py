"""The same derivative once more: batched, eagerly, and in the precision that the user works in."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.checking.case import Case
from gradlab.checking.flat import Array, Flat, precision
from gradlab.checking.probes import PLAIN, batched
from gradlab.checking.result import Finding

# Below this share of the derivative, what the working precision loses is rounding.
LOST = 1e-2
# So many roundings of the value, or of the largest derivative by the same leaf, are no loss where little is left.
ROUNDINGS = 30
# Run eagerly, each operator is compiled on its own; with more kinds than this, compiled programs speak alone.
MOST_EAGER = 24


@dataclass(frozen=True)
class Repeat:
    """One mode's probes, to be taken once more.

    Attributes:
        mode: `forward` or `reverse`.
        batch: tangents of size one, or cotangents.
        units: by which a result is multiplied to be in the units of f: the length of each direction, `[R, 1]`, or the
            step of each number, `[n]`.
        exact: the result that was judged, in these units, `[R, m]` or `[P, n]`.
        parts: for each leaf the part of the result that belongs to it alone.
    """

    mode: str
    batch: Array
    units: Array
    exact: Array
    parts: tuple[tuple[slice, slice], ...]

    def losses(self, given: Array) -> Iterator[tuple[float, float, float]]:
        """The largest gap and the size of each probe, and the largest size among those of the same leaf."""
        gap, size = np.abs(given * self.units - self.exact), np.abs(self.exact)
        for part in self.parts:
            if gap[part].size:
                largest = float(size[part].max())
                yield from (
                    (float(g), float(s), largest) for g, s in zip(gap[part].max(1), size[part].max(1), strict=True)
                )


def again(case: Case, working: Flat) -> list[Finding]:
    """Whether the derivative in the working precision, batched and compiled, and eagerly, is the one that was judged.

    Args:
        case: judged, and right; in float64 where f can run so.
        working: f in the precision that the user gave.
    """
    repeats = list(_repeats(case))
    given = batched(working, {repeat.mode: repeat.batch for repeat in repeats})
    found: list[Finding] = []
    for repeat in repeats:
        if not found and repeat.mode in given:
            found = _compiled(case, working, repeat, given[repeat.mode])
            found = found or _eagerly(case, working, repeat)
    return found


def _repeats(case: Case) -> Iterator[Repeat]:
    directions, measured = case.directions, case.measured
    if measured.forward is not None:
        # A coordinate alone may be lost, and the derivative be right to rounding: it is judged by whole leaves.
        v = case.v[: directions.whole]
        length = np.abs(v).max(1, keepdims=True)
        rows = [slice(group[0], group[-1] + 1) for group in directions.groups]
        rows.append(slice(rows[-1].stop, len(v)))
        parts = tuple((part, slice(None)) for part in rows)
        yield Repeat("forward", v / length, length, measured.forward[: directions.whole], parts)
    if measured.reverse is not None:
        steps = np.abs(case.v[directions.own]).max(0)
        parts = tuple((slice(None), span) for span in directions.spans)
        yield Repeat("reverse", measured.w[-PLAIN:], steps, measured.reverse[-PLAIN:] * steps, parts)


def _compiled(case: Case, working: Flat, repeat: Repeat, given: Array) -> list[Finding]:
    mode, dtype = repeat.mode, str(working.dtype)
    if not np.isfinite(given).all():
        return [_overflow(case, working, mode)]
    error = _lost(case, repeat, given, _eps(working))
    if not error:
        return []
    with precision(case.flat):
        alike = batched(case.flat, {mode: repeat.batch})[mode]
    if _lost(case, repeat, alike, case.flat.eps):
        message = (
            f"{mode} mode gives another derivative under vmap than one at a time, off by {error:.1g} of its size. Look "
            "for a rule that sums or indexes over an axis, which vmap shifts, or a custom_vmap."
        )
        return [case.finding("wrong", "", mode, message, error)]
    message = (
        f"the derivative is right in float64, but in {dtype} it is off by {error:.1g} of its size. Look for a "
        "difference of large numbers (use log1p, expm1, logsumexp, a shifted mean), or compute that part in float64."
    )
    return [case.finding("precision", "", mode, message, error)]


def _overflow(case: Case, working: Flat, mode: str) -> Finding:
    dtype, value = str(working.dtype), np.asarray(jax.jit(working.f)(working.u), np.float64)
    if not np.isfinite(value).all():
        message = f"f itself is {value[~np.isfinite(value)][0]} in {dtype}, though finite in float64. Scale it."
        return case.finding("undecided", "", mode, message)
    message = (
        f"f and its derivative are finite in float64, but in {dtype} {mode} mode is not. "
        "Scale f, or rewrite the part that overflows (logsumexp, a shifted maximum, a smaller power)."
    )
    return case.finding("nan", "", mode, message)


def _eps(working: Flat) -> float:
    return max(float(jnp.finfo(working.dtype).eps), working.eps)


def _lost(case: Case, repeat: Repeat, given: Array, eps: float) -> float:
    """The largest relative loss of one probe that rounding does not explain; 0 where there is none."""
    value = float(np.abs(case.first.values[0, 0]).max())
    if repeat.mode == "reverse":
        value = float((np.abs(repeat.batch) @ np.abs(case.first.values[0, 0])).max())
    lost = [
        gap / size
        for gap, size, largest in repeat.losses(given)
        if gap > max(LOST, 10 * eps) * size
        and gap > ROUNDINGS * eps * largest
        and size > ROUNDINGS * case.flat.eps * value
    ]
    return max(lost, default=0.0)


def _eagerly(case: Case, working: Flat, repeat: Repeat) -> list[Finding]:
    """One probe without jit or vmap, where Python code of the user's runs in the derivative."""
    if not working.has_rules or len(working.f.operators) > MOST_EAGER:
        return []
    u, one = jnp.asarray(working.u), jnp.asarray(repeat.batch[0], working.u.dtype)
    if repeat.mode == "forward":
        single = jax.jvp(working.plain, (u,), (one,))[1]
    else:
        single = jax.vjp(working.plain, u)[1](one)[0]
    given = repeat.exact / np.where(repeat.units > 0, repeat.units, 1)
    given[0] = np.asarray(single, np.float64)
    error = _lost(case, repeat, given, _eps(working))
    if not error:
        return []
    message = (
        f"{repeat.mode} mode run eagerly differs from the same under jit and vmap by {error:.1g} of its size. "
        "Look for a rule that depends on a batch axis, or on whether a value is traced."
    )
    return [case.finding("wrong", "", repeat.mode, message, error)]

"""Directional derivatives from values alone, each with an estimate of its own error.

Independent of operators and modes: a reference that shared code with what it judges would prove nothing.

f is evaluated along x + t v at steps that fall by 4 from 1/4 to 2⁻⁴², in one batch. Differences at two steps differ by
truncation, which falls with the step, and by noise, which rises; extrapolation to step zero removes the first powers
of the truncation, and each entry of the extrapolation table brings its own error. The entry with the least is taken,
for each output alone, so no step size is chosen in advance.

Source: Ridders, Accurate computation of F'(x), Advances in Engineering Software 4 (1982); Moré and Wild, Estimating
derivatives of noisy simulations, ACM TOMS 38 (2012), for noise that is measured and not assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import trees
from gradlab.types import PyTree

Side = Literal["both", "right", "left"]

RATIO = 4.0
# Powers of two, so that x ± t v rounds as little as it can.
STEPS = 0.25 * RATIO ** -np.arange(21)
COLUMNS = 4  # of the extrapolation table; later ones amplify noise more than they remove truncation
NEIGHBORS = 3  # finer steps that a measured noise is taken from
SAFETY = 8.0
# Values that stop changing below some step are rounded, and not flat, where coarser steps agree on a slope this well.
AGREED = 1e-3
# An uncertainty above this share of both the slope and the values themselves says nothing about either.
SILENT = 0.1
MOST_VALUES = 2**22  # evaluated at once; larger functions are evaluated one step at a time


@dataclass(frozen=True)
class Estimate:
    """A derivative along one direction: `value` and `uncertainty`, host arrays of shape `[m]`.

    The true derivative is expected within `value ± uncertainty`; an uncertainty of infinity says that the values do not
    tell.
    """

    value: np.ndarray
    uncertainty: np.ndarray


@dataclass(frozen=True)
class Slopes:
    """The derivative from both sides, and the slopes to the right (t > 0) and to the left (t < 0) of the point."""

    both: Estimate
    right: Estimate
    left: Estimate

    @property
    def kink(self) -> np.ndarray:
        """Where the one-sided slopes differ beyond their uncertainties: booleans of shape `[m]`."""
        with np.errstate(invalid="ignore"):
            gap = np.abs(self.right.value - self.left.value)
            return gap > self.right.uncertainty + self.left.uncertainty

    @property
    def best(self) -> Estimate:
        """For each output the estimate with the least uncertainty: one-sided where the domain ends."""
        choices = (self.both, self.right, self.left)
        which = np.argmin([e.uncertainty for e in choices], axis=0)
        pick = lambda name: np.take_along_axis(np.stack([getattr(e, name) for e in choices]), which[None], 0)[0]
        return Estimate(pick("value"), pick("uncertainty"))


def directional(f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree, *, eps: float | None = None) -> Slopes:
    """The derivative of f at x along v, from values of f alone.

    Args:
        f: a function of one pytree of real arrays; n numbers in, m out over all leaves (a complex one counts twice).
        x: the point.
        v: the direction, of x's structure and shapes. A step of 1 along it should be of x's own size: see `scaled`.
        eps: the relative rounding of f's values; that of the coarsest output where None.

    Returns:
        Slopes with arrays of shape `[m]`. Where f is smooth in float64 the uncertainty is near 1e-10 of the value.

    Source: Ridders (1982).

    >>> with jax.enable_x64(True):
    ...     slope = directional(jnp.exp, jnp.float64(1.0), jnp.float64(1.0)).best
    >>> bool(abs(slope.value[0] - np.e) <= slope.uncertainty[0] < 1e-9)
    True
    """
    values = np.asarray(jax.jit(lambda x, v: along(f, x, v))(x, v))
    return slopes(values, float(np.finfo(values.dtype).eps) if eps is None else eps)


def along(f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree) -> jax.Array:
    """The values of f at x, x + h v and x − h v for every step h: shape `[1 + 2 steps, m]`, ready for `slopes`.

    It can be traced, so a caller may put it into a program of its own.
    """
    dtype = jnp.result_type(*jax.tree.leaves(x))
    t = jnp.asarray(np.concatenate([[0.0], STEPS, -STEPS]), jnp.finfo(dtype).dtype)
    shift = lambda a, b, t: (a + t.astype(jnp.result_type(a)) * b).astype(jnp.result_type(a))
    at = lambda t: _numbers(f(jax.tree.map(lambda a, b: shift(a, b, t), x, v)))
    size = trees.size(x) + trees.size(jax.eval_shape(f, x))
    return jax.vmap(at)(t) if size * t.size <= MOST_VALUES else jax.lax.map(at, t)


def _numbers(y: PyTree) -> jax.Array:
    """All floating outputs as real numbers, shape `[m]`."""
    parts: list[jax.Array] = []
    for leaf in jax.tree.leaves(y):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            parts += [jnp.ravel(leaf.real), jnp.ravel(leaf.imag)]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            parts.append(jnp.ravel(leaf))
    return jnp.concatenate(parts)


def scaled(x: PyTree, v: PyTree) -> PyTree:
    """v at x's own scale: each number times the size of the number of x that it moves.

    A number much smaller than its leaf counts as a tenth of the leaf's root mean square, and a leaf of zeros as 1.

    >>> [round(float(s), 1) for s in scaled(jnp.array([100.0, 0.0]), jnp.ones(2))]
    [100.0, 7.1]
    """

    def leaf(a: Any, b: Any) -> Any:
        largest = jnp.max(jnp.abs(a), initial=0)
        one = jnp.where(largest > 0, largest, 1)
        rms = one * jnp.sqrt(jnp.mean(jnp.abs(a / one) ** 2)) if a.size else one
        return b * jnp.where(largest > 0, jnp.maximum(jnp.abs(a), rms / 10), 1).astype(b.dtype)

    return jax.tree.map(lambda a, b: leaf(jnp.asarray(a), jnp.asarray(b)), x, v)


def slopes(values: np.ndarray, eps: float) -> Slopes:
    """The slopes that the values of `along` tell, on the host.

    Args:
        values: shape `[1 + 2 steps, m]`: at 0, at the steps, at minus the steps.
        eps: the relative rounding of the values.
    """
    values = np.asarray(values, np.float64)
    k = len(STEPS)
    middle, plus, minus = values[0], values[1 : k + 1], values[k + 1 :]
    h = STEPS[:, None]
    with np.errstate(all="ignore"):
        quotients = {"both": (plus - minus) / (2 * h), "right": (plus - middle) / h, "left": (middle - minus) / h}
        right, left = np.maximum(np.abs(middle), np.abs(plus)), np.maximum(np.abs(middle), np.abs(minus))
        size = {"right": right, "left": left, "both": np.maximum(right, left)}
        still = {"right": plus == middle, "left": minus == middle}
        still["both"] = still["right"] & still["left"]
        power = {"both": 2, "right": 1, "left": 1}
        found = {side: _estimate(q, size[side], eps, still[side], power[side]) for side, q in quotients.items()}
    # A symmetric difference hides what happens on either side, such as the cusp of a root of |x|.
    known = np.isfinite(found["right"].uncertainty) & np.isfinite(found["left"].uncertainty)
    both = Estimate(found["both"].value, np.where(known, found["both"].uncertainty, np.inf))
    return Slopes(both, found["right"], found["left"])


def _estimate(quotients: np.ndarray, size: np.ndarray, eps: float, still: np.ndarray, power: int) -> Estimate:
    """The entry of the extrapolation table with the least error, for each output.

    Args:
        quotients: difference quotients, `[steps, m]`.
        size: the largest of the values that they came from, `[steps, m]`.
        eps: the relative rounding of those values, and of the steps' ends.
        still: where a step changed nothing, `[steps, m]`.
        power: the truncation's powers of the step: 1 for 1, 2, 3, …; 2 for 2, 4, 6, ….
    """
    rounding = eps * (size + np.abs(quotients))
    table, error = _table(quotients, rounding, power)
    value, uncertainty = _least(table, error)
    grows = _grows(quotients) & ~(uncertainty <= AGREED * np.abs(value))
    value, uncertainty = np.where(grows, np.nan, value), np.where(grows, np.inf, uncertainty)
    # From the step `first` on, nothing changes any more: either f is flat, or its values are too coarse to show it.
    first = len(still) - np.cumprod(still[::-1], axis=0).sum(0)
    resolved = np.arange(len(still))[:, None] < first
    coarse, doubt = _least(table, np.where(resolved, error, np.inf))
    rounded = doubt <= AGREED * np.abs(coarse)
    flat = rounding[-1] / STEPS[np.minimum(first, len(still) - 1)]
    ends = first < len(still)
    value = np.where(ends, np.where(rounded, coarse, 0.0), value)
    uncertainty = SAFETY * np.where(ends, np.where(rounded, doubt, flat), uncertainty)
    silent = uncertainty > SILENT * np.fmax(np.abs(value), np.nanmax(size, axis=0, initial=0.0))
    return Estimate(value, np.where(silent, np.inf, uncertainty))


def _grows(quotients: np.ndarray) -> np.ndarray:
    """Where the quotient rises steadily as the step falls: a jump, or a slope without bound, as of a root at zero."""
    fine = quotients[-len(quotients) // 2 :]
    ratio = fine[1:] / fine[:-1]
    return np.all((ratio > 1.2) & (ratio < RATIO * 1.1), axis=0)


def _table(quotients: np.ndarray, rounding: np.ndarray, power: int) -> tuple[np.ndarray, np.ndarray]:
    """The extrapolation table and the error of each entry, both `[columns, steps, m]`; infinity where there is none."""
    h = STEPS[:, None]
    columns, errors = [quotients], []
    for j in range(1, COLUMNS + 1):
        last = columns[-1]
        step = np.full_like(last, np.nan)
        step[1:] = last[1:] + np.diff(last, axis=0) / (RATIO ** (power * j) - 1)
        columns.append(step)
    for j, column in enumerate(columns):
        previous = columns[max(j - 1, 0)]
        coarser = np.concatenate([np.full_like(column[:1], np.nan), previous[:-1]])
        truncation = np.maximum(np.abs(column - previous), np.abs(column - coarser))
        errors.append(truncation + _noise(column, h) + rounding / h)
    error = np.stack(errors)
    return np.stack(columns), np.where(np.isfinite(error), error, np.inf)


def _noise(column: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The noise at each step, from how far the next finer steps jump; noise over the step rises as the step falls."""
    jumps = np.abs(np.diff(column, axis=0)) * h[1:]
    worst = np.zeros_like(column)
    for i in range(NEIGHBORS):
        part = jumps[i:]
        worst[: len(part)] = np.fmax(worst[: len(part)], part)
    return worst / h


def _least(table: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat_error, flat = error.reshape(-1, error.shape[-1]), table.reshape(-1, table.shape[-1])
    best = flat_error.argmin(0)[None]
    least = np.take_along_axis(flat_error, best, 0)[0]
    value = np.take_along_axis(flat, best, 0)[0]
    return np.where(np.isfinite(least), value, np.nan), least

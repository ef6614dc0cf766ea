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
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import trees
from gradlab.jaxprs import trace
from gradlab.types import PyTree

RATIO = 4.0
# Powers of two, so that x ± t v rounds as little as it can.
STEPS = 0.25 * RATIO ** -np.arange(21)
COLUMNS = 4  # of the extrapolation table; later ones amplify noise more than they remove truncation
NEIGHBORS = 3  # finer steps that a measured noise is taken from
# Second differences above this share of the values are f's own oscillations, and no noise.
ROUGH = 1e-5
# What a value is computed from rounds as well: the slope of a minimum of value 0 is known to so many roundings of the
# slopes close by, and no better.
CURVED = 1e3
EVENTS = 2  # how often second differences must fail to fall before that is noise
SAFETY = 8.0
JUMP = 10.0  # roundings between the point and its closest neighbor
FARTHEST = 1e4
# Values that stop changing below some step are rounded, and not flat, where coarser steps agree on a slope this well.
AGREED = 1e-3
# An uncertainty above this share of both the slope and the values themselves says nothing about either.
SILENT = 0.5
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
    """The derivative from both sides, and the slopes to the right (t > 0) and to the left (t < 0) of the point.

    `ends` says where f is finite on one side only, booleans of shape `[m]`: there one slope is the derivative. `noise`
    is how much the values jump about from step to step, `[m]`, 0 where they do not.
    """

    both: Estimate
    right: Estimate
    left: Estimate
    ends: np.ndarray
    noise: np.ndarray

    def reshaped(self, shape: tuple[int, ...]) -> "Slopes":
        """The same slopes, each array in another shape."""
        return self._each(lambda a: a.reshape(shape))

    def rows(self, chosen: slice) -> "Slopes":
        """Some of them, along the first axis."""
        return self._each(lambda a: a[chosen])

    def scaled(self, factor: float) -> "Slopes":
        """The slopes along a direction that is so many times as long."""
        one = lambda e: Estimate(e.value * factor, e.uncertainty * factor)
        return replace(self, both=one(self.both), right=one(self.right), left=one(self.left))

    def _each(self, g: Callable[[np.ndarray], np.ndarray]) -> "Slopes":
        one = lambda e: Estimate(g(e.value), g(e.uncertainty))
        return Slopes(one(self.both), one(self.right), one(self.left), g(self.ends), g(self.noise))

    @property
    def kink(self) -> np.ndarray:
        """Where the one-sided slopes differ beyond their uncertainties: booleans of shape `[m]`."""
        with np.errstate(invalid="ignore"):
            gap = np.abs(self.right.value - self.left.value)
            return gap > self.right.uncertainty + self.left.uncertainty

    @property
    def best(self) -> Estimate:
        """For each output the derivative: from both sides, or from one where the domain ends."""
        right = self.ends & (self.right.uncertainty < self.left.uncertainty)
        left, sides = self.ends & ~right, (self.right, self.left)
        pick = lambda name: np.select([right, left], [getattr(e, name) for e in sides], getattr(self.both, name))
        return Estimate(pick("value"), pick("uncertainty"))


def directional(f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree, *, eps: float | None = None) -> Slopes:
    """The derivative of f at x along v, from values of f alone.

    Args:
        f: a function of one pytree of real arrays; n numbers in, m out over all leaves (a complex one counts twice).
        x: the point.
        v: the direction, of x's structure and shapes. A step of 1 along it should be of x's own size: see `scale`.
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
    rounding = float(np.finfo(values.dtype).eps) if eps is None else eps
    return slopes(values, rounding, pieces=trace(f, x).has_pieces)


def along(
    f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree, *, skip: int = 0, batched: bool | None = None
) -> jax.Array:
    """The values of f at x, x + h v and x − h v for every step h: shape `[1 + 2 steps, m]`, ready for `slopes`.

    It can be traced, so a caller may put it into a program of its own.

    Args:
        f, x, v: as for `directional`.
        skip: leave out so many of the longest steps, where f may not be evaluated far from x.
        batched: evaluate all steps at once, or one after another; by their size where None.
    """
    dtype = jnp.result_type(*jax.tree.leaves(x))
    t = jnp.asarray(np.concatenate([[0.0], STEPS[skip:], -STEPS[skip:]]), jnp.finfo(dtype).dtype)
    shift = lambda a, b, t: (a + t.astype(jnp.result_type(a)) * b).astype(jnp.result_type(a))
    at = lambda t: numbers(f(jax.tree.map(lambda a, b: shift(a, b, t), x, v)))
    if batched is None:
        batched = (trees.size(x) + trees.size(jax.eval_shape(f, x))) * t.size <= MOST_VALUES
    return jax.vmap(at)(t) if batched else jax.lax.map(at, t)


def numbers(y: PyTree) -> jax.Array:
    """All floating outputs as real numbers, shape `[m]`."""
    parts: list[jax.Array] = []
    for leaf in map(jnp.asarray, jax.tree.leaves(y)):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            parts += [jnp.ravel(leaf.real), jnp.ravel(leaf.imag)]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            parts.append(jnp.ravel(leaf))
    return jnp.concatenate(parts)


def scale(x: np.ndarray, *, own: bool = True) -> np.ndarray:
    """The size of a step for each number of a leaf: its own; for a zero, a tenth of the root mean square, or 1.

    Args:
        x: a leaf.
        own: else numbers much smaller than their leaf take a step of a tenth of its root mean square, too, but of no
            more than `FARTHEST` of their own, so that the finest steps stay well below them.

    >>> x = np.array([100.0, 0.0, 1.0])
    >>> scale(x).round(1).tolist(), scale(x, own=False).round(1).tolist(), scale(np.zeros(2)).tolist()
    ([100.0, 5.8, 1.0], [100.0, 5.8, 5.8], [1.0, 1.0])
    """
    largest = np.max(np.abs(x), initial=0.0)
    if not largest > 0:
        return np.ones_like(x)
    usual = largest * np.sqrt(np.mean((x / largest) ** 2)) / 10
    size = np.where(x == 0, usual, np.abs(x))
    return size if own else np.minimum(np.maximum(size, usual), FARTHEST * size)


def slopes(values: np.ndarray, eps: float, *, pieces: bool = False) -> Slopes:
    """The slopes that the values of `along` tell, on the host.

    Args:
        values: shape `[1 + 2 steps, m]`: at 0, at the steps, at minus the steps.
        eps: the relative rounding of the values.
        pieces: f chooses or rounds on purpose (max, where, floor), so that it may be flat where values do not change.
    """
    values = np.asarray(values, np.float64)
    k = len(values) // 2
    middle, plus, minus = values[0], values[1 : k + 1], values[k + 1 :]
    h = STEPS[-k:, None]
    with np.errstate(all="ignore"):
        second = np.abs(plus - 2 * middle + minus)
        right, left = np.maximum(np.abs(middle), np.abs(plus)), np.maximum(np.abs(middle), np.abs(minus))
        noise = _noise_floor(second, np.maximum(right, left))
        curvature = np.sort(np.where(np.isfinite(second), second / h**2, np.inf), axis=0)[1]
        least = np.where(np.isfinite(curvature), CURVED * eps * curvature, 0.0)
        sides = {
            "both": Differences(
                (plus - minus) / (2 * h), np.maximum(right, left), (plus == middle) & (minus == middle), 2
            ),
            "right": Differences((plus - middle) / h, right, plus == middle, 1),
            "left": Differences((middle - minus) / h, left, minus == middle, 1),
        }
        found = {name: _estimate(side, eps, noise, least, pieces) for name, side in sides.items()}
    ends = np.isfinite(plus[-1]) != np.isfinite(minus[-1])
    return Slopes(_from_both_sides(**found), found["right"], found["left"], ends, noise)


def _from_both_sides(both: Estimate, right: Estimate, left: Estimate) -> Estimate:
    """The symmetric estimate, held to the one-sided ones.

    A symmetric difference hides what happens on either side, such as the cusp of a root of |x|, or a pole close by that
    long steps reach across: there the mean of the sides is taken.
    """
    with np.errstate(invalid="ignore"):
        mean, doubt = (right.value + left.value) / 2, right.uncertainty + left.uncertainty
        agrees = np.abs(both.value - mean) <= both.uncertainty + doubt
    uncertainty = np.where(np.isfinite(doubt), np.where(agrees, both.uncertainty, doubt), np.inf)
    return Estimate(np.where(agrees | ~np.isfinite(doubt), both.value, mean), uncertainty)


def remainder_order(values: np.ndarray, slope: np.ndarray, eps: float) -> np.ndarray:
    """The power of h that f(x + h v) − f(x) − h·slope falls by: 2 (or more) for the derivative, 1 for another slope.

    A second opinion on a slope, from the same values but without extrapolation: the median of the powers seen between
    the three finest pairs of steps at which the remainder stands above the rounding of the values.

    Args:
        values: from `along`, `[1 + 2 steps, m]`.
        slope: what is held against them, `[m]`.
        eps: the relative rounding of the values.

    Returns:
        Shape `[m]`; NaN where no remainder stands above the rounding.

    Source: the Taylor test; Farrell, Ham, Funke and Rognes, SIAM J. Sci. Comput. 35 (2013), section 5.

    >>> t = np.concatenate([[0.0], STEPS, -STEPS])[:, None]
    >>> remainder_order(np.exp(t), np.ones(1), 1e-16).round(1)
    array([2.])
    >>> remainder_order(np.exp(t), np.full(1, 1.1), 1e-16).round(1)
    array([1.])
    """
    values = np.asarray(values, np.float64)
    k = len(values) // 2
    h = STEPS[-k:, None]
    with np.errstate(all="ignore"):
        remainder = np.abs(values[1 : k + 1] - values[0] - h * slope)
        size = np.abs(values[1 : k + 1]) + np.abs(values[0]) + np.abs(h * slope)
        powers = np.log(remainder[:-1] / remainder[1:]) / np.log(RATIO)
        seen = (remainder[1:] > 100 * eps * size[1:]) & np.isfinite(powers)
    return np.array([_median_of_last(powers[:, i], seen[:, i]) for i in range(powers.shape[1])])


def _median_of_last(powers: np.ndarray, seen: np.ndarray, count: int = 3) -> float:
    finest = powers[seen][-count:]
    return float(np.median(finest)) if finest.size else float("nan")


@dataclass(frozen=True)
class Differences:
    """Difference quotients on one side, or on both, arrays of shape `[steps, m]`.

    Attributes:
        quotients: of the differences and the steps.
        size: the largest of the values that they came from.
        still: where a step changed nothing.
        power: the truncation's powers of the step: 1 for 1, 2, 3, …; 2 for 2, 4, 6, ….
    """

    quotients: np.ndarray
    size: np.ndarray
    still: np.ndarray
    power: int


def _estimate(side: Differences, eps: float, noise: np.ndarray, least: np.ndarray, pieces: bool) -> Estimate:
    """The entry of the extrapolation table with the least error, for each output.

    Args:
        side: the quotients, `[steps, m]`.
        eps: the relative rounding of the values, and of the steps' ends.
        noise: of the values, `[m]`.
        least: the least uncertainty, `[m]`.
        pieces: flat pieces may be meant.
    """
    quotients, still = side.quotients, side.still
    h = STEPS[-len(still) :]
    rounding = eps * (side.size + np.abs(quotients)) + noise
    table, error = _table(quotients, rounding, side.power)
    value, uncertainty = _least(table, error)
    grows = (
        _grows(quotients)
        & (np.abs(quotients[-1]) * h[-1] > JUMP * rounding[-1])
        & ~(uncertainty <= AGREED * np.abs(value))
    )
    value, uncertainty = np.where(grows, np.nan, value), np.where(grows, np.inf, uncertainty)
    # From the step `first` on, nothing changes any more: either f is flat, or its values are too coarse to show it.
    first = len(still) - np.cumprod(still[::-1], axis=0).sum(0)
    resolved = np.arange(len(still))[:, None] < first
    coarse, doubt = _least(table, np.where(resolved, error, np.inf))
    flat = rounding[-1] / h[np.minimum(first, len(still) - 1)]
    bends_off = _bends_off(quotients, first, rounding[-1])
    rounded = ((doubt <= AGREED * np.abs(coarse)) | (doubt < flat)) & ~bends_off
    # Values that change at several steps, and then no more, are rounded too much to tell, unless f has flat pieces.
    flat = np.where((first < 3) | bends_off | pieces, flat, np.inf)
    ends = first < len(still)
    value = np.where(ends, np.where(rounded, coarse, 0.0), value)
    uncertainty = SAFETY * np.where(ends, np.where(rounded, doubt, flat), uncertainty)
    silent = uncertainty > SILENT * np.fmax(np.abs(value), np.nanmax(side.size, axis=0, initial=0.0))
    return Estimate(value, np.where(silent, np.inf, uncertainty + least))


def _bends_off(quotients: np.ndarray, first: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Where f is flat up to a distance between two steps, and from there on has a slope, `[m]`.

    The finest two steps that change something tell slope and distance; the third must lag behind by the same distance.
    Rounded values lag by now more, now less, and by no more than their rounding.
    """
    finest = np.clip(first[None] - np.arange(1, 4)[:, None], 0, len(quotients) - 1)
    h = STEPS[-len(quotients) :][finest]
    change = np.take_along_axis(quotients, finest, 0) * h
    slope = (change[1] - change[0]) / (h[1] - h[0])
    distance, third = h[0] - change[0] / slope, h[2] - change[2] / slope
    between = (distance > h[0] / RATIO / 1.01) & (distance < h[0])
    alike = np.abs(third - distance) < 0.2 * distance
    return (first >= 3) & between & alike & (distance * np.abs(slope) > 4 * rounding)


def _grows(quotients: np.ndarray) -> np.ndarray:
    """Where the quotient rises steadily as the step falls: a jump, or a slope without bound, as of a root at zero."""
    fine = quotients[-len(quotients) // 2 :]
    ratio = fine[1:] / fine[:-1]
    return np.all((ratio > 1.2) & (ratio < RATIO * 1.1), axis=0)


def _table(quotients: np.ndarray, rounding: np.ndarray, power: int) -> tuple[np.ndarray, np.ndarray]:
    """The extrapolation table and the error of each entry, both `[columns, steps, m]`; infinity where there is none."""
    h = STEPS[-len(quotients) :, None]
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


def _noise_floor(second: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The noise of the values that shows at any step, `[m]`: values may look smooth again at steps below their noise.

    The second difference f(x + h v) − 2 f(x) + f(x − h v) falls like h² where f is smooth, and like h at a kink; what
    does not fall from one step to the next is noise, once it is seen `EVENTS` times; but not above a share `ROUGH` of
    f itself: these are its own oscillations, seen at steps too long for them.
    """
    largest = np.max(np.where(np.isfinite(size), size, 0.0), axis=0)
    fine = np.arange(1, len(second))[:, None] > len(second) // 2
    stays = (second[1:] > second[:-1] / 2) & (fine | (second[1:] < ROUGH * largest))
    return np.sort(np.where(stays, second[1:], 0.0), axis=0)[-EVENTS]


def _least(table: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    flat_error, flat = error.reshape(-1, error.shape[-1]), table.reshape(-1, table.shape[-1])
    best = flat_error.argmin(0)[None]
    least = np.take_along_axis(flat_error, best, 0)[0]
    value = np.take_along_axis(flat, best, 0)[0]
    return np.where(np.isfinite(least), value, np.nan), least

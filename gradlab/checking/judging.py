"""From measurements to findings: which disagreement is one, of what kind, and where."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gradlab.checking import sources
from gradlab.checking.case import Case, Place
from gradlab.checking.flat import Array
from gradlab.checking.probes import COMBINED
from gradlab.checking.result import Finding, Kind
from gradlab.finite import Slopes, remainder_order
from gradlab.graphs.record import Blame

# Automatic differentiation keeps about half the digits through an ill-conditioned function; a wrong rule does not. A
# rule that iterates or integrates is right to its own tolerance, for which solvers by default take little more.
ROOT_EPS, APPROXIMATE = 30.0, 2e-5
# The rounding of a sum over inputs, by the size of its terms.
SUMMED = 1e-12
# A leaf whose derivative is below this share of the rest, and lost in the rounding of f, is left out of the power.
DROWNED = 1e-6
# A check that would not see an error of this share has not decided anything.
BLIND = 0.5
# Steeper than the values by more than this, a slope may belong to what is too fast to be seen.
STEEPER = 100.0
# The remainder of a right slope falls like h²; of a wrong one, like h.
RIGHT_ORDER = 1.75
# The share of a random direction that an error keeps in at least 99 of 100 draws, for 1, 2, … independent directions.
KEPT = (0.0125, 0.126, 0.27, 0.4)


def judge(case: Case) -> tuple[list[Finding], float]:
    """The findings of a case, and the power: the smallest relative error that would have been seen."""
    looks = (_not_finite, _kinks, _forward, _reverse, _not_adjoint, _not_linear, _not_symmetric)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        found = [finding for look in looks for finding in look(case)]
        power = _power(case)
        return found or _undecided(case, power), power


def _not_finite(case: Case) -> list[Finding]:
    reverse, forward, flat = case.first.reverse, case.first.forward, case.flat
    if reverse is not None and not np.isfinite(reverse).all():
        j = int(np.flatnonzero(~np.isfinite(reverse).all(0))[0])
        p = int(np.flatnonzero(~np.isfinite(reverse[:, j]))[0])
        blame = sources.not_finite(case, case.first.w[p], case.v[0])
        return [_nan(case, flat.input_name(j), "reverse", reverse[p, j], blame)]
    if forward is not None and not np.isfinite(forward).all():
        row, i = (int(k) for k in np.argwhere(~np.isfinite(forward))[0])
        place = case.culprit(lambda found, pushed, v: ~np.isfinite(pushed).all(1), row)
        blame = sources.not_finite(case, None, case.v[row])
        return [_nan(case, place.name, "forward", forward[row, i], blame)]
    return []


def _nan(case: Case, where: str, mode: str, given: float, blame: Blame | None) -> Finding:
    message = f"f is finite here, but its derivative in {mode} mode is {given}."
    if blame is None:
        message += (
            " Look for a root, logarithm, norm or division at its edge, or a where whose unused branch is not finite."
        )
    return case.finding("nan", where, mode, message, blame=blame)


def _kinks(case: Case) -> list[Finding]:
    kinks = case.kinks & case.directions.own[:, None]
    if not kinks.any():
        return []
    row, i = (int(k) for k in np.argwhere(kinks)[0])
    place = case.culprit(lambda found, pushed, v: case.bent(found).any(1), row)
    found, pushed = case.alone(place)
    i = int(np.argmax(case.bent(found)[0]))
    right, left = found.right.value[0, i], found.left.value[0, i]
    said = "" if pushed is None else _side(pushed[0, i], right, left, 10 * case.least)
    what = "f" if case.order == 1 else "the first derivative of f"
    message = (
        f"{what} is not differentiable here: its slope{_of(case, i)} {place.phrase} is {right:.6g} to the right and "
        f"{left:.6g} to the left.{said} Move the point, or use a smooth function (softplus, sqrt(x² + ε²), logsumexp)."
    )
    return [case.finding("kink", place.name, "", message)]


def _side(given: float, right: float, left: float, near: float) -> str:
    """Which of two slopes the rule took."""
    if not np.isfinite(given):
        return ""
    sides = {"the slope to the right": right, "the slope to the left": left, "their mean": (right + left) / 2}
    close = near * max(abs(right), abs(left))
    which = next((name for name, value in sides.items() if abs(given - value) <= close), "neither of them")
    return f" The rule returns {given:.6g}, {which}."


def _of(case: Case, i: int) -> str:
    """Which output, where there are several."""
    name = case.flat.output_name(i)
    return f" of {name}" if name else ""


def _forward(case: Case) -> list[Finding]:
    """J v against the slopes of the values, for each output."""
    forward, told = case.measured.forward, case.told
    if forward is None:
        return []

    def excess(found: Slopes, pushed: Array, scale: Array) -> Array:
        best = found.best
        allowed = best.uncertainty + case.least * scale + case.rounding
        return np.where(told & np.isfinite(allowed), np.abs(pushed - best.value) - allowed, -np.inf)

    beyond = np.where(case.clear, excess(case.slopes, forward, case.usual), -np.inf)
    if not (beyond > 0).any():
        return []
    row, i = np.unravel_index(int(np.argmax(beyond / np.where(case.usual > 0, case.usual, 1))), beyond.shape)
    order = remainder_order(case.first.values[row][:, [i]], forward[row, [i]], case.flat.eps)[0]
    best = case.slopes.best
    seen = Seen(forward[row, i], best.value[row, i], best.uncertainty[row, i], _of(case, int(i)), "along a probe")

    def closer() -> tuple[Place, Seen]:
        alone = lambda found, pushed: excess(found, pushed, np.abs(found.best.value))
        place = case.culprit(lambda found, pushed, v: (alone(found, pushed) > 0).any(1), int(row))
        found, pushed = case.alone(place)
        assert pushed is not None
        best, i = found.best, int(np.argmax(np.where(told, np.abs(pushed - found.best.value), -np.inf)[0]))
        return place, Seen(pushed[0, i], best.value[0, i], best.uncertainty[0, i], _of(case, i), place.phrase)

    return _wrong(case, "forward", seen, Doubts(order, case.noise[row, i], case.slack[i]), closer)


def _reverse(case: Case) -> list[Finding]:
    """⟨Jᵀ w, v⟩ against the slopes of the values, weighed by w."""
    reverse, w = case.measured.reverse, case.measured.w
    if reverse is None or not np.isfinite(reverse).all():
        return []

    def compared(v: Array, found: Slopes) -> tuple[Array, Array, Array]:
        value, doubt = (np.where(case.told, a, 0.0) for a in (found.best.value, found.best.uncertainty))
        given, wanted = v @ reverse.T, value @ w.T
        rounding = case.least * (np.abs(value) @ np.abs(w).T) + SUMMED * (np.abs(v) @ np.abs(reverse).T)
        return given, wanted, doubt @ np.abs(w).T + rounding + case.rounding @ np.abs(w).T

    given, wanted, allowed = compared(case.v, case.slopes)
    beyond = np.where(case.rows[:, None], np.abs(given - wanted) - allowed, -np.inf)
    if not (beyond > 0).any():
        return []
    row, p = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    combined = (np.where(case.told, case.first.values[row], 0.0) @ w[p])[:, None]
    order = remainder_order(combined, given[row, [p]], case.flat.eps)[0]
    # A single output is no combination of several, and its slope can be told as it is.
    of, unit = (
        ("", w[p, 0])
        if case.flat.m == 1
        else (f" of a combination of {'outputs' if case.order == 1 else 'first derivatives'}", 1.0)
    )
    seen = Seen(given[row, p] / unit, wanted[row, p] / unit, allowed[row, p] / abs(unit), of, "along a probe")

    def faulty(found: Slopes, pushed: Array | None, v: Array) -> Array:
        given, wanted, allowed = compared(v, found)
        return np.asarray((np.abs(given - wanted) > allowed).any(1))

    def closer() -> tuple[Place, Seen]:
        place = case.culprit(faulty, int(row))
        given, wanted, allowed = compared(place.v[None] / place.step, case.alone(place)[0])
        one = Seen(given[0, p] / unit, wanted[0, p] / unit, allowed[0, p] / abs(unit), of, place.phrase)
        return place, one

    noise = case.noise[row] @ np.where(case.told, np.abs(w[p]), 0.0)
    return _wrong(case, "reverse", seen, Doubts(order, noise, float(case.slack @ np.abs(w[p]))), closer)


@dataclass(frozen=True)
class Seen:
    """A slope that a mode gave and the one that values give, with its uncertainty; of what, and by or along what."""

    given: float
    wanted: float
    uncertainty: float
    of: str
    by: str


@dataclass(frozen=True)
class Doubts:
    """What may speak for a slope that differs from that of the values.

    Attributes:
        order: of the Taylor remainder with the mode's slope.
        noise: how much the values jump about, far beyond rounding.
        slack: what a right rule may round by at worst.
    """

    order: float
    noise: float
    slack: float


def _wrong(
    case: Case, mode: str, seen: Seen, doubts: Doubts, closer: Callable[[], tuple[Place, Seen]]
) -> list[Finding]:
    """A slope that is not that of the values: a wrong one, unless there are doubts.

    Args:
        case, mode: what was judged.
        seen: along the probe that shows it best.
        doubts: about that probe.
        closer: finds the place that is to blame, and what is seen there.
    """
    gap = abs(seen.given - seen.wanted)
    if not doubts.order <= RIGHT_ORDER:
        if gap <= doubts.slack:
            return []  # a right slope that the rule itself has rounded
        reason = (
            f"the Taylor remainder falls like h^{doubts.order:.1f}, as for a right derivative. Check at another point."
        )
        return [_finding(case, "undecided", "", mode, seen, reason)]
    if doubts.noise > 0 and abs(seen.given) > STEEPER * abs(seen.wanted):
        reason = f"they jump about by {doubts.noise:.1g} down to the finest step: too fast to be followed. Smooth f."
        return [_finding(case, "undecided", "", mode, seen, reason)]
    place, seen = closer()
    # A slope of exactly zero was cut off somewhere; any other comes from a rule.
    blame = sources.zero(case, place.v) if seen.given == 0 else None
    reason = f"the Taylor remainder falls like h^{doubts.order:.1f}, not h²."
    if blame is None:
        reason += " Look at the rule (custom_jvp, custom_vjp, stop_gradient) that this input passes through."
    return [_finding(case, "wrong", place.name, mode, seen, reason, blame)]


def _finding(
    case: Case, kind: Kind, where: str, mode: str, seen: Seen, reason: str, blame: Blame | None = None
) -> Finding:
    size = max(abs(seen.wanted), abs(seen.given), 1e-300)
    given = seen.given + 0.0  # no minus before a zero
    factor = f", {given / seen.wanted + 0.0:.6g} times it" if abs(seen.wanted) > 10 * seen.uncertainty else ""
    values = "f" if case.order == 1 else "the first derivative"
    message = (
        f"{mode} mode gives a slope{seen.of} {seen.by} of {given:.6g}, but the values of {values} give "
        f"{seen.wanted:.6g} ± {seen.uncertainty:.1g}{factor}; {reason}"
    )
    error, doubt = abs(seen.given - seen.wanted) / size, seen.uncertainty / size
    return case.finding(kind, where, mode, message, error, doubt, blame)


def _not_adjoint(case: Case) -> list[Finding]:
    """⟨w, J v⟩ = ⟨Jᵀ w, v⟩, whatever the values say: for the outputs whose values do not."""
    forward, reverse, w = case.first.forward, case.first.reverse, case.first.w
    if forward is None or reverse is None:
        return []
    pushed, pulled = forward @ w.T, case.v @ reverse.T
    size = np.abs(forward) @ np.abs(w).T + np.abs(case.v) @ np.abs(reverse).T
    gap = np.abs(pushed - pulled) - case.least * size - SUMMED * size.max(0) - case.slack @ np.abs(w).T
    if not (gap > 0).any():
        return []
    row, p = np.unravel_index(int(np.nanargmax(gap)), gap.shape)
    one, two = pushed[row, p], pulled[row, p]
    message = (
        f"forward and reverse mode disagree: ⟨w, J v⟩ is {one:.6g} and ⟨Jᵀ w, v⟩ is {two:.6g} for the same probes, "
        "so at least one rule is wrong. Look at the custom rules on the way."
    )
    return [case.finding("wrong", "", "", message, abs(one - two) / max(abs(one), abs(two)))]


def _not_linear(case: Case) -> list[Finding]:
    """The pullback of a sum is the sum of the pullbacks, whatever the step."""
    reverse = case.measured.reverse
    if reverse is None or not np.isfinite(reverse).all():
        return []
    first, second = COMBINED
    expected = first * reverse[0] + second * reverse[1]
    size = float((np.abs(first * reverse[0]) + np.abs(second * reverse[1])).max(initial=0.0))
    gap = np.abs(reverse[2] - expected)
    # An input's step carries its share of the rounding of f.
    steps = np.abs(case.v).max(0)
    if not (gap > case.least * size + (case.slack @ np.abs(case.measured.w[2])) / np.where(steps > 0, steps, 1)).any():
        return []
    j = int(gap.argmax())
    message = (
        f"the pullback is not linear in the cotangent: of a combination it is {reverse[2][j]:.6g}, but the "
        f"combination of the pullbacks is {expected[j]:.6g}. "
        "Every term of a backward rule must hold the cotangent exactly once."
    )
    error = gap[j] / max(abs(expected[j]), abs(reverse[2][j]))
    return [case.finding("wrong", case.flat.input_name(j), "reverse", message, error)]


def _not_symmetric(case: Case) -> list[Finding]:
    """⟨u, H v⟩ = ⟨v, H u⟩: at order 2, where f is Jᵀ w, its Jacobian is a Hessian."""
    forward = case.first.forward
    if case.order == 1 or forward is None or case.flat.m != case.flat.n or not np.isfinite(forward).all():
        return []
    products, size = case.v @ forward.T, np.abs(case.v) @ (case.least * np.abs(forward) + case.slack).T
    gap = np.abs(products - products.T) - (size + size.T)
    if not (gap > 0).any():
        return []
    a, b = np.unravel_index(int(np.argmax(gap)), gap.shape)
    one, two = products[a, b], products[b, a]
    message = (
        f"the second derivative is not symmetric: ⟨u, H v⟩ is {one:.6g} and ⟨v, H u⟩ is {two:.6g}. "
        "Look for a backward rule whose own derivative is cut, such as by stop_gradient."
    )
    return [case.finding("wrong", "", "forward", message, abs(one - two) / max(abs(one), abs(two)))]


def _power(case: Case) -> float:
    """For each leaf, the least share of its own derivative that would show along the directions that move it alone."""
    best, told = case.slopes.best, case.told
    if not told.any():
        return float("inf")
    # A slope within its uncertainty of zero has no relative error.
    known = told & case.clear & (np.abs(best.value) > 2 * best.uncertainty)
    value = np.where(known, np.abs(best.value), 0.0)
    doubt = np.where(told & case.clear, best.uncertainty, 0.0)
    shares = []
    if case.measured.forward is not None:
        shares.append(_shares(case, value, np.where(known, doubt + case.least * case.usual + case.rounding, np.inf)))
    if case.measured.reverse is not None:
        w = np.abs(case.measured.w)
        allowed = np.where(case.rows[:, None], doubt @ w.T + case.least * (value @ w.T), np.inf)
        shares.append(_shares(case, np.sqrt(value**2 @ (w**2).T), allowed + case.rounding @ w.T))
    least = np.min(shares, axis=0)
    sizes = np.array([value[list(group)].max(initial=0.0) for group in case.directions.groups])
    moved = (sizes > 0) & ~((least > BLIND) & (sizes < DROWNED * sizes.max()))
    if not moved.any():  # a flat function: its derivative of zero is known to this much of its size
        return float(case.least)
    return float(least[moved].max())


def _shares(case: Case, size: Array, allowed: Array) -> Array:
    """For each leaf the relative error that shows with a probability of 99 in 100, over its directions."""
    found = []
    for group in case.directions.groups:
        rows = [row for row in group if np.isfinite(allowed[row]).any()]
        if not rows:
            found.append(np.inf)
            continue
        usual = np.sqrt(np.mean(size[rows] ** 2, axis=0))
        share = np.where(usual > 0, allowed[rows].max(0) / np.where(usual > 0, usual, 1), np.inf)
        single = np.count_nonzero(case.directions.v[rows[0]]) == 1
        kept = 1.0 if single else 2 * KEPT[min(len(rows), len(KEPT)) - 1]
        found.append(share.min(initial=np.inf) / min(kept, 1.0))
    return np.array(found)


def _undecided(case: Case, power: float) -> list[Finding]:
    """What the values leave open, where nothing is known to be wrong."""
    unknown = ~np.isfinite(case.slopes.best.uncertainty) & case.directions.own[:, None]
    cause = "they are too noisy, jump, or rise without bound. Check at another point, or give f a smaller noise."
    if unknown.any():
        row, i = (int(k) for k in np.argwhere(unknown)[0])
        where = case.culprit(lambda found, pushed, v: ~np.isfinite(found.best.uncertainty[:, i]), row).name
        output = case.flat.output_name(i)
        of = f" of {output}" if output else ""
        return [case.finding("undecided", where, "", f"the values{of} do not tell the derivative here: {cause}")]
    if not power <= BLIND:
        message = f"the values of f do not tell its derivative better than to {power:.1g}: {cause}"
        return [case.finding("undecided", "", "", message)]
    return []

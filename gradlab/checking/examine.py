"""Is this derivative right? What is wrong with it, where, and how small an error would have been seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import inputs
from gradlab.checking import consistency
from gradlab.checking.case import Case
from gradlab.checking.flat import Flat, flatten, on_device, precision, slope, widened
from gradlab.checking.judging import APPROXIMATE, ROOT_EPS, judge
from gradlab.checking.probes import directions, probes
from gradlab.checking.result import Check, Finding, concluded
from gradlab.errors import OptionError
from gradlab.jaxprs import draws
from gradlab.types import Fn, PyTree

DIRECTIONS = 4


@dataclass(frozen=True)
class Settings:
    """What the evidence depends on besides f and its arguments."""

    order: int
    random: np.random.Generator
    directions: int
    tol: float
    float64: bool
    holds: bool


def check(
    f: Fn,
    *args: PyTree,
    order: int = 1,
    key: jax.Array | None = None,
    directions: int | None = None,
    tol: float | None = None,
    float64: bool = True,
    allow_stop_gradient: bool = False,
) -> Check:
    """Say whether the derivative of f that JAX takes at args is right, and if not, what is wrong with it and where.

    Forward and reverse mode, in float64, are held against differences of f's values, each of which comes with its own
    uncertainty, against one another, and against the same derivative batched, eager (where it has few operators) and in
    the working precision. Leaves that cannot be differentiated (integers, bools, keys, anything that is no array) are
    held fixed. No tolerance is needed, and no step size.

    Args:
        f: a function of pytrees to a pytree, with at least one floating output.
        args: where the derivative is checked.
        order: 1, or 2 for the second derivative as well.
        key: for the random directions; `jax.random.key(0)` where None.
        directions: how many random directions over all leaves, 4 where None; each leaf has some of its own besides.
        tol: the least relative error that counts, where rounding alone should not decide.
        float64: evaluate in float64. Functions that insist on a precision of their own are checked in that.
        allow_stop_gradient: what `stop_gradient` passes on counts as constant; else it is a defect.

    Returns:
        The check; print it, or call `.raise_if_failed()`. An error of `.power`, relative to the derivative by any one
        leaf, would have been seen.

    Raises:
        OptionError: order, directions or tol out of range.
        EmptyInputError, NotDifferentiableError: nothing to differentiate, or by.
        ArgumentError: f is no function, or cannot be traced.

    Source: Ridders (1982) for the differences; Griewank and Walther (2008), section 3.2, for the adjoint identity.

    >>> check(lambda x: jnp.sin(x) ** 2, 0.7).verdict
    'ok'
    >>> print(check(jnp.abs, 0.0))
    derivative of abs: kink
      kink at args[0]: f is not differentiable here: its slope by args[0] is 1 to the right and -1 to the left. ...
    """
    _require_options(f, order, directions, tol)
    settings = Settings(order, _generator(key), directions or DIRECTIONS, tol or 0.0, float64, allow_stop_gradient)
    findings, power = _examined(f, args, settings)
    return concluded(findings, power, getattr(f, "__name__", type(f).__name__))


def _generator(key: jax.Array | None) -> np.random.Generator:
    try:
        words = jax.random.key_data(jax.random.key(0) if key is None else key)
    except TypeError as error:
        raise OptionError(f"key must be a JAX random key, such as jax.random.key(0), but got {key!r:.60}.") from error
    return np.random.default_rng(np.ravel(words).tolist())


def _require_options(f: Fn, order: int, directions: int | None, tol: float | None) -> None:
    inputs.require_function(f, "check")
    if isinstance(order, bool) or order not in (1, 2):
        raise OptionError(f"order must be 1 or 2, but got {order!r}.")
    inputs.require_count(directions, "directions", none=True)
    if tol is not None and not (isinstance(tol, (int, float)) and 0 < tol < 1):
        raise OptionError(f"tol must be a relative error between 0 and 1, or None, but got {tol!r}.")


Judged = tuple[list[Finding], float]


def _examined(f: Fn, args: tuple, settings: Settings) -> Judged:
    args = on_device(args)
    working = flatten(f, args, holds=settings.holds)
    if not _repeats(working, flatten(f, args, holds=settings.holds)):
        return _nothing("two calls of f at one point differ; pass its randomness as an argument (a key).")
    # A callback runs in a thread of its own, where the scope of float64 does not reach.
    if not settings.float64 or working.calls_host:
        return _judged(working, working, settings)
    with jax.enable_x64(True):
        wide = _in_float64(f, args, settings)
    if wide is None:
        return _judged(working, working, settings)
    return _judged(wide, working, settings)


def _nothing(reason: str, others: Sequence[Finding] = ()) -> Judged:
    return [*others, Finding("undecided", message=reason)], np.inf


def _repeats(one: Flat, two: Flat) -> bool:
    """Whether two calls of f are the same program, and give the same values where it calls the host."""
    if one.calls_host:
        first, second = (np.asarray(flat.f(jnp.asarray(flat.u))) for flat in (one, two))
        return np.array_equal(first, second, equal_nan=True)
    return one.f.same_as(two.f)


def _in_float64(f: Fn, args: tuple, settings: Settings) -> Flat | None:
    """f in float64; None where it insists on another precision, whatever it raises then."""
    try:
        return flatten(f, widened(args), holds=settings.holds)
    except Exception:
        return None


def _judged(flat: Flat, working: Flat, settings: Settings, order: int = 1) -> Judged:
    """The findings and the power of one order, and of the next where this one is right."""
    with precision(flat):
        case = _case(flat, settings, order)
    missing = case.probes.missing
    if missing and flat is not working and set(missing) != set(_case(working, settings, order).probes.missing):
        return _judged(working, working, settings, order)  # a rule insists on the working precision
    findings = [
        Finding("unsupported", order=order, mode=mode, message=f"{mode} mode cannot run: {reason}.")
        for mode, reason in missing.items()
    ]
    if len(missing) == 2:
        return _nothing("f has neither forward nor reverse rules here; give it a custom_jvp.", findings)
    with precision(flat):
        middle = case.first.values[0, 0]
        if not np.isfinite(middle).all():
            return _nothing(f"f itself is {middle[~np.isfinite(middle)][0]} here, so it has no derivative to check.")
        found, power = judge(case)
    if not found and not draws(working.f):
        found = consistency.again(case, working)
    if not found and order < settings.order:
        found, weaker = _next_order(case, working, settings, order + 1)
        power = max(power, weaker)
    return findings + found, power


def _next_order(case: Case, working: Flat, settings: Settings, order: int) -> Judged:
    """The first derivative, known to be right, takes the place of f."""
    w, v = settings.random.normal(size=case.flat.m), case.directions.v[-1]
    along = None if "reverse" in case.probes.missing else w
    if case.flat is working:
        flat = working = slope(working, along, v)
    else:
        with precision(case.flat):
            flat = slope(case.flat, along, v)
        working = slope(working, along, v)
    return _judged(flat, working, settings, order)


def _case(flat: Flat, settings: Settings, order: int) -> Case:
    least = max(APPROXIMATE, ROOT_EPS * float(jnp.finfo(flat.u.dtype).eps) ** 0.5, 10 * flat.eps, settings.tol)
    chosen = directions(flat, settings.random, settings.directions)
    return Case(flat, probes(flat, chosen.v), chosen, settings.random, order, least)

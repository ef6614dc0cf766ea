"""What `mode="auto"` takes: each candidate's own program is traced and priced, and the cheapest one that can run wins.

Nothing runs and nothing is compiled, so the choice is made under `jit` as it is outside.
"""

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gradlab.errors import GradlabError, MissingExtraError, UnsupportedModeError, first_sentence
from gradlab.jaxprs import lacks_forward_rule, trace, work
from gradlab.mode import cost
from gradlab.mode.support import NO_FORWARD_RULE, Unary
from gradlab.types import PyTree

Status = Literal["ok", "unsupported", "unavailable"]

# Predictions are right to some ten per cent: by less than this a mode does not displace one that comes before it. Modes
# of as many passes of one kind are mispredicted alike, and go by the prediction: of 13 such ties, in functions of many
# kinds, it was right in 11, and gained a tenth in the mean; of 10 between modes of unequal passes it gained nothing.
MARGIN, ALIKE = 1.1, 1.0


@dataclass(frozen=True)
class Estimate:
    """What a mode is predicted to cost.

    Attributes:
        mode: its name.
        status: `ok`, `unsupported` (this function has no such derivative) or `unavailable` (an extra is missing).
        seconds, bytes: of one call, and alive at once; None where it cannot run.
        reason: why it cannot run, or what it does: how many passes, where it cuts.
    """

    mode: str
    status: Status
    seconds: float | None = None
    bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mode, and what makes its derivative for one function.

    Attributes:
        mode: its name.
        make: gives `x ↦ derivative` and a note of what it does; it raises `UnsupportedModeError` or `MissingExtraError`
            where there is none.
        margin: it must be predicted to be faster than what comes before it by more than this factor.
    """

    mode: str
    make: Callable[[], tuple[Unary, str]]
    margin: float = MARGIN


@dataclass(frozen=True, eq=False)
class Choice:
    """The candidate that was taken, and what is predicted of all.

    Attributes:
        mode: its name.
        run: `x ↦ derivative`.
        estimates: one for each candidate, in their order.
        chunk_size: so many directions at a time; None for all at once.
    """

    mode: str
    run: Unary = field(repr=False)
    estimates: tuple[Estimate, ...]
    chunk_size: int | None = None

    @property
    def bytes(self) -> int:
        """Predicted of the one taken."""
        return next(e.bytes for e in self.estimates if e.mode == self.mode and e.bytes is not None)


def plain(mode: str, run: Unary, margin: float = MARGIN) -> Candidate:
    """A candidate with nothing to find out first."""
    return Candidate(mode, lambda: (run, ""), margin)


def cheapest(candidates: Sequence[Candidate], x: PyTree, of: str) -> Choice:
    """The candidate that is predicted to be the fastest of those that can run.

    Args:
        candidates: the preferred first.
        x: the point, or its shapes.
        of: the quantity, for the error.

    Raises:
        UnsupportedModeError: none of them can; the text has every reason.

    >>> cheapest([plain("reverse", jax.jacrev(jnp.sin)), plain("forward", jax.jacfwd(jnp.sin))], 1.0, "jacobian").mode
    'reverse'
    """
    tried = [_estimate(candidate, x) for candidate in candidates]
    taken, least = None, float("inf")
    for candidate, (estimate, run) in zip(candidates, tried, strict=True):
        if run is not None and estimate.seconds is not None and estimate.seconds * candidate.margin < least:
            taken, least = (candidate.mode, run), estimate.seconds
    if taken is None:
        reasons = " ".join(f"{e.mode}: {e.reason.rstrip('.')}." for e, _ in tried)
        raise UnsupportedModeError(f"No mode of {of} can run for this function. {reasons}")
    return Choice(*taken, tuple(e for e, _ in tried))


def _estimate(candidate: Candidate, x: PyTree) -> tuple[Estimate, Unary | None]:
    """What a candidate is predicted to cost, and its derivative; None where it has none."""
    try:
        run, note = candidate.make()
        program = trace(run, x)
    except MissingExtraError as error:
        return Estimate(candidate.mode, "unavailable", reason=str(error)), None
    except GradlabError as error:
        return Estimate(candidate.mode, "unsupported", reason=str(error)), None
    except Exception as error:  # JAX's class for a missing rule differs by rule: TypeError, ValueError, KeyError, …
        return Estimate(candidate.mode, "unsupported", reason=first_sentence(error)), None
    if lacks_forward_rule(program):
        return Estimate(candidate.mode, "unsupported", reason=NO_FORWARD_RULE), None
    found = work(program)
    return Estimate(candidate.mode, "ok", cost.seconds(found, cost.rates()), found.peak_bytes, note), run


def within(
    limit: int | None, chunk_size: int | None, directions: int, choose: Callable[[int | None], Choice]
) -> Choice:
    """The cheapest choice that fits into a limit of memory: all directions at once, or so many at a time that it does.

    Args:
        limit: bytes; None for what the device has, where it says so.
        chunk_size: so many directions at a time, whatever they need; None where that may be chosen.
        directions: how many there are.
        choose: the cheapest candidate for a number of directions at a time, None for all at once.

    Returns:
        The first that fits of ever smaller chunks; with one direction at a time, whatever it needs.
    """
    if chunk_size is not None:
        return replace(choose(chunk_size), chunk_size=chunk_size)
    limit = limit or device_limit()
    found, chunk = choose(None), directions
    while limit is not None and found.bytes > limit and chunk > 1:
        # What grows with the chunk is most of it, so the share that fits is a good first guess.
        chunk = max(1, min(chunk // 2, int(chunk * limit / found.bytes)))
        found = replace(choose(chunk), chunk_size=chunk)
    return found


def device_limit() -> int | None:
    """The memory of the device, in bytes, where it says so; of a CPU, that of the machine."""
    device = jax.devices()[0]
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        statistics: Any = device.memory_stats()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return (statistics or {}).get("bytes_limit")


class Memory:
    """What was chosen for arguments of which shapes: a call outside of `jit` then traces one mode, and not all."""

    def __init__(self) -> None:
        self.kept: dict[Hashable, tuple[str, int | None]] = {}

    def run(
        self, args: PyTree, x: PyTree, choose: Callable[[], Choice], compute: Callable[[Any, int | None], Any]
    ) -> Any:
        """The derivative at x, in the mode that was chosen before for arguments like these, or is now.

        Args:
            args: all arguments of the function; numbers and arrays count by shape and dtype.
            x: the one that it is differentiated in.
            choose: chooses.
            compute: the derivative in a mode, so many directions at a time.
        """
        key = _key(args)
        if key in self.kept:
            try:
                return compute(*self.kept[key])
            except UnsupportedModeError:  # the function has become another one, such as by what it closes over
                del self.kept[key]
        found = choose()
        self.kept[key] = (found.mode, found.chunk_size)
        return found.run(x)


def _key(args: PyTree) -> Hashable:
    """What is the same for arguments that a function treats alike: of arrays shape and dtype, of numbers their type."""
    leaves, structure = jax.tree.flatten(args)
    return (str(structure), *map(_kind, leaves))


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, (bool, str)):
        return leaf
    return (*jnp.shape(leaf), str(leaf.dtype)) if hasattr(leaf, "dtype") else str(type(leaf))

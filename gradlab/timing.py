"""Compile once, run many times, and know the difference: what a program costs on the device at hand."""

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from gradlab.jaxprs import hoist
from gradlab.types import PyTree

# A sample shorter than this is mostly the clock and the dispatch; short programs are run several times a sample.
SAMPLE_SECONDS = 2e-4
# A shorter program is run once before each of its samples: that call brings back what other programs have displaced
# from the caches, and wakes the threads. Of a longer one that is little, and the call would take half of the budget.
WARMED = 2e-3
# A call that took so long is not a short one that was slow for being the first.
LONG = 0.05
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
# What takes more than so many times as long as the fastest, halfway through a race, will not win it.
BEHIND = 1.5


@dataclass(frozen=True)
class Program:
    """A compiled function with its hoisted constants, and what the compiler says of it (None where it says nothing)."""

    compiled: Any
    constants: list[Any]
    compile_seconds: float
    flops: float | None
    bytes: float | None
    peak_bytes: int | None

    def __call__(self, *args: PyTree) -> PyTree:
        return self.compiled(self.constants, *args)

    @cached_property
    def text(self) -> str:
        """What the compiler made, without where in the source it is from; "" where it does not say."""
        try:
            whole = self.compiled.as_text() or ""
        except (NotImplementedError, jax.errors.JaxRuntimeError):
            return ""
        start = min((i for i in (whole.find("\n%"), whole.find("\nENTRY")) if i >= 0), default=0)
        return re.sub(r",? metadata=\{[^{}]*\}", "", whole[start:])


def compiled(f: Callable[..., PyTree], *args: PyTree) -> Program:
    """Trace, lower and compile f at these arguments, with the arrays that it closes over as arguments.

    Args:
        f: any function of pytrees.
        args: arguments of the call, arrays.

    Returns:
        The program; `compile_seconds` counts tracing, lowering and compiling.

    >>> program = compiled(lambda x: 2 * x, np.float32(3))
    >>> float(program(np.float32(3)))
    6.0
    """
    start = time.perf_counter()
    body, constants = hoist(f, *args)
    # Once, and not in every call: NumPy's arrays among them would be sent to the device anew each time.
    constants = jax.device_put(constants)
    executable = jax.jit(body).lower(constants, *args).compile()
    seconds = time.perf_counter() - start
    cost = _cost(executable)
    return Program(
        executable,
        constants,
        seconds,
        _known(cost.get("flops")),
        _known(cost.get("bytes accessed")),
        _peak_bytes(executable),
    )


def _cost(executable: Any) -> dict[str, float]:
    try:
        cost = executable.cost_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):  # some platforms have none
        return {}
    if isinstance(cost, (list, tuple)):
        cost = cost[0] if cost else None
    return cost or {}


def _known(value: float | None) -> float | None:
    return None if value is None or value < 0 else float(value)


def _peak_bytes(executable: Any) -> int | None:
    """Arguments, results and temporaries together; shared memory counted once."""
    try:
        memory = executable.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if memory is None:
        return None
    return int(
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def temporary_bytes(program: Program) -> int:
    """The memory that a program needs beside its arguments and results, as the compiler plans it.

    >>> temporary_bytes(compiled(lambda x: x + 1, np.float32(3))) >= 0
    True
    """
    return int(program.compiled.memory_analysis().temp_size_in_bytes)


@dataclass(frozen=True)
class Sample:
    """The run time of one program: the median of its samples, and how far the middle half of them spreads.

    `seconds` is per call; `spread` is the interquartile range over the median; `rounds` are the samples in their order,
    so that two programs timed together can be compared round by round.
    """

    seconds: float
    spread: float
    calls: int
    rounds: tuple[float, ...] = ()


def interleaved(
    runs: Sequence[Callable[[], PyTree]],
    *,
    budget: float = 1.0,
    repeats: int | None = None,
    least: int = LEAST_ROUNDS,
) -> list[Sample]:
    """Time several programs in turn, round after round, so that a drift of the machine falls on all of them alike.

    Args:
        runs: calls without arguments; each result is waited for.
        budget: seconds for all rounds together, where `repeats` does not fix their number.
        repeats: the number of rounds.
        least: so many rounds, where the budget is for fewer.

    Returns:
        One sample a run.

    >>> [s.calls >= 3 for s in interleaved([lambda: jax.numpy.ones(3)], repeats=3)]
    [True]
    """
    first = [_first(run) for run in runs]
    inner = [max(1, min(1000, int(SAMPLE_SECONDS / max(t, 1e-9)))) for t in first]
    one_round = sum(t * (k + (t < WARMED)) for t, k in zip(first, inner, strict=True))
    rounds = repeats or max(least, min(MOST_ROUNDS, int(budget / max(one_round, 1e-9))))
    times: list[list[float]] = [[] for _ in runs]
    order = np.random.default_rng(0)
    for _ in range(rounds):
        # In another order each round: no program always comes after the same one.
        for j in order.permutation(len(runs)):
            if first[j] < WARMED:
                _seconds(runs[j], 1)
            times[j].append(_seconds(runs[j], inner[j]) / inner[j])
    return [_summary(kept, k) for kept, k in zip(times, inner, strict=True)]


def _first(run: Callable[[], PyTree]) -> float:
    """About how long one call takes: the first of a short program may take many times as long."""
    seconds = _seconds(run, 1)
    return seconds if seconds > LONG else min(seconds, _seconds(run, 1), _seconds(run, 1))


def interleaved_once(
    runs: Mapping[str, Callable[[], PyTree]],
    *,
    budget: float = 1.0,
    repeats: int | None = None,
    least: int = LEAST_ROUNDS,
) -> dict[str, Sample]:
    """`interleaved` by name, where those that are the same compiled program share one sample: they differ in name only.

    Args:
        runs: calls without arguments; of a `partial` of a `Program` it is seen which program it is.
        budget, repeats, least: as for `interleaved`.

    >>> from functools import partial
    >>> program = compiled(lambda x: 2 * x, np.float32(3))
    >>> samples = interleaved_once({name: partial(program, np.float32(3)) for name in "ab"}, repeats=3)
    >>> samples["a"] is samples["b"]
    True
    """
    program = lambda run: run.func.text if isinstance(getattr(run, "func", None), Program) else ""
    keys = {name: program(run) or name for name, run in runs.items()}
    firsts = {keys[name]: run for name, run in reversed(list(runs.items()))}
    timed = interleaved(list(firsts.values()), budget=budget, repeats=repeats, least=least)
    samples = dict(zip(firsts, timed, strict=True))
    return {name: samples[key] for name, key in keys.items()}


def race(
    runs: Mapping[str, Callable[[], PyTree]], *, apart: Collection[str] = (), budget: float = 1.0
) -> dict[str, Sample]:
    """`interleaved_once` in two heats of half the budget each: all take part in the first, in the second the fastest
    and those close behind, of which the noise of a few rounds would make the order.

    In one heat the slowest would take most of the time, and leave little to tell the fastest apart.

    Args:
        runs: as for `interleaved_once`.
        apart: the names of those that do not compete; they take part in the first heat alone.
        budget: seconds for both heats.

    Returns:
        One sample a run, of all its rounds: those of the second heat have more.

    Source: Karnin, Koren and Somekh, Almost optimal exploration in multi-armed bandits, ICML 2013: sequential halving.

    >>> few, many = jax.numpy.ones(3), jax.numpy.ones(10**6)
    >>> runs = {"sum": lambda: few + 1, "product": lambda: 2 * few, "many": lambda: many + 1}
    >>> sorted(race(runs, budget=0.01))
    ['many', 'product', 'sum']
    """
    samples = interleaved_once(runs, budget=budget / 2)
    limit = BEHIND * min((sample.seconds for name, sample in samples.items() if name not in apart), default=0.0)
    close = {name: run for name, run in runs.items() if name not in apart and samples[name].seconds <= limit}
    if len({id(samples[name]) for name in close}) > 1:
        again = interleaved_once(close, budget=budget / 2)
        samples |= {name: _joined(samples[name], sample) for name, sample in again.items()}
    return samples


def _joined(one: Sample, other: Sample) -> Sample:
    whole = _summary([*one.rounds, *other.rounds], 1)
    return replace(whole, calls=one.calls + other.calls)


def _seconds(run: Callable[[], PyTree], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def _summary(times: list[float], inner: int) -> Sample:
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Sample(float(middle), float((high - low) / middle), len(times) * inner, tuple(times))

"""A compiled program is the function, with its constants hoisted and its costs known or None; nothing here is timed."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import timing


def test_a_program_is_the_function(same):
    table = jnp.arange(1000.0)
    f = lambda x: {"y": jnp.sin(x) @ table, "n": x.size}
    program = timing.compiled(f, jnp.ones(1000))
    same(program(jnp.ones(1000))["y"], f(jnp.ones(1000))["y"])
    assert [c.shape for c in program.constants] == [(1000,)]
    assert program.compile_seconds > 0


@pytest.mark.parametrize(("cost", "known"), [(None, None), (-1.0, None), (0.0, 0.0), (12, 12.0)])
def test_a_missing_or_negative_cost_is_unknown(cost, known):
    assert timing._known(cost) == known


@pytest.mark.parametrize("analysis", [None, [], [{"flops": 3.0}], {"flops": 3.0}])
def test_every_form_of_a_cost_analysis_is_understood(analysis):
    class Executable:
        def cost_analysis(self):
            return analysis

    assert timing._cost(Executable()) == ({"flops": 3.0} if analysis else {})


def test_a_platform_without_analysis_leaves_costs_unknown():
    class Executable:
        def cost_analysis(self):
            raise NotImplementedError

        def memory_analysis(self):
            raise NotImplementedError

    assert timing._cost(Executable()) == {}
    assert timing._peak_bytes(Executable()) is None


def test_peak_memory_holds_arguments_and_results():
    program = timing.compiled(lambda x: jnp.outer(x, x), jnp.ones(128))
    assert program.peak_bytes >= 4 * (128 + 128 * 128)


def test_rounds_run_every_program_once_and_each_comes_after_each_other():
    calls = []

    def run(name):
        calls.append(name)
        return np.ones(1)

    timing.interleaved([partial(run, name) for name in "abc"], repeats=20)
    turns = [name for name, _ in itertools.groupby(calls[6:])]  # the first six find how many calls make a sample
    assert all(turns.count(name) <= 20 for name in "abc") and len(turns) >= 50  # two turns of one may follow each other
    assert {*itertools.pairwise(turns)} == {*itertools.permutations("abc", 2)}


@pytest.fixture
def told(monkeypatch):
    """A clock that is told: a run takes the seconds that it returns. The list has what was spent."""
    spent = []

    def seconds(run, count):
        spent.append(run() * count)
        return spent[-1]

    monkeypatch.setattr(timing, "_seconds", seconds)
    return spent


def test_the_second_half_of_a_race_is_for_those_close_to_the_fastest(told):
    seconds = {"value": 0.0001, "fast": 0.001, "close": 0.0014, "slow": 0.01}
    runs = {name: partial(float, s) for name, s in seconds.items()}
    samples = timing.race(runs, apart=["value"], budget=1.0)
    assert {name: sample.seconds for name, sample in samples.items()} == pytest.approx(seconds)
    assert 0.9 < sum(told) < 1.1
    fast, close, slow, value = (len(samples[name].rounds) for name in ("fast", "close", "slow", "value"))
    assert fast == close > 3 * slow and slow == value > timing.LEAST_ROUNDS


def test_a_few_rounds_are_timed_whatever_the_budget(told):
    (sample,) = timing.interleaved([partial(float, 1.0)], budget=0.1, least=7)
    assert len(sample.rounds) == 7


def test_a_race_that_is_decided_ends_with_its_first_half(told):
    samples = timing.race({"fast": partial(float, 0.001), "slow": partial(float, 0.01)}, budget=1.0)
    assert len(samples["fast"].rounds) == len(samples["slow"].rounds)
    assert timing.race({}) == {}


def test_spread_is_the_middle_half_over_the_median():
    sample = timing._summary([1.0, 2.0, 3.0, 4.0, 5.0], 2)
    assert (sample.seconds, sample.calls) == (3.0, 10)
    assert sample.spread == pytest.approx(2 / 3)


def test_results_are_waited_for():
    waited = []

    class Pending:
        def block_until_ready(self):
            waited.append(1)
            return self

    timing.interleaved([Pending], repeats=1)
    assert waited
    assert jax.block_until_ready(jnp.ones(1)).shape == (1,)

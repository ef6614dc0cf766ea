"""Blame names the line that made a derivative NaN, infinite or zero, and is silent where nothing is wrong."""

import re

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.errors import OptionError


@pytest.mark.parametrize("name", faults.FAULTS)
def test_the_right_line_is_named(name):
    f, args, kind, where = faults.FAULTS[name]
    blame = gl.graph(f, *args).blame(where)
    assert blame is not None and (blame.kind, blame.where) == (kind, where)
    line = faults.lines().get(name)
    if line is None:  # nothing reads the input
        assert blame.source == "" and blame.node.label == where
    else:
        assert re.search(rf"faults\.py:{line}$", blame.source), blame
    assert len(blame.message) > 40 and blame.message in str(blame)


@pytest.mark.parametrize("name", [name for name, (*_, kind, _) in faults.FAULTS.items() if kind != "zero"])
def test_the_fault_is_what_jax_gives(name):
    f, args, kind, where = faults.FAULTS[name]
    if name == "inside_while":  # JAX has no reverse mode for it
        return
    first = jax.tree.leaves_with_path((jax.grad(f)(*args),))
    found = np.asarray(next(leaf for path, leaf in first if f"args{jax.tree_util.keystr(path)}" == where))
    assert np.isnan(found).any() if kind == "nan" else np.isinf(found).any() and not np.isnan(found).any()


@pytest.mark.parametrize("name", faults.HEALTHY)
def test_healthy_functions_are_not_blamed(name):
    f, args = faults.HEALTHY[name]
    assert gl.graph(f, *args).blame() is None


def test_there_are_enough_cases():
    kinds = [kind for *_, kind, _ in faults.FAULTS.values()]
    assert len(kinds) - kinds.count("zero") >= 20 and kinds.count("zero") >= 12
    assert set(faults.lines()) == set(faults.FAULTS) - {"unused"}


def test_values_and_cure_are_in_the_message():
    blame = gl.graph(lambda x: jnp.sum(jnp.log(x)), jnp.array([2.0, 0.0, 3.0])).blame()
    assert "at [1] for 0, where 1 came back" in blame.message and "xlogy" in blame.message
    norm = gl.graph(jnp.linalg.norm, jnp.zeros(2)).blame()  # no line of the user's is on the way
    assert norm.source == "" and str(norm).startswith(
        "nan in the derivative by args[0]: the pullback of sqrt (in norm)"
    )
    assert "ε²" in norm.message


def test_where_chooses_the_input():
    f = lambda a, b: jnp.sqrt(a) + jnp.round(b)
    graph = gl.graph(f, 0.0, 1.0)
    assert graph.blame().kind == "inf"
    assert graph.blame("args[1]").kind == "zero"
    with pytest.raises(OptionError, match=r"args\[0\], args\[1\]"):
        graph.blame("b")


def test_an_input_that_is_not_finite_is_named_as_such():
    blame = gl.graph(lambda x: x * x, jnp.inf).blame()
    assert blame.kind == "inf" and "mul" in blame.message


def test_a_gradient_that_shrank_to_nothing_on_its_way_is_called_vanished():
    def f(x):
        for _ in range(150):
            x = jax.nn.sigmoid(x)
        return x

    assert "shrunk" in gl.graph(f, 0.3).blame().message


def test_calls_that_stay_closed_are_opened_to_find_the_line():
    f, args, kind, _ = faults.FAULTS["inside_jit"]
    blame = gl.graph(f, *args, open_calls=False).blame()
    assert blame.kind == kind and blame.source.endswith(f":{faults.lines()['inside_jit']}")

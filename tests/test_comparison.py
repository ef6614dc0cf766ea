"""A comparison ranks only right modes, says why others did not run, and compiles closed-over arrays as arguments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab import comparison, problems, timing

X = jnp.linspace(0.1, 1.0, 5)
CUBE = lambda x: jnp.sum(jnp.sin(x) ** 3)


# These suit some functions, or need an extra; where they refuse they say why.
SOMETIMES = ("sparse", "waist", "forward_laplacian")


def by_mode(result):
    return {row.mode: row for row in result.rows}


def always(result):
    """The rows of the modes that every function has, as far as it has their rules."""
    return [row for row in result.rows if row.mode not in SOMETIMES]


@pytest.mark.parametrize("of", ["gradient", "jacobian", "hessian", "hvp", "laplacian"])
def test_every_mode_of_every_quantity_is_measured_and_right(of):
    result = gl.compare(CUBE, X, of=of, repeats=2)
    assert {row.mode for row in result.rows} == set(gl.modes(of)) - {"auto"}
    for row in result.rows:
        if row.status in ("unsupported", "unavailable"):
            assert row.mode in SOMETIMES and row.reason
            continue
        assert row.status == "ok", row
        assert row.seconds > 0
        assert row.compile_seconds > 0
        assert row.error < 1e-4
    assert result.best.seconds == min(row.seconds for row in result.rows if row.status == "ok")
    assert result.auto in gl.modes(of)
    assert result.regret >= 1


def test_the_function_of_a_comparison_is_the_derivative(same):
    same(gl.compare(CUBE, X, of="hessian", repeats=1).function(X), jax.hessian(CUBE)(X))


def test_modes_that_are_one_program_are_one_time():
    rows = by_mode(gl.compare(CUBE, X, of="gradient", repeats=2))
    assert rows["reverse"].seconds == rows["checkpoint"].seconds != rows["forward"].seconds
    assert gl.compare(CUBE, X, of="gradient", modes=["reverse", "checkpoint"], repeats=1).best.mode == "reverse"


def test_relative_cost_is_time_over_the_value():
    result = gl.compare(CUBE, X, of="gradient", repeats=2)
    row = result.rows[0]
    assert row.relative_cost == pytest.approx(row.seconds / result.value_seconds)


def test_a_missing_rule_is_a_reason_and_not_a_failure():
    loop = lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 30.0, lambda c: c * x, x)
    rows = by_mode(gl.compare(loop, X + 1, repeats=1))
    assert rows["forward"].status == "ok"
    assert rows["reverse"].status == "unsupported"
    assert "while_loop" in rows["reverse"].reason
    assert rows["reverse"].seconds is None


def cheap_lie(x):
    """Its rule is 30% too large, in forward and, by transposition, in reverse mode alike."""
    return _lie(x) + x


@jax.custom_jvp
def _lie(x):
    return jnp.sin(x)


_lie.defjvp(lambda p, t: (jnp.sin(p[0]), 1.3 * jnp.cos(p[0]) * t[0]))


def test_a_rule_that_disagrees_with_the_function_is_wrong_in_every_mode():
    result = gl.compare(cheap_lie, X, repeats=1)
    assert {row.status for row in always(result)} == {"wrong"}
    assert "ok" not in {row.status for row in result.rows}
    assert result.best is None
    assert "differences" in result.rows[0].reason
    with pytest.raises(gl.GradlabError, match="No mode"):
        result.function  # noqa: B018


def test_hessians_of_functions_of_many_outputs_are_compared():
    f = lambda p: {"y": jnp.outer(p["a"], p["a"]).sum(0) * p["b"] ** 3}
    rows = by_mode(gl.compare(f, {"a": X, "b": jnp.array(0.3)}, of="hessian", repeats=1))
    assert rows["forward_over_reverse"].status == rows["reverse_over_reverse"].status == "ok"


def test_a_mode_that_is_wrong_does_not_compete(monkeypatch):
    apart = []
    race = lambda runs, **options: apart.extend(options["apart"]) or timing.race(runs, **options)
    monkeypatch.setattr(comparison, "race", race)
    gl.compare(cheap_lie, X, modes=["forward", "reverse"], budget=0.01)
    assert {"forward", "reverse"} < {*apart}


def test_second_order_lies_are_found():
    @jax.custom_jvp
    def f(x):
        return jnp.sum(x**3)

    # The slope is right and flat: its own derivative is lost.
    f.defjvp(lambda p, t: (f(*p), jnp.vdot(jax.lax.stop_gradient(3 * p[0] ** 2), t[0])))
    assert {row.status for row in gl.compare(f, X, of="gradient", repeats=1).rows} == {"ok"}
    result = gl.compare(f, X, of="hessian", repeats=1)
    assert {row.status for row in always(result)} == {"wrong"}
    assert "ok" not in {row.status for row in result.rows}


def test_memory_limit_skips_and_says_how_much_was_needed():
    result = gl.compare(jnp.sin, jnp.ones(100), memory_limit=100, repeats=1)
    assert {row.status for row in always(result)} == {"skipped"}
    assert "ok" not in {row.status for row in result.rows}
    assert "memory_limit=100" in always(result)[0].reason


def test_what_is_predicted_to_be_hopeless_is_not_even_compiled():
    f = lambda x: jnp.sum(jnp.sin(jnp.cumsum(x)) ** 2)
    rows = by_mode(gl.compare(f, jnp.ones(300), of="hessian", budget=1e-4, repeats=1))
    assert rows["forward_over_forward"].status == "skipped"
    assert "predicted to take" in rows["forward_over_forward"].reason
    assert rows["forward_over_forward"].compile_seconds is None


def test_what_is_predicted_to_be_far_behind_is_measured_where_it_is_named():
    f = lambda t: jnp.sin(t * jnp.arange(4000.0))
    far = by_mode(gl.compare(f, 1.0, repeats=1))["reverse"]
    assert far.status == "skipped" and "modes=" in far.reason and far.compile_seconds is None
    named = gl.compare(f, 1.0, modes=["reverse", "forward"], repeats=1, budget=60)
    assert [(row.mode, row.status) for row in named.rows] == [("forward", "ok"), ("reverse", "ok")]


def test_chosen_modes_are_the_rows():
    assert [row.mode for row in gl.compare(CUBE, X, modes=["reverse"], repeats=1).rows] == ["reverse"]


def test_functions_that_insist_on_float32_are_compared_in_it():
    f = lambda x: jax.lax.scan(lambda c, _: (c * jnp.float32(1.5), None), jnp.asarray(x, jnp.float32), length=2)[0]
    rows = always(gl.compare(f, X, repeats=1))
    assert {(row.status, row.error) for row in rows} == {("ok", None)}
    assert "cannot run in float64" in rows[0].reason


def test_kinks_off_the_point_raise_no_alarm():
    rows = gl.compare(lambda x: jnp.sum(jnp.abs(x - 0.5)), jnp.linspace(-1.0, 1.0, 7), of="gradient", repeats=1).rows
    assert {row.status for row in rows} == {"ok"}


def test_large_and_small_inputs_raise_no_alarm():
    cubes = lambda x, size: jnp.sum((x / size) ** 3)
    for size in (1e-6, 1.0, 1e4):
        result = gl.compare(cubes, size * X, size, of="gradient", repeats=1)
        assert {row.status for row in result.rows} == {"ok"}, result


def test_results_are_json():
    content = json.loads(json.dumps(gl.compare(CUBE, X, of="hvp", repeats=1).to_dict()))
    assert content["of"] == "hvp"
    assert {"mode", "status", "seconds", "peak_bytes", "error", "reason"} <= set(content["rows"][0])


def test_text_and_html_name_every_mode_and_load_nothing():
    result = gl.compare(CUBE, X, of="hessian", repeats=1)
    page = result.to_html()
    for row in result.rows:
        assert row.mode in str(result)
        assert row.mode in page
    assert "<script" not in page
    assert 'src="' not in page
    assert "<table" in result._repr_html_()


def test_html_escapes_names():
    def f(x):
        return jnp.sin(x)

    f.__name__ = "<img>"
    assert "<img>" not in gl.compare(f, X, repeats=1).to_html()


def test_plot_has_one_point_a_mode():
    result = gl.compare(CUBE, X, of="hessian", repeats=1)
    assert len(result.plot().collections) == sum(row.seconds is not None for row in result.rows) > 3


def test_comparing_leaves_the_precision_as_it_was():
    gl.compare(CUBE, X, repeats=1)
    assert jnp.ones(()).dtype == jnp.float32


@pytest.mark.parametrize("name", ["softplus_sum", "kepler", "broyden_tridiagonal"])
def test_problems_agree_with_their_record(name):
    problem = problems.get(name)
    f, args = problem.build(size=6)
    rows = by_mode(gl.compare(f, *args, of=problem.of[0], repeats=1))
    for mode in set(rows) - set(SOMETIMES):
        row = rows[mode]
        assert row.status == ("unsupported" if mode in problem.unsupported else "ok"), row


def test_hvp_direction_is_not_zero():
    result = gl.compare(CUBE, X, of="hvp", repeats=1)
    assert np.abs(result.function(X, jnp.ones(5))).max() > 0

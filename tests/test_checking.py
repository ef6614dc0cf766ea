"""check raises no false alarm, misses no defect, names the kind and the place, and knows its own power."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, each_problem
from defects import MATRIX, RIGHT, SECOND, WRONG, X, backward, forward
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradlab as gl
from gradlab import check, errors


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_derivative_is_ok(name):
    f, args = RIGHT[name]
    result = check(f, *args)
    assert result.ok, result
    assert result.power < 0.1


@pytest.mark.parametrize("name", WRONG)
def test_a_defect_gets_its_verdict(name):
    f, args, verdict = WRONG[name]
    result = check(f, *args)
    assert result.verdict == verdict, result
    assert result.findings[0].kind == verdict
    with pytest.raises(AssertionError, match=f": {verdict}"):
        result.raise_if_failed()


@pytest.mark.parametrize("name", SECOND)
def test_a_second_derivative_that_is_wrong_is_found_at_order_two_alone(name):
    assert check(SECOND[name], X).ok
    result = check(SECOND[name], X, order=2)
    assert result.verdict == "second" and result.findings[0].order == 2


@pytest.mark.parametrize("name", ["elementwise", "scan", "product of matrices", "forward only", "complex"])
def test_a_right_second_derivative_is_ok(name):
    f, args = RIGHT[name]
    assert check(f, *args, order=2).ok


@pytest.mark.thorough
@each_problem()
def test_the_problems_of_the_table_are_ok(problem):
    f, args = drawn(problem, 4)
    result = check(f, *args)
    assert result.ok, result


def test_a_single_wrong_number_is_named():
    f, args, _ = WRONG["one of ten thousand"]
    assert check(f, *args).findings[0].where == "args[0][7777]"


def test_the_path_of_a_wrong_leaf_is_named():
    rule = lambda p, w: {"good": w * 2 * p["good"], "bad": w * p["bad"]}
    f = backward(lambda p: jnp.sum(p["good"] ** 2) + jnp.sum(p["bad"] ** 2), rule)
    where = check(f, {"good": jnp.ones(3), "bad": jnp.ones((2, 2))}).findings[0].where
    assert where.startswith("args[0]['bad'][")


def test_a_kink_says_which_slope_the_rule_returned():
    message = check(jnp.abs, 0.0).findings[0].message
    assert "to the right" in message and "to the left" in message and "The rule returns" in message


def test_a_missing_mode_is_information():
    f, args = RIGHT["forward only"]
    result = check(f, *args)
    assert [(finding.kind, finding.mode) for finding in result.findings] == [("unsupported", "reverse")]


def planted(mode, error):
    """The sum of cubes of a leaf, and of the sines of another, with an error in the derivative by the first."""
    slope = lambda p: (3 * p[0] ** 2 + error, jnp.cos(p[1]))
    value = lambda p: jnp.sum(p[0] ** 3) + jnp.sum(jnp.sin(p[1]))
    if mode == "reverse":
        return backward(value, lambda p, w: tuple(w * s for s in slope(p)))
    return forward(value, lambda p, t: sum(jnp.vdot(a, b) for a, b in zip(slope(p), t, strict=True)))


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_an_error_of_twice_the_power_is_seen_in_99_of_100_tries(mode):
    point = (np.linspace(0.3, 1.4, 40), np.linspace(-1, 1, 7))
    power, size = check(planted(mode, 0.0), point).power, np.linalg.norm(3 * point[0] ** 2 * point[0])
    random, missed = np.random.default_rng(0), 0
    for seed in range(50):
        error = random.normal(size=40)
        error *= 2 * power * size / np.linalg.norm(error * point[0])
        missed += check(planted(mode, jnp.asarray(error)), point, key=jax.random.key(seed)).verdict != "wrong"
    assert power < 1e-3
    assert missed == 0  # with both modes, at most 1 of 100


PIECES = {
    "sin": jnp.sin,
    "tanh": jnp.tanh,
    "exp": lambda x: jnp.exp(-x),
    "square": jnp.square,
    "sum": lambda x: x + x.sum(),
    "product": lambda x: x * jnp.roll(x, 1),
    "line": lambda x: 2 * x - 0.3,
}


def with_factor(piece, factor, mode):
    """A piece whose derivative is off by a factor, in a rule of its own."""
    if mode == "reverse":
        return backward(lambda x: piece(x), lambda x, w: factor * jax.vjp(piece, x)[1](w)[0])
    return forward(lambda x: piece(x), lambda x, t: factor * jax.jvp(piece, (x,), (t,))[1])


@pytest.mark.thorough
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    names=st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=4),
    place=st.integers(0, 3),
    factor=st.sampled_from([1, 0, -1, 1.001, 2]),
    mode=st.sampled_from(["forward", "reverse"]),
    seed=st.integers(0, 3),
)
def test_a_wrong_factor_anywhere_in_a_composition_is_seen(names, place, factor, mode, seed):
    pieces = [PIECES[name] for name in names]
    pieces[place % len(pieces)] = with_factor(pieces[place % len(pieces)], factor, mode)

    def f(x):
        for piece in pieces:
            x = piece(x)
        return x

    x = np.random.default_rng(seed).uniform(0.2, 1.2, 4).astype(np.float32)
    result = check(f, x)
    assert result.verdict == ("ok" if factor == 1 else "wrong"), result


def test_what_stop_gradient_passes_on_may_count_as_constant():
    stop = jax.lax.stop_gradient
    inside_scan = lambda x: jax.lax.scan(lambda c, _: (c * stop(jnp.sin(c)), c), x, length=3)[1]
    for f in (lambda x: x * stop(x**2), jax.jit(lambda x: jnp.sin(x * stop(x))), inside_scan):
        assert check(f, X).verdict == "wrong"
        assert check(f, X, allow_stop_gradient=True).ok
    wrong = lambda x: stop(x) * backward(jnp.sin, lambda x, w: w)(x)
    assert check(wrong, X, allow_stop_gradient=True).verdict == "wrong"


def test_indices_of_numpy_do_not_cost_the_float64_reference():
    tokens = np.array([1, 2, 0, 1])
    result = check(lambda p, tokens: jnp.sin(p["table"][tokens] @ p["out"]), {"table": MATRIX, "out": X[:4]}, tokens)
    assert result.ok and result.power < 1e-3


def test_a_leaf_of_little_effect_is_not_drowned():
    f = lambda p, factor: jnp.sin(p["a"]).sum() + 1e-6 * with_factor(jnp.sin, factor, "forward")(p["b"]).sum()
    p = {"a": X, "b": X}
    assert check(lambda p: f(p, 1.0), p).ok
    assert check(lambda p: f(p, 1.01), p).findings[0].where.startswith("args[0]['b']")


def test_many_leaves_are_moved_in_groups_and_a_wrong_one_is_named():
    rule = lambda p, w: {k: w * jnp.cos(v) * (2 if k == "p33" else 1) for k, v in p.items()}
    f = backward(lambda p: sum(jnp.sin(v).sum() for v in p.values()), rule)
    p = {f"p{i}": X + i for i in range(40)}
    result = check(f, p)
    assert result.verdict == "wrong" and result.findings[0].where.startswith("args[0]['p33']")


def test_more_outputs_than_memory_likes_are_looked_at_through_sums():
    f = lambda x: jnp.sin(x.sum() * jnp.linspace(0, 1, 100_000))
    assert check(f, X).ok


def test_a_loop_that_ends_nowhere_else_is_not_run_far_away():
    f = lambda x: jax.lax.while_loop(lambda c: c < 30.0, lambda c: c * x, x)
    assert check(f, np.float32(1.2)).ok


def test_a_function_that_is_steered_by_a_value_is_named():
    with pytest.raises(errors.ArgumentError, match=r"cannot be traced.*jnp\.where"):
        check(lambda x: x if x > 0 else -x, 1.0)


def test_the_same_key_gives_the_same_check():
    f, args, _ = WRONG["factor"]
    assert check(f, *args, key=jax.random.key(3)).to_dict() == check(f, *args, key=jax.random.key(3)).to_dict()


def test_tol_forgives_what_is_smaller():
    f, args, _ = WRONG["a thousandth"]
    assert check(f, *args, tol=1e-2).ok


def test_the_working_precision_alone_can_be_asked_for():
    f, args = RIGHT["elementwise"]
    result = check(f, *args, float64=False)
    assert result.ok and result.power > check(f, *args).power


def test_precision_is_left_as_it_was_whatever_raises():
    def f(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        check(f, X)
    assert jnp.ones(()).dtype == jnp.float32


def test_precision_is_left_as_it_was_by_a_rule_that_raises():
    def rule(x, w):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        check(backward(lambda x: x, rule), X)
    assert jnp.ones(()).dtype == jnp.float32


def test_float64_that_is_on_already_is_no_hindrance():
    with jax.enable_x64(True):
        assert check(jnp.sin, jnp.linspace(0.0, 1.0, 3)).ok


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: check(3.0, X), TypeError, "takes a function"),
        (lambda: check(jnp.sin, X, order=3), ValueError, "order"),
        (lambda: check(jnp.sin, X, directions=0), ValueError, "directions"),
        (lambda: check(jnp.sin, X, tol=2), ValueError, "tol"),
        (lambda: check(jnp.sin, X, key=3), ValueError, "random key"),
        (lambda: check(jnp.sin), ValueError, "hold nothing"),
        (lambda: check(lambda n: 1.0 * n, 3), ValueError, "nothing to differentiate by: the arguments hold int"),
        (lambda: check(jnp.argmax, X), TypeError, "int32"),
    ],
)
def test_bad_input_has_an_error_of_its_own(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, errors.GradlabError)


def test_results_are_json_and_text():
    f, args, _ = WRONG["factor"]
    result = check(f, *args)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=True))
    assert content["verdict"] == "wrong" and content["findings"][0]["where"].startswith("args[0]")
    assert "1.5 times it" in str(result) and "wrong" in repr(result)
    assert "<li>wrong at args[0]" in result._repr_html_()


def test_a_million_inputs_are_checked_in_a_few_evaluations():
    calls = []

    def f(x):
        calls.append(1)
        return jnp.sum(jnp.sin(x) ** 2)

    assert check(f, np.linspace(0.1, 3, 1_000_000, dtype=np.float32), directions=1).ok
    assert len(calls) < 40  # traces and eager calls; a loop over coordinates would be a million


def test_check_is_public():
    assert gl.check is check


def test_a_nan_carries_the_line_that_made_it_and_the_cure():
    def f(x):
        roots = jnp.sqrt(x)
        return jnp.sum(jnp.where(x > 0, roots, 0.0))

    finding = gl.check(f, jnp.array([0.0, 2.0])).findings[0]
    line = f.__code__.co_firstlineno + 1
    assert finding.kind == "nan" and finding.source.endswith(f"test_checking.py:{line}")
    assert "pullback of sqrt" in finding.message and "put a where on both sides" in finding.message


def test_a_nan_of_forward_mode_alone_has_its_line_too():
    def body(state):
        count, x = state
        square = jnp.sqrt(x**4)
        return count + 1, square

    finding = gl.check(lambda x: jax.lax.while_loop(lambda s: s[0] < 1, body, (0, x))[1].sum(), X - X[0]).findings[0]
    assert (finding.kind, finding.mode) == ("nan", "forward")
    assert finding.source.endswith(f":{body.__code__.co_firstlineno + 2}")


def test_a_slope_of_zero_says_where_the_way_was_cut():
    def f(p):
        kept = jnp.sin(p["a"])
        cut = jax.lax.stop_gradient(p["b"])
        return jnp.sum(kept) + jnp.sum(cut**2)

    check = gl.check(f, {"a": X, "b": X})
    line = f.__code__.co_firstlineno + 2
    assert check.verdict == "wrong"
    for finding in check.findings:
        assert finding.where.startswith("args[0]['b']") and finding.source.endswith(f":{line}")
        assert "stop_gradient cuts the path" in finding.message

"""Judging derivatives: a right one passes at any scale, a wrong one never does, whichever mode it came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab import reference, trees

X = jnp.linspace(0.3, 1.4, 4)
FIELD = lambda x: jnp.stack([jnp.sin(x).sum(), jnp.prod(x), x[0] ** 3])


def derivative(f, of, mode):
    return getattr(gl, of)(f, mode=mode)


def judged(f, x, of, results):
    return reference.judge(f, (x,), of, {mode: lambda x, r=r: r for mode, r in results.items()}, derivative)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_a_right_result_is_right_at_any_scale(scale):
    f = lambda x: FIELD(x / scale)
    results = {mode: gl.jacobian(f, mode=mode)(X * scale) for mode in ("forward", "reverse")}
    assert all(right for _, right, _ in judged(f, X * scale, "jacobian", results).values())


@pytest.mark.parametrize("where", [(0, 0), (1, 2), (2, 3)])
def test_one_wrong_entry_is_found(where):
    jac = np.array(gl.jacobian(FIELD)(X))
    jac[where] += 0.1
    error, right, note = judged(FIELD, X, "jacobian", {"forward": jac})["forward"]
    assert not right and error > 0.01 and "float64" in note


@pytest.mark.parametrize("first", ["forward", "reverse"])
def test_the_wrong_one_of_two_is_named_whichever_comes_first(first):
    """A custom_vjp that lies has no forward mode, so the lie is planted where each mode alone sees it."""
    honest = gl.jacobian(FIELD, mode="forward")(X)
    results = {"forward": honest, "reverse": honest}
    results[first] = 1.5 * honest
    verdicts = judged(FIELD, X, "jacobian", dict(sorted(results.items(), key=lambda item: item[0] != first)))
    assert {mode: right for mode, (_, right, _) in verdicts.items()} == {
        "forward": first != "forward",
        "reverse": first != "reverse",
    }


def test_all_modes_wrong_alike_are_refuted_by_values():
    @jax.custom_jvp
    def f(x):
        return jnp.sin(x).sum()

    f.defjvp(lambda p, t: (f(*p), 2 * jnp.vdot(jnp.cos(p[0]), t[0])))
    _, right, note = judged(f, X, "gradient", {"reverse": jax.grad(f)(X)})["reverse"]
    assert not right and "differences" in note


def test_nothing_to_judge_is_no_verdict():
    assert judged(FIELD, X, "jacobian", {}) == {}


@pytest.mark.parametrize("of", ["hessian", "laplacian"])
def test_second_derivatives_are_judged(of):
    f = lambda x: jnp.sum(jnp.sin(x)) * x[0]
    right = getattr(gl, of)(f)(X)
    mode = gl.modes(of)[0]
    assert judged(f, X, of, {mode: right})[mode][1]
    assert not judged(f, X, of, {mode: 1.2 * right})[mode][1]


CANCELLING = {
    "softmax": lambda x: jax.nn.softmax(x).sum(),
    "unit_length": lambda x: jnp.linalg.norm(x / jnp.linalg.norm(x)),
    "value_too": lambda x: jax.nn.logsumexp(x - jax.nn.logsumexp(x)),
}


def programs(f, of):
    return {mode: jax.jit(derivative(f, of, mode)) for mode in gl.modes(of) if mode not in ("auto", "sparse", "waist")}


@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize("of", ["gradient", "hessian", "laplacian"])
def test_a_derivative_that_is_lost_in_rounding_is_not_wrong(name, of):
    """It is zero, float32 leaves 1e-8 of it and float64 1e-17: by its largest entry, all modes are far off."""
    f = CANCELLING[name]
    verdicts = reference.judge(f, (X,), of, programs(f, of), derivative)
    assert all(right for _, right, _ in verdicts.values())
    assert all("lost in rounding" in note for error, _, note in verdicts.values() if error > 1)


@pytest.mark.parametrize("name", CANCELLING)
def test_a_wrong_rule_is_not_excused_where_the_derivative_cancels(name):
    f = CANCELLING[name]
    lying = lambda x: jax.grad(f)(x) + 1e-5 * jnp.cos(x)
    honest = programs(f, "gradient")
    verdicts = reference.judge(f, (X,), "gradient", honest | {"forward": lying}, derivative)
    assert not verdicts.pop("forward")[1]
    assert all(right for _, right, _ in verdicts.values())


@pytest.mark.parametrize("others", [("reverse",), ("reverse", "checkpoint")])
def test_a_mode_that_loses_more_than_the_others_is_not_excused(others):
    f = lambda x: jnp.sin(x).sum()
    unstable = lambda x: jax.grad(f)(x) + (x * 1e6 % 1.0)
    honest = {mode: program for mode, program in programs(f, "gradient").items() if mode in others}
    verdicts = reference.judge(f, (X,), "gradient", honest | {"forward": unstable}, derivative)
    assert {mode for mode, (_, right, _) in verdicts.items() if not right} == {"forward"}


def test_an_entry_beside_a_kink_excuses_no_other():
    near = X[0] * (1 + 1e-7)
    f = lambda x: jnp.concatenate([jnp.abs(x[:1] - near), jnp.sin(x)])
    jac = np.array(gl.jacobian(f)(X))
    jac[3, 2] += 0.1
    lying = lambda x: gl.jacobian(f)(x) + (jac - gl.jacobian(f)(X))
    assert not reference.judge(f, (X,), "jacobian", {"forward": lying}, derivative)["forward"][1]


def test_precision_is_left_as_it_was():
    judged(FIELD, X, "jacobian", {"forward": gl.jacobian(FIELD)(X)})
    assert jnp.ones(()).dtype == jnp.float32


def test_a_right_hessian_beside_a_kink_is_not_refuted():
    """At two thirds of a step, a kink changes the second differences over the step, and over two of it, alike."""
    x = np.float32([0.5])
    v = np.asarray(trees.random_like(1, x), float)
    kink = x + v * (2 / 3) * np.finfo(float).eps ** 0.25
    f = lambda x: jnp.sum(x**2 + np.sign(v) * jnp.maximum(np.sign(v) * (x - kink), 0.0))
    hessian = jax.hessian(f)(x)
    verdict = lambda given: judged(f, x, "hessian", {"forward_over_reverse": given})["forward_over_reverse"]
    assert verdict(hessian)[1] and not verdict(2 * hessian)[1]


KINKS = {
    "relu": lambda x: jnp.maximum(x - X, 0.0) + x**2,
    "abs_in_a_sum": lambda x: jnp.abs(x - X).sum() + jnp.sin(x).sum(),
    "one_of_many": lambda x: jnp.concatenate([jnp.sin(x), jnp.abs(x[:1] - X[0])]),
    "crossing": lambda x: jnp.maximum(x[0] - X[0], x[1] - X[1]) * jnp.ones(3),
}


@pytest.mark.parametrize("name", KINKS)
def test_a_kink_at_the_point_is_told_and_refutes_nothing(name):
    results = {mode: gl.jacobian(KINKS[name], mode=mode)(X) for mode in ("forward", "reverse")}
    for _, right, note in judged(KINKS[name], X, "jacobian", results).values():
        assert right and "kink" in note


def test_what_is_wrong_beside_a_kink_is_still_found():
    f = KINKS["one_of_many"]
    jac = np.array(gl.jacobian(f)(X))
    jac[1, 1] += 0.1
    assert not judged(f, X, "jacobian", {"forward": jac})["forward"][1]

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    sine.defjvp(lambda p, t: (sine(*p), 2 * t[0] * jnp.cos(p[0])))
    lying = lambda x: jnp.concatenate([sine(x), jnp.abs(x[:1] - X[0])])
    assert not judged(lying, X, "jacobian", {"forward": gl.jacobian(lying)(X)})["forward"][1]


def test_a_smooth_function_has_no_kink_however_curved():
    f = lambda x: jnp.exp(8 * x) + 1e6 * (x - X) ** 2
    _, right, note = judged(f, X, "jacobian", {"forward": gl.jacobian(f)(X)})["forward"]
    assert right and not note


def test_values_that_are_rounded_are_no_kink():
    f = lambda x: jnp.sin(x).astype(jnp.float32).astype(x.dtype)
    _, right, note = judged(f, X, "jacobian", {"forward": gl.jacobian(f)(X)})["forward"]
    assert right and "kink" not in note


@pytest.mark.parametrize("frequency", [1e6, 1e7, 1e8])
def test_values_that_oscillate_within_a_step_refute_nothing(frequency):
    f = lambda x: jnp.sin(frequency * x)
    honest = programs(f, "jacobian")
    verdicts = reference.judge(f, (X,), "jacobian", honest, derivative)
    assert all(right and "within the shortest step" in note for _, right, note in verdicts.values())
    lying = lambda x: 100 * jax.jacobian(f)(x)
    assert not reference.judge(f, (X,), "jacobian", honest | {"forward": lying}, derivative)["forward"][1]


def test_a_constant_is_not_said_to_oscillate():
    f = lambda x: jnp.sum(jax.nn.softmax(x)) * jnp.ones(3)
    assert all(
        right and "shortest step" not in note
        for _, right, note in reference.judge(f, (X,), "jacobian", programs(f, "jacobian"), derivative).values()
    )

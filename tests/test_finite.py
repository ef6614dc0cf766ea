"""Derivatives from values: right within their own uncertainty, at any scale, and honest where values do not tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import finite

RIGHT = {
    "exp": (jnp.exp, np.exp, 1.0),
    "large input": (jnp.sin, np.cos, 1e6),
    "small input": (jnp.sin, np.cos, 1e-8),
    "fast oscillation": (lambda x: jnp.sin(1000 * x), lambda x: 1000 * np.cos(1000 * x), 1.0),
    "large value": (jnp.exp, np.exp, 300.0),
    "square at zero": (jnp.square, lambda x: 2 * x, 0.0),
    "root near its edge": (jnp.sqrt, lambda x: 0.5 / np.sqrt(x), 1e-8),
    "arcsin near its edge": (jnp.arcsin, lambda x: 1 / np.sqrt((1 - x) * (1 + x)), 1 - 1e-6),
    "logarithm near its edge": (lambda x: x * jnp.log(x), lambda x: np.log(x) + 1, 1e-10),
    "at the end of its domain": (lambda x: x**1.5, lambda x: 0.0, 0.0),
    "kink close by": (lambda x: jnp.abs(x - 1.001), lambda x: -1.0, 1.0),
    "kink very close by": (lambda x: jnp.maximum(x - 1 + 1e-9, 0), lambda x: 1.0, 1.0),
    "saturated": (jnp.tanh, lambda x: 0.0, 30.0),
    "constant": (lambda x: 0 * x + 3, lambda x: 0.0, 2.0),
    "steps": (jnp.round, lambda x: 0.0, 0.3),
    "fine steps": (lambda x: jnp.floor(100 * x) / 100, lambda x: 0.0, 0.505),
    "cancellation": (lambda x: (x + 1e8) - 1e8, lambda x: 1.0, 1.0),
    "noise": (lambda x: x + 1e-9 * jnp.sin(1e13 * x), lambda x: 1.0, 1.0),
    "noise above smoothness": (lambda x: (1 - jnp.cos(x)) / x**2, lambda x: -x / 12, 1e-4),
    "float32 inside": (lambda x: jnp.sin(x.astype(jnp.float32)) * jnp.ones_like(x), np.cos, 1.0),
}
SMOOTH = ("exp", "fast oscillation", "large value", "root near its edge", "small input")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def slope(f, x):
    """The slopes along a step of x's own size, and that size."""
    x = jnp.asarray(x, float)
    v = jnp.asarray(finite.scale(np.asarray(x)))
    return finite.directional(f, x, v), float(v)


@pytest.mark.parametrize("name", RIGHT)
def test_the_derivative_is_within_the_uncertainty(name):
    f, derivative, x = RIGHT[name]
    found, size = slope(f, x)
    best, exact = found.best, size * derivative(x)
    assert abs(best.value[0] - exact) <= best.uncertainty[0] + 1e-15 * abs(exact)
    assert not found.kink.any()


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_are_known_to_nine_digits(name):
    found, _ = slope(*RIGHT[name][::2])
    assert found.best.uncertainty[0] < 1e-9 * abs(found.best.value[0])


@pytest.mark.parametrize("f", [jnp.abs, jax.nn.relu, lambda x: jnp.maximum(x, 3 * x), lambda x: jnp.abs(x) ** 1.0])
def test_a_kink_shows_in_the_two_slopes(f):
    found, _ = slope(f, 0.0)
    assert found.kink.all()
    assert found.right.value[0] - found.left.value[0] == pytest.approx(float(f(1.0) + f(-1.0)), rel=1e-9)


@pytest.mark.parametrize("f", [lambda x: x * jnp.abs(x), jax.nn.softplus, lambda x: jax.nn.relu(x) ** 2])
def test_a_smooth_join_is_no_kink(f):
    assert not slope(f, 0.0)[0].kink.any()


@pytest.mark.parametrize("f", [jnp.sqrt, jnp.cbrt, lambda x: jnp.abs(x) ** 0.5, jnp.log])
def test_a_slope_without_bound_is_not_given_a_value(f):
    assert slope(f, 0.0)[0].best.uncertainty[0] == np.inf


def test_a_jump_is_seen_from_its_side():
    found, _ = slope(jnp.floor, 2.0)
    assert found.right.value[0] == 0 and found.left.uncertainty[0] == np.inf


def test_a_function_that_is_not_finite_here_has_no_derivative():
    assert slope(lambda x: x * jnp.nan, 1.0)[0].best.uncertainty[0] == np.inf


def test_noise_that_is_known_beforehand_widens_the_uncertainty():
    x = jnp.asarray(1.0, float)
    fine, coarse = (finite.directional(jnp.exp, x, x, eps=eps).best.uncertainty[0] for eps in (1e-16, 1e-7))
    assert coarse > 1e3 * fine


def test_outputs_are_judged_alone():
    f = lambda x: {"a": jnp.stack([jnp.exp(x), jnp.abs(x - 1)]), "b": 1e-9 * x, "n": jnp.argmax(jnp.stack([x, x]))}
    found, _ = slope(f, 1.0)
    assert found.kink.tolist() == [False, True, False]
    np.testing.assert_allclose(found.best.value[[0, 2]], [np.e, 1e-9], rtol=1e-10)


def test_complex_outputs_are_two_numbers():
    best = slope(lambda x: jnp.exp(1j * x), 0.5)[0].best
    np.testing.assert_allclose(best.value, 0.5 * np.array([-np.sin(0.5), np.cos(0.5)]), rtol=1e-10)


def test_a_step_is_of_the_size_of_the_number_that_it_moves():
    for x in ([1e-8, -2e-8], [1e6], [1e300, 2e300]):
        np.testing.assert_allclose(finite.scale(np.array(x)), np.abs(x))
    np.testing.assert_array_equal(finite.scale(np.zeros(2)), 1)
    assert finite.scale(np.array([0.0, 1.0]))[0] == pytest.approx(0.1 / np.sqrt(2))


def test_a_number_that_is_small_beside_its_leaf_may_take_a_longer_step_within_bounds():
    small, large = finite.scale(np.array([1e-3, 1.0]), own=False)
    assert small == pytest.approx(0.1 / np.sqrt(2), rel=1e-5) and large == 1.0
    assert finite.scale(np.array([1e-20, 1.0]), own=False)[0] == pytest.approx(1e-16)


def test_large_functions_are_evaluated_step_by_step_with_the_same_result(monkeypatch):
    x = jnp.linspace(0.1, 1.0, 50)
    f = lambda x: jnp.cumsum(jnp.sin(x))
    batched = np.asarray(finite.along(f, x, x))
    monkeypatch.setattr(finite, "MOST_VALUES", 1)
    np.testing.assert_allclose(np.asarray(finite.along(f, x, x)), batched, rtol=1e-13)


PIECES = (jnp.sin, jnp.tanh, lambda x: jnp.exp(-x), lambda x: x**2, lambda x: jnp.log1p(x**2), lambda x: 3 * x - 1)


def test_the_uncertainty_holds_on_random_compositions():
    """Against forward mode in float64; both may round, so a few eps of the value are allowed to both."""
    random = np.random.default_rng(0)
    missed, known = [], []
    for _ in range(60):
        chosen = [PIECES[i] for i in random.integers(len(PIECES), size=4)]

        def f(x, chosen=chosen):
            for piece in chosen:
                x = piece(x)
            return x

        x = jnp.asarray(random.normal(size=8) * 10.0 ** random.integers(-3, 3))
        v = jnp.asarray(finite.scale(np.asarray(x)) * random.normal(size=8))
        found = finite.directional(f, x, v)
        exact = np.asarray(jax.jvp(f, (x,), (v,))[1])
        gap = np.abs(found.best.value - exact)
        known += list(np.isfinite(found.best.uncertainty))
        missed += list(gap > found.best.uncertainty + 1e-14 * np.abs(exact))
        assert not found.kink.any()
    assert not np.any(missed)
    assert np.mean(known) > 0.9

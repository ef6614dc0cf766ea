"""Curvature from products with vectors agrees with the matrix, within the error that it tells itself."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from gradlab import curvature
from gradlab.curvature import Estimate, diagonal, gauss_newton, sharpness, spectral_density, top_eigenvalues, trace
from gradlab.errors import (
    ArgumentError,
    EmptyInputError,
    NotDifferentiableError,
    NotScalarError,
    OptionError,
    ShapeError,
    StructureError,
    UnsupportedModeError,
)
from gradlab.operators import hvp

KEY = jax.random.key(0)
SIZE = 512
RANDOM = np.random.default_rng(0)
SPECTRA = {
    "flat": np.linspace(-1, 2, SIZE),
    "decaying": np.exp(-np.arange(SIZE) / 50),
    "two clusters": np.repeat([-1.0, 4.0], [200, 312]),
    "semicircle": np.sin(np.linspace(-1, 1, SIZE)) * np.sqrt(1 + np.linspace(0, 1, SIZE)),
    "bulk and spikes": np.concatenate([0.1 * RANDOM.standard_normal(500), np.linspace(3, 10, 12)]),
}


def semicircle():
    """The eigenvalues of a random symmetric matrix of independent entries."""
    entries = RANDOM.standard_normal((SIZE, SIZE))
    return np.linalg.eigvalsh((entries + entries.T) / np.sqrt(8 * SIZE))


SPECTRA["semicircle"] = semicircle()


def symmetric(eigenvalues, dtype=jnp.float32, seed=1):
    """A dense matrix with these eigenvalues."""
    count = len(eigenvalues)
    axes, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((count, count)))
    return jnp.asarray((axes * eigenvalues) @ axes.T, dtype)


def bowl(matrix):
    """The quadratic function that has this Hessian."""
    return lambda x: x @ matrix @ x / 2


@cache
def of(estimator, keys=None, **options):
    """An estimator of a matrix, from the matrix and a key (or so many that come of it), compiled once for all tests."""

    def run(matrix, key):
        return estimator(bowl(matrix), jnp.zeros(len(matrix), matrix.dtype), key=key, **options)

    if keys is None:
        return jax.jit(run)
    return jax.jit(lambda matrix, key: jax.vmap(partial(run, matrix))(jax.random.split(key, keys)))


density_of = of(spectral_density)


def net(params, images):
    """Three outputs of two layers, for a pytree of 5 · 4 + 4 + 4 · 3 + 1 numbers."""
    hidden = jnp.tanh(images @ params["in"] + params["shift"])
    return hidden @ params["out"] * params["scale"]


def parameters(dtype):
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), shape, dtype)
    return {"in": draw(1, 5, 4), "shift": draw(2, 4), "out": draw(3, 4, 3), "scale": jnp.asarray(0.7, dtype)}


def convex(outputs):
    return jnp.mean(jax.nn.logsumexp(outputs, axis=-1) - outputs[:, 0])


def dense(product, x):
    """The matrix of a product, column by column."""
    flat, back = jax.flatten_util.ravel_pytree(x)
    column = lambda v: jax.flatten_util.ravel_pytree(product(x, back(v)))[0]
    return jax.jit(jax.vmap(column))(jnp.eye(len(flat), dtype=flat.dtype)).T


@jax.custom_vjp
def backward_only(x):
    return jnp.sin(x)


backward_only.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda slope, w: (w * slope,))


def forward_only(x):
    """x⁸ by a loop of a length that reverse mode cannot know."""
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] ** 2), (0, x))[1]


@pytest.mark.parametrize("name", SPECTRA)
def test_the_spectral_density_is_near_the_eigenvalues(name):
    truth, matrix = SPECTRA[name], symmetric(SPECTRA[name])
    distances = []
    for seed in range(4):
        found = density_of(matrix, jax.random.key(seed))
        assert found.nodes.shape == found.weights.shape == (16, 64)
        np.testing.assert_allclose(jnp.sum(found.weights, axis=1), 1, rtol=1e-5)
        distances.append(wasserstein_distance(truth, np.ravel(found.nodes), None, np.ravel(found.weights)))
    # Chance alone moves √(2 p (1 − p) / (n probes)) of the mass between two clusters: 0.8% of it here.
    assert np.sum(np.array(distances) < 0.02 * np.ptp(truth)) >= 3
    assert np.max(distances) < 0.03 * np.ptp(truth)


def test_a_density_is_smoothed_over_its_width_and_has_mass_one():
    truth = SPECTRA["bulk and spikes"]
    found = density_of(symmetric(truth), KEY)
    grid = np.linspace(-3, 13, 4000).reshape(2, 2000)
    for width in (None, 0.3):
        share = jax.jit(partial(found.density, width=width))(grid)
        assert share.value.shape == share.standard_error.shape == grid.shape
        assert float(np.trapezoid(np.ravel(share.value), np.ravel(grid))) == pytest.approx(1, abs=1e-3)
    bell = lambda grid: np.mean(np.exp(-(((grid - truth) / 0.3) ** 2) / 2), axis=-1) / (0.3 * np.sqrt(2 * np.pi))
    places = np.array([0.0, 5.0, 10.0])
    share = found.density(places, width=0.3)
    assert np.all(np.abs(share.value - bell(places[:, None])) <= 1e-4 + share.margin(0.999))


def test_means_over_the_spectrum_are_means_over_the_eigenvalues():
    truth = SPECTRA["flat"]
    found = density_of(symmetric(truth), KEY)
    for g in (lambda t: t, jnp.square, jnp.exp, lambda t: jnp.exp(-10 * t**2)):
        estimate = found.mean(g)
        assert abs(float(estimate.value) - float(np.mean(g(truth)))) <= 1e-5 + float(estimate.margin(0.999))


@pytest.mark.parametrize("name", ["flat", "two clusters"])
def test_a_trace_is_within_its_margin_as_often_as_it_says(name):
    matrix = symmetric(SPECTRA[name])
    found = of(trace, keys=100)(matrix, KEY)
    off = np.abs(found.value - jnp.trace(matrix))
    assert np.sum(off <= found.margin(0.99)) >= 95
    assert 90 <= np.sum(off <= found.margin(0.95)) <= 99


def test_a_diagonal_is_within_its_margin_as_often_as_it_says():
    matrix = symmetric(SPECTRA["flat"][::4])
    found = of(diagonal, keys=100)(matrix, KEY)
    off = np.abs(found.value - jnp.diag(matrix))
    assert np.mean(off <= found.margin(0.99)) >= 0.95
    assert 0.90 <= np.mean(off <= found.margin(0.95)) <= 0.99
    assert np.all(np.sum(off <= found.margin(0.99), axis=0) >= 90)


def test_the_error_falls_with_the_root_of_the_number_of_probes():
    matrix = symmetric(SPECTRA["flat"])
    few, many = (of(trace, probes=probes)(matrix, KEY).standard_error for probes in (16, 256))
    assert 2.5 < float(few / many) < 6


def test_a_diagonal_hessian_has_its_trace_and_diagonal_without_error(dtype, same):
    x = {"a": jnp.arange(1, 4, dtype=dtype), "b": jnp.asarray(2, dtype)}
    f = lambda x: jnp.sum(x["a"] ** 3) + x["b"] ** 2
    found = diagonal(f, x, key=KEY)
    same(found.value, {"a": 6 * x["a"], "b": jnp.asarray(2, dtype)})
    same(found.standard_error, jax.tree.map(jnp.zeros_like, x))
    same(trace(f, x, key=KEY), Estimate(jnp.asarray(38, dtype), jnp.asarray(0, dtype), 16))


def test_top_eigenvalues_are_those_of_the_matrix(dtype, same):
    eps = float(jnp.finfo(dtype).eps)
    matrix = symmetric(np.random.default_rng(2).standard_normal(60), dtype)
    values, vectors, residuals = of(top_eigenvalues, count=6)(matrix, KEY)
    same(values, jnp.asarray(np.linalg.eigvalsh(matrix)[::-1][:6], dtype))
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(6), atol=50 * eps)
    assert float(jnp.max(residuals)) < 100 * eps


def test_residuals_bound_the_error_of_eigenvalues_that_have_not_converged():
    truth = SPECTRA["semicircle"]
    values, vectors, residuals = of(top_eigenvalues, count=8, steps=12)(symmetric(truth), KEY)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(8), atol=1e-5)
    assert float(residuals[-1]) > 0.01
    for value, residual in zip(values, residuals, strict=True):
        assert np.min(np.abs(truth - value)) <= residual + 1e-6


@pytest.mark.parametrize("name", ["flat", "decaying", "bulk and spikes"])
@pytest.mark.parametrize("products", [4, 8, 32])
def test_lanczos_is_ahead_of_power_iteration(name, products):
    truth = SPECTRA[name]
    matrix = np.asarray(symmetric(truth))
    found = of(top_eigenvalues, keys=8, steps=products)(jnp.asarray(matrix), KEY)
    v = np.random.default_rng(3).standard_normal((SIZE, 8))
    for _ in range(products):
        v = v / np.linalg.norm(v, axis=0)
        v, powers = matrix @ v, np.sum(v * (matrix @ v), axis=0)
    lanczos, power = (np.median(np.abs(values - np.max(truth))) for values in (found.values[:, 0], powers))
    assert lanczos <= power + 1e-6 * np.max(truth)


def test_sharpness_is_the_largest_eigenvalue_and_sets_the_largest_rate():
    found = sharpness(bowl(jnp.diag(jnp.array([-9.0, 1.0, 4.0]))), jnp.ones(3), key=KEY)
    assert float(found.value) == pytest.approx(4, rel=1e-5) and float(found.largest_rate) == pytest.approx(
        0.5, rel=1e-5
    )
    np.testing.assert_allclose(np.abs(found.direction), [0, 0, 1], atol=1e-5)
    assert float(found.residual) < 1e-5
    assert float(sharpness(lambda x: -jnp.sum(x**2), jnp.ones(3), key=KEY).largest_rate) == np.inf


@pytest.mark.parametrize("steps", [8, 48])
def test_few_different_eigenvalues_are_found_with_their_shares(steps):
    matrix = symmetric(np.repeat([0.0, 1.0, 3.0], [24, 16, 8]))
    found = of(spectral_density, steps=steps)(matrix, KEY)
    assert found.nodes.shape == (16, steps)
    for value, share in ((0, 1 / 2), (1, 1 / 3), (3, 1 / 6)):
        estimate = found.mean(lambda t, value=value: abs(t - value) < 1e-3)
        assert abs(float(estimate.value) - share) <= 1e-6 + float(estimate.margin(0.999))
    assert float(found.mean(lambda t: jnp.min(jnp.abs(t[..., None] - jnp.array([0.0, 1, 3])), -1)).value) < 1e-5


def test_equal_eigenvalues_are_found_as_often_as_they_are_there():
    values, vectors, residuals = of(top_eigenvalues, count=10)(symmetric(np.repeat([0.0, 1, 3], [24, 16, 8])), KEY)
    np.testing.assert_allclose(values, [3] * 8 + [1] * 2, atol=1e-5)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(10), atol=1e-5)
    assert float(jnp.max(residuals)) < 1e-5


def test_no_size_of_the_hessian_is_too_small_or_too_large():
    x = jnp.ones(6)

    @jax.jit
    def run(scale):
        f = lambda x: scale * jnp.sum(jnp.arange(1.0, 7.0) * x**2)
        across = trace(lambda x: scale * x[0] * x[1], x, key=KEY)
        return top_eigenvalues(f, x, key=KEY, count=2), spectral_density(f, x, key=KEY).mean(), across

    for scale in (0.0, 1e-25, 1e25):
        top, mean, across = run(scale)
        np.testing.assert_allclose(top.values, [12 * scale, 10 * scale], rtol=1e-5)
        assert bool(jnp.all(top.residuals <= 1e-5 * scale))
        assert float(mean.value) == pytest.approx(7 * scale, rel=1e-5)
        assert (float(across.standard_error) > 0) == (scale > 0) and bool(jnp.isfinite(across.standard_error))


def test_one_number_has_one_eigenvalue():
    f, x = lambda x: 3 * x**2, 2.0
    assert float(top_eigenvalues(f, x, key=KEY).values[0]) == 6
    found = spectral_density(f, x, key=KEY)
    assert found.nodes.shape == (16, 1) and bool(jnp.all(found.nodes == 6)) and bool(jnp.all(found.weights == 1))
    assert float(trace(f, x, key=KEY).value) == float(diagonal(f, x, key=KEY).value) == 6


def test_gauss_newton_is_the_hessian_of_outer_between_two_jacobians(dtype, same):
    params, images = parameters(dtype), jax.random.normal(jax.random.key(4), (7, 5), dtype)
    f = lambda params: net(params, images)

    @jax.jit
    def expected(params):
        flat, back = jax.flatten_util.ravel_pytree(params)
        jacobian = jax.jacrev(lambda v: jnp.ravel(f(back(v))))(flat)
        middle = jax.hessian(lambda y: convex(y.reshape(7, 3)))(jnp.ravel(f(params)))
        return jacobian.T @ middle @ jacobian

    found = dense(gauss_newton(f, outer=convex), params)
    same(found, expected(params))
    assert float(np.linalg.eigvalsh(found)[0]) > -50 * float(jnp.finfo(dtype).eps)
    assert float(np.linalg.eigvalsh(dense(hvp(lambda params: convex(f(params))), params))[0]) < -1e-3


def test_gauss_newton_of_a_linear_function_is_the_hessian(dtype, same):
    matrix = jax.random.normal(KEY, (4, 6, 3), dtype)
    f = lambda x: {"y": jnp.einsum("bio,i->bo", matrix, x)}
    outer = lambda y: jnp.sum(jax.nn.logsumexp(y["y"], axis=-1) ** 2)
    x = jnp.linspace(0, 1, 6, dtype=dtype)
    same(dense(gauss_newton(f, outer=outer), x), jax.jit(jax.hessian(lambda x: outer(f(x))))(x))


def test_estimators_take_the_gauss_newton_matrix():
    params, images = parameters(jnp.float32), jax.random.normal(jax.random.key(4), (7, 5))
    f, product = lambda params: net(params, images), partial(gauss_newton, outer=convex)
    matrix = np.asarray(dense(product(f), params))
    found = trace(f, params, key=KEY, probes=64, product=product)
    assert abs(float(found.value) - np.trace(matrix)) <= float(found.margin(0.999))
    values, vectors, _ = top_eigenvalues(f, params, key=KEY, count=3, product=product)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[::-1][:3], atol=1e-5)
    assert jax.tree.map(jnp.shape, vectors) == {"in": (3, 5, 4), "shift": (3, 4), "out": (3, 4, 3), "scale": (3,)}
    assert float(jnp.min(spectral_density(f, params, key=KEY, product=product).nodes)) > -1e-5


def test_a_function_with_a_reverse_rule_alone_is_served():
    x, cos = jnp.linspace(0.1, 1, 4), np.cos(np.linspace(0.1, 1, 4))
    f = lambda x: jnp.sum(backward_only(x) ** 2)
    assert float(trace(f, x, key=KEY).value) == pytest.approx(np.sum(4 * cos**2 - 2), rel=1e-5)
    assert float(sharpness(f, x, key=KEY).value) == pytest.approx(np.max(4 * cos**2 - 2), rel=1e-5)
    found = diagonal(backward_only, x, key=KEY, product=partial(gauss_newton, outer=lambda y: jnp.sum(y**2)))
    np.testing.assert_allclose(found.value, 2 * cos**2, rtol=1e-5)


def test_a_function_with_a_forward_rule_alone_has_a_hessian_and_no_gauss_newton_matrix():
    x = jnp.linspace(0.5, 1, 3)
    found = diagonal(lambda x: jnp.sum(forward_only(x)), x, key=KEY)
    np.testing.assert_allclose(found.value, 56 * x**6, rtol=1e-5)
    with pytest.raises(UnsupportedModeError, match="Reverse-mode"):
        diagonal(forward_only, x, key=KEY, product=partial(gauss_newton, outer=jnp.sum))


def test_it_runs_under_jit_and_vmap_over_keys_data_and_points(same):
    tables = jax.random.normal(jax.random.key(1), (3, 100))
    keys = jax.random.split(KEY, 3)
    points = jax.random.normal(jax.random.key(2), (3, 100)) / 10

    def numbers(table, x, key):
        f = lambda x: jnp.sum(jnp.sin(table * x)) + jnp.sum(x) ** 2
        return (
            diagonal(f, x, key=key, probes=4),
            sharpness(f, x, key=key, steps=12),
            spectral_density(f, x, key=key, probes=2, steps=4),
        )

    run = jax.jit(numbers)
    alone = [run(*args) for args in zip(tables, points, keys, strict=True)]
    outside = sharpness(lambda x: jnp.sum(jnp.sin(tables[0] * x)) + jnp.sum(x) ** 2, points[0], key=keys[0], steps=12)
    same(outside, alone[0][1], 1e-4)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    same(jax.jit(jax.vmap(numbers))(tables, points, keys), stacked, 1e-4)


def test_one_key_gives_the_same_bits_and_another_key_others():
    matrix = symmetric(SPECTRA["flat"])
    once, again = (density_of(matrix, key) for key in (KEY, jax.random.key(0)))
    assert bool(jnp.all(once.nodes == again.nodes)) and bool(jnp.all(once.weights == again.weights))
    assert len({np.asarray(row).tobytes() for row in once.weights}) == 16
    keys = (KEY, jax.random.key(0), jax.random.key(1), jax.random.PRNGKey(0))
    once, again, other, legacy = (float(of(trace)(matrix, key).value) for key in keys)
    assert once == again == legacy != other


def test_how_many_probes_are_held_at_one_time_changes_nothing(monkeypatch, same):
    f, x = bowl(symmetric(SPECTRA["flat"][::8])), jnp.zeros(64)
    run = lambda: spectral_density(f, x, key=KEY, probes=6, steps=8)
    together = run()
    monkeypatch.setattr(curvature, "HELD", 64 * 8 * 4)
    same(run(), together, 1e-5)


def test_leaves_keep_their_dtypes_and_vectors_have_room_for_rounding(same):
    x = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones((2, 1)), "number": 1.0}
    f = lambda x: jnp.sum(x["half"] ** 4) + jnp.sum(x["single"] ** 3) + x["number"] ** 2
    found = diagonal(f, x, key=KEY).value
    expected = {"half": jnp.full(3, 12, jnp.bfloat16), "single": jnp.full((2, 1), 6.0), "number": jnp.float32(2)}
    same({name: leaf.astype(jnp.float32) for name, leaf in found.items()}, jax.tree.map(jnp.float32, expected), 1e-2)
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)
    pairs = top_eigenvalues(lambda x: jnp.sum(x**4), jnp.ones(3, jnp.bfloat16), key=KEY)
    assert pairs.vectors.dtype == jnp.bfloat16 and pairs.values.dtype == jnp.float32
    assert float(pairs.values[0]) == pytest.approx(12, rel=1e-2)


def test_a_spectrum_is_drawn_on_a_log_scale_beside_others():
    found = of(spectral_density, probes=4, steps=12)(symmetric(SPECTRA["bulk and spikes"]), KEY)
    ax = found.plot()
    assert ax.get_yscale() == "log" and "eigenvalue" in ax.get_xlabel() and ax.get_legend() is None
    (band,), (line,) = ax.collections, ax.lines
    assert np.all(np.isfinite(line.get_ydata())) and len(band.get_paths()) == 1
    low, high = ax.get_ylim()
    assert 0 < low < 1 / SIZE and high > np.max(line.get_ydata())
    assert found.plot(ax) is ax and len(ax.lines) == 2
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    for place in (0.0, 2.0):
        low, high = curvature.Spectrum(jnp.full((4, 12), place), jnp.full((4, 12), 1 / 12), 4).plot().get_ylim()
        assert 0 < low < high < np.inf


QUARTIC = lambda x: jnp.sum(x**4)
BAD = {
    "one probe": (partial(trace, QUARTIC, jnp.ones(3), key=KEY, probes=1), OptionError, "probes .* at least 2"),
    "one diagonal": (partial(diagonal, QUARTIC, jnp.ones(3), key=KEY, probes=1), OptionError, "probes"),
    "no steps": (partial(spectral_density, QUARTIC, jnp.ones(3), key=KEY, steps=0), OptionError, "steps"),
    "no count": (partial(top_eigenvalues, QUARTIC, jnp.ones(3), key=KEY, count=0), OptionError, "count"),
    "count above steps": (partial(top_eigenvalues, QUARTIC, jnp.ones(3), key=KEY, count=4), OptionError, "count=4"),
    "number for key": (partial(trace, QUARTIC, jnp.ones(3), key=0), OptionError, r"jax.random.key\(0\)"),
    "two keys": (partial(trace, QUARTIC, jnp.ones(3), key=jax.random.split(KEY)), OptionError, "one random key"),
    "integers": (partial(trace, QUARTIC, jnp.arange(3), key=KEY), NotDifferentiableError, "int32"),
    "an integer leaf": (
        partial(sharpness, lambda x: x["a"] ** 2, {"a": 1.0, "b": 2}, key=KEY),
        NotDifferentiableError,
        r"x\['b'\]",
    ),
    "complex numbers": (partial(trace, lambda x: abs(x) ** 2, 1j, key=KEY), NotDifferentiableError, "complex"),
    "nothing": (partial(trace, lambda x: 0.0, {}, key=KEY), EmptyInputError, "empty"),
    "no scalar": (partial(trace, jnp.sin, jnp.ones(3), key=KEY), NotScalarError, r"\(3,\)"),
    "no function": (partial(trace, 3.0, jnp.ones(3), key=KEY), ArgumentError, "f must be a function"),
    "no product": (partial(trace, QUARTIC, jnp.ones(3), key=KEY, product=3), ArgumentError, "product must be"),
    "product of numbers": (
        partial(trace, QUARTIC, jnp.ones(3), key=KEY, product=lambda f: 3),
        ArgumentError,
        r"product\(f\) must be",
    ),
    "too short": (
        partial(trace, QUARTIC, jnp.ones(3), key=KEY, product=lambda f: lambda x, v: v[1:]),
        ShapeError,
        r"product\(f\)\(x, v\) has shape \(2,\)",
    ),
    "another tree": (
        partial(trace, QUARTIC, jnp.ones(3), key=KEY, product=lambda f: lambda x, v: [v]),
        StructureError,
        r"product\(f\)",
    ),
    "a branch": (
        partial(trace, lambda x: x**2 if x > 0 else x, 1.0, key=KEY),
        ArgumentError,
        "f cannot be traced",
    ),
    "no rule at all": (
        partial(trace, lambda x: forward_only(backward_only(x)), 1.0, key=KEY),
        UnsupportedModeError,
        "No mode of hvp",
    ),
    "outer of vectors": (
        partial(trace, jnp.sin, jnp.ones(3), key=KEY, product=partial(gauss_newton, outer=jnp.cos)),
        NotScalarError,
        "outer",
    ),
    "no outer": (partial(gauss_newton, jnp.sin, outer=None), ArgumentError, "outer must be a function"),
    "certainty": (partial(Estimate(1.0, 1.0, 4).margin, 1.0), OptionError, "confidence"),
    "no width": (
        partial(curvature.Spectrum(jnp.ones((2, 1)), jnp.ones((2, 1)), 1).density, 0.0, width=0.0),
        OptionError,
        "width",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_in_words(name):
    call, error, match = BAD[name]
    with pytest.raises(error, match=match):
        call()


def test_where_the_loss_is_nan_no_learning_rate_is_called_safe():
    found = sharpness(lambda x: jnp.sum(jnp.sqrt(x) ** 3), -jnp.ones(2), key=KEY)
    assert jnp.isnan(found.largest_rate)

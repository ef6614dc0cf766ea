"""Each loss has the derivative that is written beside it, is per example, and survives logits of ±1e4 in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import losses
from gradlab.errors import OptionError, ShapeError

ELEMENTWISE = {
    "l2": (losses.l2, losses.l2_derivative),
    "l1": (losses.l1, losses.l1_derivative),
    "huber": (losses.huber, losses.huber_derivative),
    "wide huber": (
        lambda a, b: losses.huber(a, b, delta=2.5),
        lambda a, b: losses.huber_derivative(a, b, delta=2.5),
    ),
    "logistic": (losses.logistic, losses.logistic_derivative),
}
VALUES = [-1e4, -90.0, -3.0, -0.5, 0.0, 1e-4, 0.5, 1.0, 3.0, 90.0, 1e4]


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_the_derivative_beside_a_loss_is_its_derivative(name, target, dtype, same):
    loss, derivative = ELEMENTWISE[name]
    z = jnp.asarray(VALUES, dtype)
    y = jnp.asarray(target, dtype)
    automatic = jax.jit(jax.vmap(jax.grad(loss), (0, None)))(z, y)
    same(automatic, derivative(z, y))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_losses_are_never_negative_and_per_example(name):
    loss, _ = ELEMENTWISE[name]
    z = jnp.asarray(VALUES, jnp.float32)
    values = loss(z[:, None], jnp.array([0.0, 1.0]))
    assert values.shape == (len(VALUES), 2)
    assert bool(jnp.all(values >= 0)) and bool(jnp.all(jnp.isfinite(values)))


def test_huber_is_half_the_square_inside_and_straight_outside():
    assert float(losses.huber(0.5, 0.0)) == pytest.approx(0.125)
    far = [float(losses.huber(x, 0.0, delta=2.0)) for x in (10.0, 11.0, 12.0)]
    assert far[2] - far[1] == far[1] - far[0] == pytest.approx(2.0)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_huber_refuses_a_delta_that_is_not_positive(delta):
    with pytest.raises(OptionError, match="delta"):
        losses.huber(1.0, 0.0, delta=delta)


def test_logistic_loss_of_a_logit_equals_the_cross_entropy_of_its_probability(dtype):
    z = jnp.linspace(-8, 8, 33).astype(dtype)
    p = 1 / (1 + np.exp(-np.asarray(z, np.float64)))
    np.testing.assert_allclose(losses.logistic(z, 1.0), -np.log(p), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(losses.logistic(z, 0.0), -np.log1p(-p), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_cross_entropy_and_its_derivative_agree(scale, dtype, same):
    logits = scale * jax.random.normal(jax.random.key(0), (5, 7), dtype)
    for target in (jnp.arange(5), jax.nn.one_hot(jnp.arange(5), 7, dtype=dtype)):
        value = losses.softmax_cross_entropy(logits, target)
        assert value.shape == (5,)
        assert bool(jnp.all(jnp.isfinite(value)))
        automatic = jax.grad(lambda z, t=target: losses.softmax_cross_entropy(z, t).sum())(logits)
        same(automatic, losses.softmax_cross_entropy_derivative(logits, target))


def test_softmax_cross_entropy_of_equal_logits_is_the_log_of_the_number_of_classes():
    assert float(losses.softmax_cross_entropy(jnp.full(8, 1e4), 3)) == pytest.approx(np.log(8), rel=1e-6)


def test_softmax_cross_entropy_names_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"\(5, 7\)"):
        losses.softmax_cross_entropy(jnp.ones((5, 7)), jnp.zeros(4, int))
    with pytest.raises(ShapeError, match="scalar"):
        losses.softmax_cross_entropy(jnp.ones(()), jnp.zeros((), int))


def test_softmax_pullback_is_the_transposed_jacobian_times_the_cotangent(dtype, same):
    o = jax.nn.softmax(jax.random.normal(jax.random.key(1), (6,), dtype))
    w = jax.random.normal(jax.random.key(2), (6,), dtype)
    same(losses.softmax_pullback(o, w), losses.softmax_jacobian(o).T @ w)
    batch = jnp.stack([o, o[::-1]])
    same(losses.softmax_pullback(batch, jnp.stack([w, w]))[0], losses.softmax_pullback(o, w))


def test_sigmoid_saturates_without_overflow():
    assert [float(losses.sigmoid(z)) for z in (-1e4, 0.0, 1e4)] == [0.0, 0.5, 1.0]
    assert [float(losses.sigmoid_derivative(z)) for z in (-1e4, 0.0, 1e4)] == [0.0, 0.25, 0.0]


def test_a_masked_class_costs_nothing_and_pulls_nothing():
    value, slope = jax.value_and_grad(losses.softmax_cross_entropy)(jnp.array([1.0, -jnp.inf, 1.0]), 0)
    assert float(value) == pytest.approx(np.log(2)) and slope.tolist() == [-0.5, 0.0, 0.5]


def test_the_derivative_by_the_target_is_minus_the_log_of_softmax():
    z, y = jnp.array([0.0, 1.0, -2.0]), jnp.array([0.0, 1.0, 0.0])
    expected = -jax.nn.log_softmax(z)
    np.testing.assert_allclose(jax.grad(losses.softmax_cross_entropy, 1)(z, y), expected, rtol=1e-6)

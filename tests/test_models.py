"""Models are pure, take any batch shape, and are the formulas that they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import models
from gradlab.errors import OptionError

KEY = jax.random.key(3)
EVERY = {
    "linear_regression": (models.linear_regression(4), (4,), ()),
    "logistic_regression": (models.logistic_regression(4), (4,), ()),
    "softmax_regression": (models.softmax_regression(4, 3), (4,), (3,)),
    "mlp": (models.mlp((4, 6, 6, 3)), (4,), (3,)),
    "residual mlp": (models.mlp((4, 6, 6, 3), activation=jnp.tanh, residual=True), (4,), (3,)),
    "attention": (models.attention(6, heads=2), (5, 6), (5, 6)),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_model_maps_each_example_of_a_batch_alone(name, same):
    model, shape, out = EVERY[name]
    params = model.init(KEY)
    x = jax.random.normal(KEY, (2, 3, *shape))
    batch = model.apply(params, x)
    assert batch.shape == (2, 3, *out)
    same(batch, jax.vmap(jax.vmap(lambda one: model.apply(params, one)))(x))


@pytest.mark.parametrize("name", EVERY)
def test_initialization_is_a_function_of_the_key(name):
    model = EVERY[name][0]
    first, again, other = model.init(KEY), model.init(KEY), model.init(jax.random.key(4))
    equal = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda u, v: bool(jnp.all(u == v)), a, b)))
    assert equal(first, again)
    assert "regression" in name or not equal(first, other)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_has_a_finite_gradient(name):
    model, shape, _ = EVERY[name]
    x = jax.random.normal(KEY, (3, *shape))
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(model.apply(p, x)))))(model.init(KEY))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slopes))


def test_mlp_without_a_hidden_layer_is_affine(same):
    model = models.mlp((3, 2))
    params = model.init(KEY)
    x = jnp.array([1.0, -2.0, 0.5])
    same(model.apply(params, x), x @ params[0]["w"] + params[0]["b"])


def test_residual_layers_with_zero_weights_pass_their_input_through(same):
    model = models.mlp((3, 3, 3, 3), activation=jnp.tanh, residual=True)
    zeros = jax.tree.map(jnp.zeros_like, model.init(KEY))
    eye = (*zeros[:-1], {"w": jnp.eye(3), "b": jnp.zeros(3)})
    same(model.apply(eye, jnp.array([1.0, 2.0, 3.0])), jnp.array([1.0, 2.0, 3.0]))


def test_the_initializer_is_the_users_own():
    model = models.mlp((3, 4, 2), initializer=jax.nn.initializers.constant(0.25))
    assert {float(v) for layer in model.init(KEY) for v in np.unique(layer["w"])} == {0.25}


def test_attention_without_position_commutes_with_a_permutation_of_the_tokens(same):
    model = models.attention(8, heads=4)
    params = model.init(KEY)
    x = jax.random.normal(KEY, (6, 8))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    same(model.apply(params, x[order]), model.apply(params, x)[order])


def test_attention_of_equal_keys_averages_the_values(same):
    model = models.attention(4)
    params = model.init(KEY)
    params = {**params, "key": jax.tree.map(jnp.zeros_like, params["key"])}
    x = jax.random.normal(KEY, (5, 4))
    mean = (x @ params["value"]["w"]).mean(0) @ params["output"]["w"]
    same(model.apply(params, x), jnp.broadcast_to(mean, (5, 4)))


def test_rnn_is_its_cell_repeated(same):
    model = models.rnn(2, 3)
    params = model.init(KEY)
    x = jax.random.normal(KEY, (4, 5, 2))
    state = jnp.zeros((5, 3))
    for now, seen in zip(x, model.apply(params, x), strict=True):
        state = models.rnn_cell(params, state, now)
        same(seen, state)


def test_convolution_moves_with_its_input(same):
    model = models.convolution(1, 2, kernel=3)
    params = model.init(KEY)
    x = jnp.zeros((1, 9, 9, 1)).at[0, 3:5, 3:5, 0].set(1.0)
    same(model.apply(params, jnp.roll(x, 2, 1)), jnp.roll(model.apply(params, x), 2, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.linear_regression(0),
        lambda: models.softmax_regression(3, True),
        lambda: models.mlp((3, 0)),
        lambda: models.mlp(()),
        lambda: models.rnn(2, 1.5),
        lambda: models.convolution(1, -1),
        lambda: models.attention(6, heads=4),
    ],
)
def test_sizes_that_make_no_model_are_refused(make):
    with pytest.raises(OptionError):
        make()

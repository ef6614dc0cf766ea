"""Derivatives without products with the identity matrix are JAX's own, whatever the products are and what is around."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import hasty
from jax import lax

import gradlab as gl
from gradlab import errors
from gradlab.jaxprs import images, saves, trace

draw = np.random.default_rng(0).normal
A, B, C = draw(size=(5, 7)), draw(size=(3, 5)), draw(size=(2, 4, 7))
X = draw(size=7)
NAMES = ("forward", "reverse")
OWN = {"forward": jax.jacfwd, "reverse": jax.jacrev}


@jax.custom_jvp
def doubled(x):
    return 2 * (A @ x)


doubled.defjvp(lambda p, t: (doubled(*p), 3 * (A @ t[0])))

FUNCTIONS = {
    "two layers": (lambda x: jnp.tanh(B @ jnp.tanh(A @ x)), X),
    "vector on the left": (lambda x: jnp.sin(x) @ A.T, X),
    "a batch": (lambda x: jnp.tanh(x @ A.T) @ B.T, draw(size=(4, 7))),
    "a batch axis": (lambda x: jnp.einsum("bij,bjk->bik", C, x), draw(size=(2, 7, 3))),
    "an outer product": (lambda x: jnp.tanh(x[:, None] @ B[:1] + A.T), X),
    "two axes summed over": (lambda x: jnp.tensordot(C, x, ((2, 0), (1, 0))), draw(size=(2, 7, 3))),
    "transposed": (lambda x: jnp.cos(x.T) @ C[0].T, draw(size=(7, 3))),
    "transposed twice": (lambda x: jnp.einsum("ijk,lk->ijl", x.transpose(2, 0, 1) * 2, C[0]), draw(size=(3, 7, 2))),
    "reshaped": (lambda x: A @ x.reshape(7, 2) + (x.reshape(2, 7) @ A.T).T, draw(size=14)),
    "transposed and reshaped": (lambda x: A @ x.T.reshape(7, 2), draw(size=(2, 7))),
    "one more axis": (lambda x: (C @ x[:, None])[..., 0], X),
    "a pytree": (lambda p: {"y": A @ p["w"] + p["b"], "z": p["b"].T @ A}, {"w": C[0, :2].T, "b": draw(size=(5, 2))}),
    "an empty leaf": (lambda p: A @ p["w"] + p["none"].sum(), {"none": draw(size=(0, 2)), "w": X}),
    "both operands": (lambda x: (x @ A.T) @ (A @ x) * x, X),
    "used again": (lambda x: (A @ x) * jnp.sum(x) + A @ (x * x) + x[:5], X),
    "itself": (lambda x: (A @ x, x, 3.0 * x), X),
    "half of it": (lambda x: A[:, :3] @ x[:3], X),
    "chosen": (lambda x: A @ jnp.where(x > 0, x, 0.0) + jax.nn.relu(A @ x), X),
    "divided": (lambda x: A @ (x / (1 + X**2)) - A @ (1 / x), X),
    "inside jit": (lambda x: jax.jit(lambda y: A @ jax.jit(jnp.sin)(y))(x), X),
    "inside checkpoint": (lambda x: B @ jax.checkpoint(lambda y: jnp.tanh(A @ y))(x), X),
    "before a loop": (lambda x: lax.scan(lambda c, b: (jnp.tanh(b * c), c.sum()), A @ x, B)[1], X),
    "after a loop": (lambda x: A @ lax.scan(lambda c, _: (jnp.sin(c), None), x, length=3)[0], X),
    "inside a branch": (lambda x: lax.cond(x[0] > 0, lambda x: A @ x, lambda x: 2 * (A @ x), x), X),
    "a custom rule": (lambda x: B @ doubled(x), X),
    "nothing left": (lambda x: A @ (0 * x), X),
    "one number": (lambda x: A @ (x * X), 0.5),
    "of one number": (lambda x: B @ A @ x[:, None] @ jnp.ones((1, 1)), X),
}  # fmt: skip


@pytest.mark.parametrize("mode", NAMES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_jacobian_is_that_of_jax(name, mode, same):
    f, x = FUNCTIONS[name]
    with jax.enable_x64(True):
        x = jax.tree.map(jnp.asarray, x)
        same(hasty(gl.jacobian(f, mode=mode))(x), hasty(OWN[mode](f))(x))


@pytest.mark.parametrize("mode", NAMES)
@pytest.mark.parametrize("name", ["two layers", "a batch", "a pytree", "transposed"])
def test_it_is_that_of_jax_in_single_precision_and_eagerly(name, mode, same):
    f, x = FUNCTIONS[name]
    x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), x)
    same(gl.jacobian(f, mode=mode)(x), OWN[mode](f)(x))


@pytest.mark.parametrize("mode", NAMES)
def test_numbers_and_numpy_arrays_are_arguments_like_any(mode, same):
    f, x = lambda p: p["s"] * (A @ (p["s"] * p["v"])), {"s": 0.5, "v": X.astype(np.float32)}
    same(gl.jacobian(f, mode=mode)(x), OWN[mode](f)(x))


@pytest.mark.parametrize("mode", gl.modes("hessian")[:4])
def test_the_hessian_of_a_linear_model_is_that_of_jax(mode, same):
    f = lambda b: jnp.mean(jnp.logaddexp(0.0, A @ b) ** 2)
    with jax.enable_x64(True):
        same(hasty(gl.hessian(f, mode=mode))(jnp.asarray(X)), hasty(jax.hessian(f))(jnp.asarray(X)))


@pytest.mark.parametrize("mode", NAMES)
def test_it_goes_through_every_transformation(mode, same):
    f, _ = FUNCTIONS["two layers"]
    xs = jnp.asarray(draw(size=(3, 7)), jnp.float32)
    total = lambda jacobian: lambda x: jnp.sum(jnp.sin(jacobian(x)))
    given, own = gl.jacobian(f, mode=mode), OWN[mode](f)
    same(jax.jit(jax.vmap(given))(xs), jax.vmap(own)(xs))
    same(jax.grad(total(given))(xs[0]), jax.grad(total(own))(xs[0]))
    same(jax.jvp(total(given), (xs[0],), (xs[1],)), jax.jvp(total(own), (xs[0],), (xs[1],)))


@pytest.mark.parametrize(("name", "forward", "reverse"), [
    ("two layers", 1, 1), ("vector on the left", 1, 1), ("a batch axis", 1, 1), ("transposed", 1, 1),
    ("inside jit", 1, 1), ("used again", 2, 2), ("an outer product", 0, 1), ("after a loop", 0, 1),
])  # fmt: skip
@pytest.mark.parametrize("mode", NAMES)
def test_products_with_the_identity_are_not_taken(name, forward, reverse, mode):
    f, x = FUNCTIONS[name]
    saved = forward if mode == "forward" else reverse
    products = lambda g: jax.jit(g).lower(x).as_text().count("dot_general")
    assert products(gl.jacobian(f, mode=mode)) == products(OWN[mode](f)) - saved


def test_what_is_not_finite_stays_in_its_column():
    """A product with the identity would spread it over the row."""
    matrix = np.array([[np.inf, 1.0], [2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(gl.jacobian(lambda x: matrix @ x, mode="forward")(jnp.ones(2)), matrix)


@pytest.mark.parametrize("name", ["after a loop", "inside a branch"])
def test_a_loop_or_a_branch_in_the_way_leaves_nothing_to_save(name):
    f, x = FUNCTIONS[name]
    push = jax.linearize(f, jnp.asarray(x))[1]
    assert not saves(trace(push, jnp.asarray(x)), x)


def test_images_have_the_axis_of_directions_where_it_is_wanted():
    program = trace(lambda v: A @ v, X)
    assert images(program, X).shape == (7, 5) and images(program, X, axis=-1).shape == (5, 7)


def test_a_rule_that_is_missing_is_told_as_ever():
    @jax.custom_vjp
    def f(x):
        return A @ x

    f.defvjp(lambda x: (f(x), None), lambda _, w: (w @ A,))
    with pytest.raises(errors.UnsupportedModeError, match="These modes can run here: reverse"):
        gl.jacobian(f, mode="forward")(X)

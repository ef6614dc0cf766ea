"""Each operator is JAX's own derivative: same numbers, same structure, under jit, vmap and one another."""

import jax
import jax.numpy as jnp
import pytest
from conftest import cast

import gradlab as gl

# These modes suit some functions, or need an extra; they have tests of their own.
SOMETIMES = ("sparse", "waist", "forward_laplacian")
always = lambda of: [mode for mode in gl.modes(of) if mode not in SOMETIMES]


def tree_function(x):
    """A pytree to a pytree, neither square: 7 numbers to 5."""
    return {"outer": jnp.sin(x["a"][:, None]) * x["b"].sum(0)[None], "norm": jnp.sum(x["a"] ** 2)}


def tree_point(dtype):
    return cast({"a": jnp.array([0.3, -1.2, 2.0]), "b": jnp.array([[0.5, 1.5], [-0.7, 0.1]])}, dtype)


def scalar_function(x):
    return jnp.sum(jnp.tanh(x["a"]) ** 3) * jnp.sum(jnp.cos(x["b"]))


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 64])
@pytest.mark.parametrize("mode", always("jacobian"))
def test_every_jacobian_mode_is_jax_jacobian(mode, chunk_size, dtype, same):
    x = tree_point(dtype)
    same(jax.jit(gl.jacobian(tree_function, mode=mode, chunk_size=chunk_size))(x), jax.jacrev(tree_function)(x))


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 64])
@pytest.mark.parametrize("mode", always("hessian"))
def test_every_hessian_mode_is_jax_hessian(mode, chunk_size, dtype, same):
    x = tree_point(dtype)
    given = jax.jit(gl.hessian(scalar_function, mode=mode, chunk_size=chunk_size))(x)
    same(given, jax.hessian(scalar_function)(x))


@pytest.mark.parametrize("mode", gl.modes("hvp"))
def test_every_hvp_mode_is_the_hessian_times_the_vector(mode, dtype, same):
    x = tree_point(dtype)
    v = jax.tree.map(jnp.cos, x)
    same(jax.jit(gl.hvp(scalar_function, mode=mode))(x, v), jax.jvp(jax.grad(scalar_function), (x,), (v,))[1])


@pytest.mark.parametrize("mode", gl.modes("gradient"))
def test_every_gradient_mode_is_jax_grad(mode, dtype, same):
    x = tree_point(dtype)
    same(jax.jit(gl.gradient(scalar_function, mode=mode))(x), jax.grad(scalar_function)(x))
    value, slope = gl.value_and_gradient(scalar_function, mode=mode)(x)
    same(value, scalar_function(x))
    same(slope, jax.grad(scalar_function)(x))


@pytest.mark.parametrize("mode", always("laplacian"))
def test_every_laplacian_mode_is_the_trace_of_the_hessian(mode, dtype, same):
    x = tree_point(dtype)
    flat, back = jax.flatten_util.ravel_pytree(x)
    expected = jnp.trace(jax.hessian(lambda u: scalar_function(back(u)))(flat))
    same(jax.jit(gl.laplacian(scalar_function, mode=mode))(x), expected)


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
@pytest.mark.parametrize("argnums", [0, 1, -1, (0, 1), (1, 0), (1,)])
def test_argnums_mean_what_they_mean_in_jax(argnums, mode, same):
    f = lambda a, b: jnp.outer(a, jnp.exp(b))
    a, b = jnp.arange(2.0), jnp.arange(3.0)
    same(gl.jacobian(f, argnums, mode=mode)(a, b), jax.jacfwd(f, argnums)(a, b))
    g = lambda a, b: f(a, b).sum() ** 2
    same(gl.gradient(g, argnums)(a, b), jax.grad(g, argnums)(a, b))
    same(gl.hessian(g, argnums)(a, b), jax.hessian(g, argnums)(a, b))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("mode", always("jacobian"))
def test_jacobian_passes_aux_through(mode, chunk_size, same):
    f = lambda x: (jnp.outer(x, x), {"sum": x.sum()})
    x = jnp.arange(3.0)
    jac, aux = gl.jacobian(f, mode=mode, chunk_size=chunk_size, has_aux=True)(x)
    same(jac, jax.jacfwd(lambda x: f(x)[0])(x))
    assert aux["sum"] == 3.0


@pytest.mark.parametrize("mode", gl.modes("gradient"))
def test_gradient_passes_aux_through(mode):
    f = lambda x: (x**2, {"twice": 2 * x})
    slope, aux = gl.gradient(f, has_aux=True, mode=mode)(3.0)
    (value, aux2), slope2 = gl.value_and_gradient(f, has_aux=True, mode=mode)(3.0)
    assert (slope, aux["twice"], value, aux2["twice"], slope2) == (6.0, 6.0, 9.0, 6.0, 6.0)


def test_keyword_arguments_reach_the_function():
    assert gl.gradient(lambda x, *, power: x**power)(2.0, power=3) == 12.0


def test_arguments_that_are_not_differentiated_may_be_anything():
    f = lambda x, kind, n: jnp.sum(x**n) if kind == "power" else jnp.sum(x)
    assert gl.gradient(f)(jnp.ones(3), "power", 2).tolist() == [2.0, 2.0, 2.0]


def test_pullback_is_the_transpose_of_pushforward(dtype):
    x = tree_point(dtype)
    v = jax.tree.map(jnp.cos, x)
    w = jax.tree.map(jnp.sin, tree_function(x))
    _, jv = jax.jit(gl.pushforward(tree_function))(x, v)
    _, jw = jax.jit(gl.pullback(tree_function))(x, w)
    dot = lambda a, b: sum(jnp.vdot(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    assert jnp.allclose(dot(w, jv), dot(jw, v), rtol=1e-5)


def test_operators_compose():
    f = lambda x: jnp.sum(x**3)
    x = jnp.array([1.0, 2.0])
    assert gl.jacobian(gl.gradient(f))(x).tolist() == gl.hessian(f)(x).tolist()
    assert gl.derivative(gl.derivative(gl.derivative(lambda t: t**4)))(2.0) == 48.0
    assert gl.gradient(gl.laplacian(f))(x).tolist() == [6.0, 6.0]
    assert gl.jacobian(gl.jacobian(jnp.sin, chunk_size=1), mode="reverse", chunk_size=1)(x).shape == (2, 2, 2)
    assert gl.jacobian(lambda u: gl.hvp(f)(u, x))(x).tolist() == jnp.diag(6 * x).tolist()


@pytest.mark.parametrize(
    "take",
    [
        gl.derivative(jnp.sin),
        gl.gradient(jnp.sin),
        gl.hessian(jnp.sin),
        gl.laplacian(jnp.sin),
        gl.steepest_direction(jnp.sin),
        lambda x: gl.jacobian(lambda t: jnp.stack([t, t**2]), chunk_size=1)(x),
        lambda x: gl.pushforward(jnp.sin)(x, 1.0),
        lambda x: gl.pullback(jnp.sin)(x, 1.0),
        lambda x: gl.hvp(jnp.sin)(x, 2.0),
        lambda x: gl.directional_derivative(jnp.sin, normalize=True)(x, 2.0),
        lambda x: gl.taylor(jnp.sin, 3)(x)(x + 0.1),
    ],
)
def test_vmap_of_an_operator_is_the_operator_of_each(take, same):
    x = jnp.linspace(0.1, 1.0, 4)
    each = jax.tree.map(lambda *rows: jnp.stack(rows), *[take(t) for t in x])
    same(jax.jit(jax.vmap(take))(x), each)


def test_auto_takes_fewer_passes():
    wide = jax.make_jaxpr(gl.jacobian(lambda x: x.sum()[None]))(jnp.ones(50))
    tall = jax.make_jaxpr(gl.jacobian(lambda t: t * jnp.ones(50)))(2.0)
    assert str(wide) == str(jax.make_jaxpr(jax.jacrev(lambda x: x.sum()[None]))(jnp.ones(50)))
    assert str(tall) == str(jax.make_jaxpr(jax.jacfwd(lambda t: t * jnp.ones(50)))(2.0))


def while_power(x):
    return jax.lax.while_loop(lambda c: jnp.sum(c) < 30.0, lambda c: c * x, x).sum()


@jax.custom_vjp
def reverse_only(x):
    return jnp.sum(x**2)


reverse_only.defvjp(lambda x: (reverse_only(x), x), lambda x, w: (2 * x * w,))


def test_auto_never_picks_a_mode_that_cannot_run():
    x = jnp.array([1.5, 2.0])
    assert gl.jacobian(while_power)(x).tolist() == jax.jacfwd(while_power)(x).tolist()
    assert jax.jit(gl.jacobian(lambda x: reverse_only(x) * jnp.ones(9)))(x)[0].tolist() == [3.0, 4.0]
    assert gl.hessian(while_power)(x).tolist() == jax.jacfwd(jax.jacfwd(while_power))(x).tolist()
    assert gl.hvp(while_power)(x, x).shape == (2,)
    assert gl.laplacian(while_power)(x) == jnp.trace(jax.jacfwd(jax.jacfwd(while_power))(x))
    assert gl.hessian(reverse_only)(x).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_auto_works_when_f_closes_over_traced_values():
    def loss(scale, x):
        return gl.jacobian(lambda u: jnp.sin(scale * u))(x).sum()

    x = jnp.arange(3.0)
    assert jnp.allclose(jax.jit(jax.grad(loss))(2.0, x), jnp.sum(jnp.cos(2 * x) - 2 * x * jnp.sin(2 * x)), rtol=1e-5)


def test_complex_values_follow_jax():
    z = jnp.array([1.0 + 2.0j, 0.5j])
    energy = lambda z: jnp.sum(jnp.abs(z) ** 2)
    assert gl.gradient(energy)(z).tolist() == jax.grad(energy)(z).tolist()
    assert gl.jacobian(lambda t: jnp.exp(1j * t))(jnp.arange(2.0)).dtype == jnp.complex64
    assert (
        gl.jacobian(lambda z: jnp.abs(z) ** 2, mode="auto")(z).tolist()
        == jax.jacrev(lambda z: jnp.abs(z) ** 2)(z).tolist()
    )


def test_steepest_direction_is_a_unit_vector_or_zero():
    f = lambda x: jnp.sum(x["a"] ** 2) + x["b"]
    d = gl.steepest_direction(f)({"a": jnp.array([3.0, 4.0]), "b": 0.0})
    assert jnp.allclose(jnp.sum(d["a"] ** 2) + d["b"] ** 2, 1.0)
    flat = lambda x: jnp.sum(x**2)
    assert gl.steepest_direction(flat)(jnp.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    assert gl.steepest_direction(lambda x: 1e30 * x.sum())(jnp.ones(4)).tolist() == [0.5] * 4


def test_zero_direction_has_zero_slope():
    assert gl.directional_derivative(jnp.sum, normalize=True)(jnp.ones(2), jnp.zeros(2)) == 0.0


def test_taylor_of_a_polynomial_is_the_polynomial(same):
    f = lambda x: {"p": x[0] ** 3 + x[0] * x[1] ** 2, "q": x[1]}
    x0, x = jnp.array([0.5, -1.0]), jnp.array([1.5, 2.0])
    same(gl.taylor(f, 3)(x0)(x), f(x))
    same(jax.jit(lambda a, b: gl.taylor(f, 4)(a)(b))(x0, x), f(x))


def test_integers_cast_to_the_space_of_x():
    assert gl.pushforward(jnp.sin)(0.0, 1)[1] == 1.0

"""Every mistake gets gradlab's own error: it names the argument, says what was expected, and costs no computation."""

import jax
import jax.numpy as jnp
import pytest

import gradlab as gl
from gradlab import errors, losses, models

X = jnp.arange(3.0)
SQUARE = lambda x: jnp.sum(x**2)
LOOP = lambda x: jax.lax.while_loop(lambda c: c < 30.0, lambda c: c * x, x)


@jax.custom_vjp
def reverse_only(x):
    return jnp.sum(x)


reverse_only.defvjp(lambda x: (jnp.sum(x), x), lambda x, w: (w * jnp.ones_like(x),))

CASES = {
    "integer input": (lambda: gl.gradient(SQUARE)(jnp.arange(3)), TypeError, "args[0] has dtype int32"),
    "python int": (lambda: gl.gradient(lambda x: x * 2.0)(3), TypeError, "jnp.asarray(x, jnp.float32)"),
    "bool input": (lambda: gl.jacobian(jnp.sin)(jnp.array([True])), TypeError, "bool"),
    "integer leaf": (lambda: gl.hessian(lambda p: p["w"])({"w": 1.0, "n": 2}), TypeError, "args[0]['n']"),
    "key input": (lambda: gl.gradient(lambda k: 1.0)(jax.random.key(0)), TypeError, "key"),
    "string leaf": (lambda: gl.jacobian(lambda p: p["w"])({"w": 1.0, "s": "a"}), TypeError, "args[0]['s'] is a str"),
    "second argument": (lambda: gl.gradient(lambda a, b: a * b, 1)(1.0, 2), TypeError, "args[1]"),
    "vector loss": (lambda: gl.gradient(jnp.sin)(X), TypeError, "shape (3,)"),
    "pytree loss": (
        lambda: gl.value_and_gradient(lambda x: (x, x))(1.0),
        TypeError,
        "a pytree of 2 arrays, [0] of shape (), [1] of shape (). Reduce",
    ),
    "vector hvp": (lambda: gl.hvp(jnp.sin)(X, X), TypeError, "hvp needs"),
    "vector laplacian": (lambda: gl.laplacian(jnp.sin)(X), TypeError, "laplacian needs"),
    "vector steepest": (lambda: gl.steepest_direction(jnp.sin)(X), TypeError, "gradlab.jacobian"),
    "complex loss": (lambda: gl.gradient(lambda x: 1j * x)(1.0), TypeError, "real scalar"),
    "integer loss": (lambda: gl.gradient(lambda x: jnp.argmax(x))(X), TypeError, "int32"),
    "no output": (lambda: gl.jacobian(lambda x: None)(X), ValueError, "no array"),
    "complex jacobian": (lambda: gl.jacobian(jnp.exp)(X + 1j), TypeError, "holomorphic"),
    "complex forward": (lambda: gl.jacobian(jnp.abs, mode="forward")(X + 1j), TypeError, "real inputs"),
    "complex hessian": (lambda: gl.hessian(lambda z: jnp.abs(z).sum())(X + 1j), TypeError, "imaginary"),
    "tangent structure": (lambda: gl.pushforward(SQUARE)(X, {"a": X}), TypeError, "args[1] must have the structure"),
    "tangent shape": (lambda: gl.pushforward(SQUARE)(X, jnp.ones(4)), ValueError, "args[1] has shape (4,)"),
    "tangent leaf": (
        lambda: gl.directional_derivative(lambda p: p["a"].sum())({"a": X}, {"a": jnp.ones(2)}),
        ValueError,
        "args[1]['a']",
    ),
    "complex tangent": (lambda: gl.hvp(SQUARE)(X, X * 1j), TypeError, "cannot hold"),
    "cotangent shape": (lambda: gl.pullback(jnp.sin)(X, 1.0), ValueError, "the output of f has shape (3,)"),
    "cotangent structure": (lambda: gl.pullback(jnp.sin)(X, (X,)), TypeError, "args[1]"),
    "hvp structure": (lambda: gl.hvp(SQUARE)(X, [X]), TypeError, "args[1]"),
    "taylor point": (lambda: gl.taylor(SQUARE, 2)(X)(jnp.ones(2)), ValueError, "x has shape (2,)"),
    "unknown mode": (lambda: gl.jacobian(SQUARE, mode="foward"), ValueError, "Did you mean 'forward'?"),
    "unknown hessian mode": (lambda: gl.hessian(SQUARE, mode="reverse"), ValueError, "forward_over_reverse"),
    "unknown gradient mode": (lambda: gl.gradient(SQUARE, mode="auto"), ValueError, "reverse, forward"),
    "unknown quantity": (lambda: gl.modes("jacobean"), ValueError, "Did you mean 'jacobian'?"),
    "empty dict": (lambda: gl.gradient(lambda p: 1.0)({}), ValueError, "args[0] is an empty pytree"),
    "empty array": (lambda: gl.jacobian(jnp.sin)(jnp.zeros((0, 3))), ValueError, "size 0"),
    "policy of no checkpoint": (lambda: gl.gradient(SQUARE, policy="dots"), ValueError, "goes with mode='checkpoint'"),
    "unknown policy": (lambda: gl.gradient(SQUARE, mode="checkpoint", policy="dot"), ValueError, "Did you mean 'dots'"),
    "zero chunk": (lambda: gl.jacobian(SQUARE, chunk_size=0), ValueError, "chunk_size must be an integer"),
    "negative chunk": (lambda: gl.hessian(SQUARE, chunk_size=-4), ValueError, "-4"),
    "float chunk": (lambda: gl.jacobian(SQUARE, chunk_size=2.0), ValueError, "2.0"),
    "bool chunk": (lambda: gl.jacobian(SQUARE, chunk_size=True), ValueError, "True"),
    "argnums past the end": (lambda: gl.gradient(SQUARE, 1)(X), TypeError, "1 positional argument"),
    "argnums twice": (lambda: gl.gradient(lambda a, b: a * b, (0, 0)), ValueError, "once"),
    "argnums twice by sign": (lambda: gl.gradient(lambda a, b: a * b, (1, -1))(1.0, 2.0), ValueError, "twice"),
    "argnums float": (lambda: gl.jacobian(SQUARE, 1.0), ValueError, "argnums"),
    "no function": (lambda: gl.gradient(SQUARE(X)), TypeError, "takes a function"),
    "derivative of a vector": (lambda: gl.derivative(jnp.sin)(X), ValueError, "jax.vmap"),
    "aux is no pair": (lambda: gl.gradient(SQUARE, has_aux=True)(X), TypeError, "must return a pair"),
    "order zero": (lambda: gl.taylor(SQUARE, 0), ValueError, "order must be"),
    "reverse through a loop": (lambda: gl.gradient(LOOP)(1.5), ValueError, "can run here: forward"),
    "forward through a rule": (lambda: gl.jacobian(reverse_only, mode="forward")(X), ValueError, "here: reverse"),
    "push through a rule": (lambda: gl.pushforward(reverse_only)(X, X), ValueError, "pullback"),
    "push through a rule, traced": (
        lambda: jax.jit(gl.pushforward(reverse_only))(X, X),
        ValueError,
        "pullback",
    ),
    "hvp through a rule, traced": (
        lambda: jax.jit(gl.hvp(reverse_only, mode="reverse_over_forward"))(X, X),
        ValueError,
        "reverse_over_reverse",
    ),
    "pull through a loop": (lambda: gl.pullback(LOOP)(1.5, 1.0), ValueError, "pushforward"),
    "no hessian at all": (
        lambda: gl.hessian(lambda x: reverse_only(jax.lax.map(LOOP, x)))(X + 1.5),
        ValueError,
        "No mode of hessian",
    ),
    "compare unknown mode": (lambda: gl.compare(SQUARE, X, of="gradient", modes=["revers"]), ValueError, "'reverse'"),
    "compare integer": (lambda: gl.compare(SQUARE, jnp.arange(3)), TypeError, "args[0]"),
    "compare vector": (lambda: gl.compare(jnp.sin, X, of="hessian", repeats=0), ValueError, "repeats"),
    "compare budget": (lambda: gl.compare(jnp.sin, X, budget=-1), ValueError, "budget"),
    "compare not scalar": (lambda: gl.compare(jnp.sin, X, of="gradient"), TypeError, "shape (3,)"),
    "huber delta": (lambda: losses.huber(1.0, 0.0, delta=0.0), ValueError, "delta"),
    "target shape": (lambda: losses.softmax_cross_entropy(jnp.ones((2, 3)), jnp.ones(2)), ValueError, "(2, 3)"),
    "mlp sizes": (lambda: models.mlp((3,)), ValueError, "sizes"),
    "attention heads": (lambda: models.attention(8, heads=3), ValueError, "divide"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gets_an_error_of_its_own(name):
    call, builtin, words = CASES[name]
    with pytest.raises(errors.GradlabError) as caught:
        call()
    assert isinstance(caught.value, builtin)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda f: gl.gradient(f)(X),
        lambda f: gl.hvp(f)(X, X),
        lambda f: gl.pushforward(f)(X, jnp.ones(4)),
        lambda f: gl.compare(f, X, of="gradient"),
    ],
)
def test_mistakes_are_found_before_anything_is_computed(call):
    computed = []

    def f(x):
        jax.debug.callback(lambda: computed.append(1))
        return jnp.sin(x)

    with pytest.raises(errors.GradlabError):
        call(f)
    jax.effects_barrier()
    assert computed == []


def test_the_users_own_error_is_not_disguised():
    def f(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gl.jacobian(f)(X)


def test_errors_are_the_same_under_jit():
    with pytest.raises(errors.NotScalarError):
        jax.jit(gl.gradient(jnp.sin))(X)


@pytest.mark.parametrize(("given", "meant"), [("backward", "reverse"), ("jacfwd", "forward"), ("revers", "reverse")])
def test_a_mode_by_the_name_it_has_elsewhere_is_understood(given, meant):
    with pytest.raises(gl.errors.UnknownModeError, match=f"no mode '{given}'.* Did you mean '{meant}'"):
        gl.jacobian(jnp.sin, mode=given)(jnp.ones(3))

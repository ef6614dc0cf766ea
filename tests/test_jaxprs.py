"""Arrays that a function closes over become arguments of the compiled program, wherever they hide."""

import jax
import jax.numpy as jnp
import pytest

import gradlab as gl
from gradlab.jaxprs import hoist
from gradlab.timing import compiled

SIDE = 200
MATRIX = jax.random.normal(jax.random.key(0), (SIDE, SIDE))


@jax.custom_jvp
def ruled(x):
    return jnp.tanh(MATRIX @ x)


ruled.defjvp(lambda p, t: (ruled(*p), (1 - ruled(*p) ** 2) * (MATRIX @ t[0])))

FUNCTIONS = {
    "closed over": lambda x: jnp.tanh(MATRIX @ x),
    "inside jit": lambda x: jax.jit(lambda y: jnp.tanh(MATRIX @ y))(x),
    "inside two jits": lambda x: jax.jit(lambda y: jax.jit(lambda z: MATRIX @ z)(y) * y)(x),
    "inside checkpoint": lambda x: jax.checkpoint(lambda y: jnp.tanh(MATRIX @ jnp.sin(y)))(x),
    "inside a scan": lambda x: jax.lax.scan(lambda c, _: (jnp.tanh(MATRIX @ c), None), x, length=3)[0],
    "inside a custom rule": ruled,
    "a numpy array": lambda x: jax.device_get(MATRIX) @ x,
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("where", FUNCTIONS)
def test_the_lowered_program_holds_no_large_constant(where, mode, same):
    derivative = gl.jacobian(FUNCTIONS[where], mode=mode)
    x = jnp.linspace(-1.0, 1.0, SIDE)
    program, constants = hoist(derivative, x)
    lowered = jax.jit(program).lower(constants, x).as_text()
    # Spelled out, the matrix takes eight hexadecimal digits a number.
    assert len(lowered) < SIDE * SIDE
    assert len(jax.jit(derivative).lower(x).as_text()) > 8 * SIDE * SIDE
    assert any(c.shape == (SIDE, SIDE) for c in constants)
    same(jax.jit(program)(constants, x), jax.jit(derivative)(x), tol=1e-4)


def test_functions_without_large_constants_have_none():
    assert hoist(lambda x: x + jnp.arange(3.0), jnp.ones(3))[1] == []


def test_programs_keep_structure_and_control_flow(same):
    def f(p):
        doubled = jax.lax.cond(p["n"] > 0, lambda v: 2 * v, lambda v: -v, p["v"])
        return {"out": jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, doubled), "m": MATRIX[:3, :3] + 0}

    p = {"n": 1.0, "v": jnp.ones(2)}
    same(compiled(f, p)(p), f(p))


def test_compile_and_cost_are_reported():
    program = compiled(lambda x: x @ x, jnp.ones((32, 32)))
    assert program.compile_seconds > 0
    assert program.flops is None or program.flops >= 2 * 32**3
    assert program.peak_bytes is None or program.peak_bytes >= 2 * 4 * 32**2

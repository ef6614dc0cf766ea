"""Every mode of every quantity is JAX's own derivative, compiled, on every problem it has rules for."""

from functools import cache
from importlib.util import find_spec
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cast, drawn, each_problem, hasty, of_problem, why_no_asdex

import gradlab as gl
from gradlab import problems, trees
from gradlab.mode import auto
from gradlab.mode.support import obstacle
from gradlab.timing import compiled, temporary_bytes

SIZE = 4
JAX = {"forward": jax.jacfwd, "reverse": jax.jacrev}
# These suit some functions, or need an extra; where they do not, they must say so before anything runs.
SOMETIMES = ("sparse", "waist", "forward_laplacian")


def jax_hessian(mode):
    outer, inner = mode.split("_over_")
    return lambda f: JAX[outer](JAX[inner](f))


def jax_laplacian(f, x):
    flat, back = trees.ravel(x)
    return jnp.trace(jax.hessian(lambda u: f(back(u)))(flat))


def of_jax(of, unsupported, f, x, v):
    """JAX's own derivative, in a direction that f has rules for."""
    either = next(d for d in ("reverse", "forward") if d not in unsupported)
    match of:
        case "gradient" | "jacobian":
            return JAX[either](f)(x)
        case "hessian":
            return (jax_hessian(f"{either}_over_{either}") if unsupported else jax.hessian)(f)(x)
        case "hvp":
            return jax.jvp(jax.grad(f), (x,), (v,))[1]
        case "laplacian":
            return jax_laplacian(f, x)
    raise AssertionError(of)


def of_gradlab(of, mode, f, x, v):
    return gl.hvp(f, mode=mode)(x, v) if of == "hvp" else getattr(gl, of)(f, mode=mode)(x)


# These read f's program, which has other words in other versions of JAX; the rest is JAX's own transformations.
READERS = ("sparse", "waist", "checkpoint")


def cases():
    for problem in problems.TABLE:
        for of in problem.of:
            for mode in gl.modes(of):
                if mode != "auto":
                    yield of_problem(problem, of, mode, marks=[] if mode in READERS else [pytest.mark.thorough])


def built(problem, dtype, size=SIZE):
    f, args = drawn(problem, size)
    x, *rest = cast(args, dtype)
    return f, x, rest


@cache
def expected(problem, of, dtype, size):
    """A direction, and JAX's own derivative; one serves every mode."""
    f, x, rest = built(problem, dtype, size)
    v = trees.random_like(2, x)
    return v, hasty(lambda x, v: of_jax(of, problem.unsupported, lambda x: f(x, *rest), x, v))(x, v)


@pytest.mark.parametrize(("problem", "of", "mode"), cases())
def test_a_mode_is_jax_own_derivative(problem, of, mode, dtype, same):
    size = 12 if mode in SOMETIMES else SIZE
    f, x, rest = built(problem, dtype, size)
    v, wanted = expected(problem, of, dtype, size)
    # What f is given besides x is closed over: a pattern may hang on its indices.
    compiled = jax.jit if dtype == jnp.float32 else hasty
    own = compiled(lambda x, v: of_gradlab(of, mode, lambda x: f(x, *rest), x, v))
    lacking = "reverse" if mode == "checkpoint" else mode
    refused = any(direction in lacking for direction in problem.unsupported)
    if mode in SOMETIMES:
        refused = obstacle(lambda x: getattr(gl, of)(lambda x: f(x, *rest), mode=mode)(x), x) is not None
    if refused:
        refusals = (gl.errors.UnsupportedModeError, gl.errors.MissingExtraError)
        with pytest.raises(refusals, match=r"can run here|mode='auto'|another mode"):
            own(x, v)
    else:
        same(own(x, v), wanted)


@pytest.mark.parametrize("name", ["bundle_adjustment", "softmax", "square_net"])
def test_jax_own_derivative_is_one_in_both_precisions(name):
    """Where the compiler got it wrong, the modes would be as wrong. Some faults take a problem of its own size."""
    problem = problems.get(name)
    single = jax.tree.leaves(expected(problem, "jacobian", jnp.float32, problem.size)[1])
    with jax.enable_x64(True):
        double = jax.tree.leaves(expected(problem, "jacobian", jnp.float64, problem.size)[1])
    for a, b in zip(single, double, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3 * max(1.0, float(np.max(np.abs(b), initial=0.0))))


@pytest.mark.parametrize(("of", "mode", "size", "least", "extra"), [
    ("jacobian", "sparse", 24, 5, "asdex"),
    ("hessian", "sparse", 24, 2, "asdex"),
    ("jacobian", "waist", 128, 1, None),
    ("laplacian", "forward_laplacian", 24, 2, "folx"),
])  # fmt: skip
def test_a_mode_for_some_functions_serves_some_problems(of, mode, size, least, extra):
    if extra and (not find_spec(extra) or (extra == "asdex" and why_no_asdex())):
        pytest.skip(f"{extra} is not there, or not for this JAX")

    def serves(problem):
        f, x, rest = built(problem, jnp.float32, size=size)
        return obstacle(lambda x: getattr(gl, of)(lambda x: f(x, *rest), mode=mode)(x), x) is None

    served = filter(serves, (problem for problem in problems.TABLE if of in problem.of))
    assert len(list(islice(served, least))) == least


@each_problem()
def test_auto_picks_a_mode_that_runs(problem, same):
    f, x, rest = built(problem, jnp.float32)
    g = lambda x: f(x, *rest)
    for of in problem.of:
        v = trees.random_like(2, x)
        picked = auto.choose(g, x, of, v).mode
        assert picked in gl.modes(of)
        assert not any(direction in picked for direction in problem.unsupported)


CURVED = lambda x: jnp.sum(jnp.sin(jnp.cumsum(x)) ** 2)
FIELD = lambda x: jnp.tanh(jnp.cumsum(jnp.sin(x) * x))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_chunks_cut_the_memory_of_a_jacobian_to_an_eighth(mode, same):
    x = jnp.linspace(0.1, 1.0, 4096)
    whole = compiled(gl.jacobian(FIELD, mode=mode), x)
    chunked = compiled(gl.jacobian(FIELD, mode=mode, chunk_size=64), x)
    assert temporary_bytes(chunked) <= temporary_bytes(whole) / 8
    same(chunked(x), whole(x))


@pytest.mark.parametrize("mode", [mode for mode in gl.modes("hessian") if "_over_" in mode])
def test_chunks_cut_the_memory_of_a_hessian_to_an_eighth(mode, same):
    x = jnp.linspace(0.1, 1.0, 4096)
    whole = compiled(gl.hessian(CURVED, mode=mode), x)
    chunked = compiled(gl.hessian(CURVED, mode=mode, chunk_size=64), x)
    assert temporary_bytes(chunked) <= temporary_bytes(whole) / 8
    if mode == "forward_over_reverse":  # the others take the same numbers, or n² passes; they are compared when small
        same(chunked(x), whole(x))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("mode", [mode for mode in gl.modes("hessian") if "_over_" in mode])
def test_chunks_of_any_size_give_the_same_hessian_of_a_pytree(mode, chunk, dtype, same):
    x = cast({"a": np.linspace(0.2, 1.0, 6).reshape(2, 3), "b": (0.7,)}, dtype)
    f = lambda p: jnp.sum(jnp.sin(p["a"]) ** 2) * jnp.exp(p["b"][0]) + jnp.prod(p["a"][:, 0]) * p["b"][0] ** 3
    same(hasty(gl.hessian(f, mode=mode, chunk_size=chunk))(x), hasty(jax.hessian(f))(x))


@pytest.mark.parametrize("mode", [mode for mode in gl.modes("hessian") if "_over_" in mode])
def test_chunked_hessian_of_an_array_function_has_one_block_for_each_output(mode, same):
    f = lambda x: jnp.stack([x[0] ** 2 * x[1], jnp.sin(x[1] * x[2])])
    x = jnp.array([0.3, 1.2, -0.4])
    same(gl.hessian(f, mode=mode, chunk_size=2)(x), jax.hessian(f)(x))


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_mean_that_is_broadcast_back_is_compiled_right(mode, dtype, same):
    """jaxlib 0.10.2 got the reverse mode of such rows wrong, by a third of the largest entry."""
    n = 24
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)), dtype)
    jac = jax.jit(gl.jacobian(lambda x: x * jnp.mean(x**2, axis=-1, keepdims=True), mode=mode))(x)
    rows = np.asarray(x, np.float64)
    of_a_row = (rows**2).mean(-1)[:, None, None] * np.eye(n) + 2 / n * rows[:, :, None] * rows[:, None, :]
    expected = np.zeros((n, n, n, n))
    expected[np.arange(n), :, np.arange(n), :] = of_a_row
    same(jac, jnp.asarray(expected, dtype))

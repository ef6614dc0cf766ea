"""Every mode of the Laplacian is the trace of JAX's Hessian, all at once or in chunks; what cannot be is refused."""

import sys
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cast, hasty

import gradlab as gl
from gradlab import errors, trees
from gradlab.mode import laplacian
from gradlab.timing import compiled, temporary_bytes

EXTRA = ("forward_laplacian",) if find_spec("folx") else ()
ALL = ("hessian_trace", "forward_over_reverse", "taylor", *EXTRA)


def expected(f, x):
    flat, back = trees.ravel(x)
    return jnp.trace(jax.hessian(lambda u: f(back(u)))(flat))


def network(p):
    hidden = jnp.tanh(p["w"] @ p["x"][0] + p["b"])
    return jnp.sum(jnp.exp(hidden) * p["x"][1]) / (1 + jnp.sum(p["b"] ** 2))


def couplings(p):
    return p["x"][0][0] * p["x"][0][2] * jnp.sin(p["b"][0] * p["x"][1]) + jnp.sum(
        jnp.outer(p["b"], p["x"][0]) ** 3 * p["w"]
    )


def powers(p):
    return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(p)) + jnp.sqrt(1 + jnp.sum(p["w"] ** 2))


def softened(p):
    return jax.nn.logsumexp(p["w"] @ p["x"][0]) * jnp.log(2 + jnp.cos(p["x"][1])) + jnp.sum(jnp.sin(p["b"]))


def looped(p):
    body = lambda c, k: (jnp.sin(c) * k + p["b"], None)
    return jnp.sum(jax.lax.scan(body, p["b"] * p["x"][1], jnp.arange(1.0, 4.0).astype(p["b"].dtype))[0])


def linear(p):
    return jnp.sum(p["w"]) - 2 * p["x"][1]


def point(dtype=jnp.float32):
    x = {
        "w": np.linspace(-0.5, 0.9, 6).reshape(2, 3),
        "x": (np.array([0.3, -0.7, 1.1]), 0.4),
        "b": np.array([0.2, 0.8]),
    }
    return cast(x, dtype)


@pytest.mark.parametrize("f", [network, couplings, powers, softened, looped, linear], ids=lambda f: f.__name__)
def test_a_mode_is_the_trace_of_the_hessian(f, same):
    x = point()
    modes = [mode for mode in ALL if f is not looped or mode != "taylor"]  # jet has no rule for a scan
    traces = hasty(lambda x: [expected(f, x), *(laplacian.compute(f, x, mode) for mode in modes)])(x)
    for given in traces[1:]:
        same(given, traces[0])


def test_modes_agree_in_float64_to_its_rounding(same):
    with jax.enable_x64(True):
        x = point(jnp.float64)
        f = lambda x: network(x) + couplings(x) + powers(x)
        traces = hasty(lambda x: [expected(f, x), *(laplacian.compute(f, x, mode) for mode in ALL)])(x)
        for given in traces[1:]:
            same(given, traces[0])


@pytest.mark.parametrize("mode", ALL)
def test_chunks_of_any_size_give_the_same_trace(mode, same):
    x = point()
    sizes = (1, 3, 7, 100) if mode != "hessian_trace" else (7,)  # its chunks are those of the Hessian, tested there
    traces = hasty(lambda x: [expected(network, x), *(laplacian.compute(network, x, mode, size) for size in sizes)])(x)
    for given in traces[1:]:
        same(given, traces[0])


def test_a_number_is_a_point_too(same):
    traces = hasty(lambda: [laplacian.compute(lambda x: jnp.sin(x) * x, 0.7, mode) for mode in ALL])()
    for given in traces:
        same(given, 2 * jnp.cos(0.7) - 0.7 * jnp.sin(0.7))


@pytest.mark.parametrize("mode", ALL)
def test_under_vmap_with_closed_over_traced_values(mode, same):
    f = lambda x, scale: jnp.sum(jnp.sin(x) * scale) ** 2
    rows, scales = jnp.linspace(0.1, 0.9, 6).reshape(2, 3), jnp.array([0.5, 2.0])
    one = lambda take: jax.vmap(lambda x, scale: take(lambda x: f(x, scale), x))
    both = hasty(
        lambda: (one(partial(laplacian.compute, mode=mode, chunk_size=2))(rows, scales), one(expected)(rows, scales))
    )
    same(*both())


@pytest.mark.parametrize("mode", ["forward_over_reverse", "taylor", *EXTRA])
def test_memory_falls_with_the_chunk(mode, same):
    x = jnp.linspace(0.1, 1.0, 512)
    f = lambda x: jnp.sum(jnp.sin(jnp.cumsum(x)) ** 2)
    whole, chunked = (compiled(lambda x, size=size: laplacian.compute(f, x, mode, size), x) for size in (None, 16))
    assert temporary_bytes(chunked) <= temporary_bytes(whole) / 8
    same(chunked(x), whole(x), 1e-4)


def test_an_infinite_second_derivative_is_infinite_and_not_nan():
    f = lambda x: jnp.sum(x**1.5)
    x = jnp.array([0.0, 1.0, 4.0])
    assert hasty(lambda x: laplacian.compute(f, x, "forward_over_reverse", 2))(x) == jnp.inf


def test_auto_takes_a_mode_that_can_run(same):
    assert laplacian.choose(powers, point()).mode in ALL
    loop = lambda x: jnp.sum(jax.lax.while_loop(lambda c: c[0] < 9, jnp.exp, x))
    assert laplacian.choose(loop, jnp.ones(2)).mode == "hessian_trace"


def test_modes_without_a_rule_say_so_and_name_others():
    loop = lambda x: jnp.sum(jax.lax.while_loop(lambda c: c[0] < 9, lambda c: c * jnp.exp(x), x))
    with pytest.raises(errors.UnsupportedModeError, match="Reverse-mode"):
        gl.hessian(loop, mode="forward_over_reverse")(jnp.ones(2))
    with pytest.raises(errors.UnsupportedModeError, match="Reverse-mode"):
        gl.hvp(loop, mode="forward_over_reverse")(jnp.ones(2), jnp.ones(2))
    for mode, reason in (
        ("forward_over_reverse", "Reverse-mode"),
        ("taylor", "while"),
        ("forward_laplacian", "while_loop"),
    ):
        with pytest.raises(errors.UnsupportedModeError, match=rf"{reason}.*can run here: hessian_trace"):
            laplacian.compute(loop, jnp.ones(2), mode)


# --- the forward Laplacian ---


def named(name, f):
    """A user's function of a name that folx has a rule for."""
    f.__name__ = name
    return jax.jit(f)


def matrix(x):
    return jnp.outer(x, jnp.sin(x)) + 3 * jnp.eye(3)


def over_inputs(x):
    """A scan over what depends on x, that stacks up what does."""
    c, ys = jax.lax.scan(lambda c, k: (jnp.sin(c) * k + 1, c * k), jnp.ones(2), x, reverse=True)
    return jnp.sum(c) + jnp.vdot(ys, jnp.arange(6.0).reshape(3, 2)) ** 2


FORWARD = {
    "a user's sigmoid": lambda x: jnp.sum(named("sigmoid", lambda x: x**4)(x)),
    "a user's solve": lambda x: jnp.sum(named("solve", lambda a, b: a @ b * b)(matrix(x), x)),
    "the same within a scan": lambda x: jnp.sum(
        jax.lax.scan(lambda c, _: (named("sign", lambda c: c**3)(c), None), x, length=2)[0]
    ),
    "sigmoid": lambda x: jnp.sum(jax.nn.sigmoid(x) * jax.nn.silu(x)),
    "softplus": lambda x: jnp.sum(jax.nn.softplus(x) * jnp.logaddexp(x, x[::-1])),
    "relu": lambda x: jnp.sum(jax.nn.relu(x) ** 3),
    "determinant": lambda x: jnp.linalg.det(matrix(x)) + jnp.linalg.slogdet(matrix(x))[1],
    "solve and inverse": lambda x: jnp.sum(jnp.linalg.solve(matrix(x), x)) + jnp.sum(jnp.linalg.inv(matrix(x)) ** 2),
    "branch": lambda x: jax.lax.cond(x[0] > 0, lambda x: jnp.sum(x**3), lambda x: jnp.sum(jnp.sin(x)), x),
    "loop": lambda x: jnp.sum(jax.lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * x + i, jnp.ones(3))),
    "scan over inputs": over_inputs,
    "rounded": lambda x: jnp.sum(x**2 * jnp.floor(3 * x) + (10 * x).astype(jnp.int32) * x**2),
    "indexed": lambda x: jnp.sum(x[jnp.array([0, 2, 2, 1])] ** 3 * jnp.arange(4.0)) + x[jnp.argmax(x)] ** 2,
    "scattered": lambda x: (
        jnp.sum(jnp.zeros(4).at[jnp.array([0, 0, 2])].add(x**2) ** 2) + jnp.sum(x.at[1].set(x[0]) ** 3)
    ),
    "sorted": lambda x: jnp.vdot(jnp.sort(x) ** 2, jnp.arange(3.0)),
    "cumulated": lambda x: jnp.sum(jnp.sin(jnp.cumsum(x)) ** 2) + jnp.sum(jnp.cumprod(x) ** 2),
    "chosen": lambda x: (
        jnp.max(x) ** 3 + jnp.sum(jnp.where(x > 0.2, x**3, jnp.sin(x))) + jnp.sum(jnp.clip(x, -0.5, 0.5) ** 2)
    ),
    "divided": lambda x: jnp.sum(x / (1 + x[::-1] ** 2)) + jnp.sum(jnp.arctan2(x, x[::-1] + 2)),
    "contracted": lambda x: jnp.sum(jnp.einsum("bi,bj->bij", matrix(x), matrix(x)) ** 2),
    "checkpointed": lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(x) ** 2)(x)),
    "stopped": lambda x: jnp.sum(x**2 * jax.lax.stop_gradient(x)),
    "a slope": lambda x: jnp.sum(jax.grad(lambda y: jnp.sum(jnp.sin(y) * y))(x) ** 2),
    "mapped": lambda x: jnp.sum(jax.vmap(lambda y: jnp.vdot(matrix(x)[0], x) * y)(x)),
    "constant": lambda x: jnp.asarray(3.0),
}


@pytest.mark.parametrize("names", np.array_split(list(FORWARD), 4), ids=lambda names: names[0])
def test_the_forward_laplacian_is_right_on_every_kind_of_operator(names, same):
    pytest.importorskip("folx")
    forward = partial(laplacian.compute, mode="forward_laplacian", chunk_size=2)
    x = jnp.array([0.3, -0.7, 1.1])
    for given, wanted in hasty(lambda x: [(forward(FORWARD[n], x), expected(FORWARD[n], x)) for n in names])(x):
        same(given, wanted, 1e-4)


def doubled_slope():
    f = jax.custom_jvp(jnp.sin)
    f.defjvp(lambda p, t: (jnp.sin(p[0]), 2 * jnp.cos(p[0]) * t[0]))
    return f


def tripled_slope():
    f = jax.custom_vjp(lambda x: jnp.sin(x))
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, w: (3 * w * jnp.cos(x),))
    return f


REFUSED = {
    "rule of sin": lambda x: jnp.sum(doubled_slope()(x)),
    "rule of <lambda>": lambda x: jnp.sum(tripled_slope()(x)),
    "the rule": lambda x: jnp.sum(jax.lax.cond(x[0] > 0, doubled_slope(), jnp.cos, x)),
    "folx fails at top_k": lambda x: jnp.sum(jax.lax.top_k(x, 2)[0] ** 2),
    "writing out 400 steps": lambda x: jnp.sum(
        jax.lax.scan(lambda c, _: (jax.lax.scan(lambda c, _: (jnp.sin(c), None), c, length=20)[0], None), x, length=20)[
            0
        ]
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_forward_laplacian_fails_on_or_gets_wrong_is_refused(reason):
    pytest.importorskip("folx")
    with pytest.raises(errors.UnsupportedModeError, match=rf"{reason}.*can run here: forward_over_reverse, "):
        laplacian.compute(REFUSED[reason], jnp.array([0.3, -0.7, 1.1]), "forward_laplacian")


def test_rules_and_loops_that_no_input_reaches_are_no_obstacle(same):
    pytest.importorskip("folx")
    constant = lambda: doubled_slope()(jnp.ones(3)) + jax.lax.fori_loop(0, 500, lambda i, c: c + 0.01, jnp.zeros(3))
    f = lambda x: jnp.sum(constant() * x**2)
    same(jax.jit(partial(laplacian.compute, f, mode="forward_laplacian"))(jnp.ones(3)), 2 * jnp.sum(constant()))


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "folx", None)
    with pytest.raises(errors.MissingExtraError, match=r'pip install "gradlab-jax\[laplacian\]"'):
        laplacian.compute(powers, point(), "forward_laplacian")
    assert laplacian.choose(powers, point()).mode in set(ALL) - {"forward_laplacian"}

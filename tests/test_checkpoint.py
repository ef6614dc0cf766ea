"""A rematerialized function has the same value and gradient, and its reverse mode keeps less."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from conftest import cast, hasty

from gradlab import errors
from gradlab.jaxprs import trace
from gradlab.jaxprs.rewriting import segmented
from gradlab.mode.checkpoint import rematerialized
from gradlab.timing import compiled, temporary_bytes

POLICIES = ("none", "dots", "everything", "segments")
draw = partial(jax.random.key, impl="rbg")


def oscillator(p, length=23):
    """A carry of two leaves, numbers scanned over, and one output a step."""

    def step(state, force):
        v = state["v"] - 0.1 * jnp.sin(state["q"]) * p["k"] + 0.1 * force
        return {"q": state["q"] + 0.1 * v, "v": v}, jnp.vdot(v, v)

    last, energies = jax.lax.scan(step, {"q": p["q"], "v": 0 * p["q"]}, jnp.sin(jnp.arange(length * 1.0)) * p["k"][0])
    return jnp.sum(last["q"] ** 2) + energies[length // 3]


def reversed_scan(p):
    body = lambda c, x: (jnp.sin(c) * x + p["k"], c[:2] * x)
    last, ys = jax.lax.scan(body, p["q"], jnp.linspace(0.5, 1.0, 23), reverse=True)
    return jnp.sum(last) + jnp.vdot(ys[:, 0], jnp.arange(23.0))


def length_only(p):
    return jnp.sum(jax.lax.scan(lambda c, _: (jnp.cos(c * p["k"]), None), p["q"], length=17)[0])


def integers_and_keys(p):
    def step(state, i):
        c, count, key = state
        key, draw = jax.random.split(key)
        c = c * jnp.where(count % 2 == 0, 1.1, 0.9) + 0.1 * jax.random.normal(draw, c.shape) * p["k"][i % 3]
        return (c, count + i, key), (count, draw)

    (c, count, _), (counts, draws) = jax.lax.scan(step, (p["q"], 0, draw(3)), jnp.arange(11))
    drawn = jax.vmap(jax.random.uniform)(draws)
    return jnp.sum(c) * count / counts[-1] + jnp.vdot(drawn, jnp.arange(11.0)) * p["q"][0]


def scanned_keys(p):
    keys = jax.random.split(draw(1), 13)
    last, same = jax.lax.scan(lambda c, key: (jnp.sin(c) + jax.random.normal(key) * p["k"], key), p["q"], keys)
    return jnp.sum(last) * jax.random.uniform(same[12])


def nested(p):
    def outer(c, x):
        inner = lambda c, y: (jnp.sin(c * y + p["k"]), None)
        return jax.lax.scan(inner, c * x, jnp.linspace(0.9, 1.1, 7))[0], x * c[0]

    c, ys = jax.lax.scan(outer, p["q"], jnp.linspace(0.9, 1.1, 10))
    return jnp.sum(c) + jnp.sum(ys**2)


def inside_jit(p):
    f = jax.jit(lambda q: jnp.tanh(length_only({**p, "q": q})) + oscillator(p))
    return f(jnp.sin(p["q"])) + jax.jit(f)(p["q"])


def inside_checkpoint(p):
    return jax.checkpoint(oscillator, policy=jax.checkpoint_policies.dots_saveable)(p) + jax.checkpoint(nested)(p)


def ruled(p):
    """Rules of either kind in the body, and a `cond`, a `while_loop` and a short loop around it."""
    half = jax.custom_vjp(lambda x: x / 2)
    half.defvjp(lambda x: (x / 2, None), lambda _, w: (w / 3,))
    body = lambda c, i: (jax.lax.cond(i % 2 == 0, jnp.sin, half, jax.nn.softplus(c)), None)
    c = jax.lax.scan(body, p["q"], jnp.arange(9))[0]
    count = jax.lax.while_loop(lambda i: i < 5, lambda i: i + 1, 0)
    return jnp.sum(jax.lax.scan(lambda c, _: (half(c) * count, None), c * p["k"], length=2)[0])


def nothing_scanned(p):
    empty = jax.lax.scan(lambda c, x: (c * x, c), p["q"], jnp.zeros((0,)))
    return jnp.sum(empty[0]) + jnp.sum(empty[1])


FUNCTIONS = (
    oscillator,
    reversed_scan,
    length_only,
    integers_and_keys,
    scanned_keys,
    nested,
    inside_jit,
    inside_checkpoint,
    ruled,
    nothing_scanned,
)


def point(dtype=jnp.float32):
    return cast({"q": jnp.array([0.3, -0.4, 0.7]), "k": jnp.array([1.0, 0.8, 1.2])}, dtype)


def slopes(f, p, takes):
    """The gradient of f, and of f rematerialized in each of these ways, from one program."""
    same_f = [f, *(take(f, p) for take in takes)]
    return hasty(lambda p: [jax.value_and_grad(g)(p) for g in same_f])(p)


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_value_and_gradient_are_those_of_the_function(f, same):
    expected, *given = slopes(f, point(), [partial(rematerialized, policy=policy) for policy in POLICIES])
    for one in given:
        same(one, expected)


def in_segments(size, f, x):
    return segmented(trace(f, x), size)


@pytest.mark.parametrize("f", [oscillator, reversed_scan], ids=lambda f: f.__name__)
def test_segments_of_any_size_agree_in_float64_to_its_rounding(f, same):
    with jax.enable_x64(True):
        sizes = (None, 1, 5, 22, 23, 100)
        takes = [partial(in_segments, size) for size in sizes]
        expected, *given = slopes(f, point(jnp.float64), takes)
        for one in given:
            same(one, expected)


def test_loops_of_any_length_give_the_same_gradient(same):
    p = point()
    for length in (1, 3, 4, 6, 31):
        expected, given = slopes(partial(oscillator, length=length), p, [rematerialized])
        same(given, expected)


def test_a_function_may_close_over_traced_values_under_vmap_and_jit(same):
    rows = jnp.linspace(0.5, 1.0, 6).reshape(2, 3)

    def slope(take):
        def one(q, scale):
            f = lambda q: oscillator({"q": q, "k": scale * jnp.ones(3)}) * scale
            return jax.grad(take(f, q))(q)

        return hasty(jax.vmap(one))(rows, jnp.array([0.7, 1.3]))

    same(slope(rematerialized), slope(lambda f, q: f))


def test_auxiliary_outputs_come_along(same):
    p, f = point(), lambda p: (oscillator(p), {"q": p["q"] * 2, "none": None, "text": "as it is"})
    for policy in POLICIES:
        slope, aux = jax.grad(rematerialized(f, p, policy), has_aux=True)(p)
        assert aux.pop("text") == "as it is"
        same((slope, aux), (jax.grad(oscillator)(p), {"q": p["q"] * 2, "none": None}))


def test_second_derivatives_go_through_segments(same):
    p = point()
    v = jax.tree.map(jnp.cos, p)
    along = lambda f: hasty(lambda p: jax.jvp(jax.grad(f), (p,), (v,))[1])(p)
    same(along(rematerialized(nested, p)), along(nested), 1e-4)


def memory(f, x, policy="segments"):
    return slope_memory(lambda x: rematerialized(f, x, policy), x)


def slope_memory(take, x):
    return temporary_bytes(compiled(lambda x: jax.grad(take(x))(x), x))


def test_segments_cut_the_memory_of_a_long_loop_to_a_tenth():
    x = jnp.linspace(0.1, 1.0, 200)
    f = lambda x: jnp.sum(jax.lax.scan(lambda c, _: (jnp.sin(c) * x + jnp.cos(c), None), x, length=1000)[0])
    plain, cut = memory(f, x, "none"), memory(f, x)
    assert cut <= plain / 10
    assert memory(f, x, "everything") < plain
    assert cut < slope_memory(lambda x: in_segments(500, f, x), x) < plain
    assert memory(lambda x: jax.jit(f)(jnp.tanh(x)) ** 2, x) <= plain / 10


def test_a_scan_inside_a_scan_is_cut_too():
    x = jnp.linspace(0.1, 1.0, 200)
    inner = lambda c, _: (jnp.sin(c) * x + jnp.cos(c), None)
    outer = lambda c, _: (jax.lax.scan(inner, c, length=400)[0], None)
    f = lambda x: jnp.sum(jax.lax.scan(outer, x, length=3)[0])
    assert memory(f, x) <= memory(f, x, "none") / 5


def test_options_that_do_not_exist_are_named():
    with pytest.raises(errors.OptionError, match=r"no policy 'segment'.*Did you mean 'segments'"):
        rematerialized(jnp.sum, jnp.ones(3), "segment")

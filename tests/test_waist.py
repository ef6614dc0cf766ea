"""A Jacobian that is cut where few numbers cross is JAX's own, in a fraction of the passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cast

from gradlab import errors
from gradlab.jaxprs import trace
from gradlab.jaxprs.segments import flow_of
from gradlab.mode import waist
from gradlab.mode.chain import narrow_order

N, WAIST, M = 40, 3, 30
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=N)


def weights(m, n):
    return GENERATOR.normal(size=(m, n)) / np.sqrt(n)


INNER, NARROW, WIDE, OUTER = weights(50, N), weights(WAIST, 50), weights(60, WAIST), weights(M, 60)
SIDE_IN, SIDE_OUT, DOWN, FLAT = weights(2, N), weights(M, 2), weights(WAIST, N), weights(N, 28)
KERNEL = weights(2, 9).reshape(2, 1, 3, 3)
SPREAD = weights(M, 7)


# Casts copy: JAX 0.10 takes what a function closed over when it was compiled in float64 for float64 ever after.
def encode(x):
    return NARROW.astype(x.dtype) @ jnp.tanh(INNER.astype(x.dtype) @ x)


def decode(z):
    return OUTER.astype(z.dtype) @ jnp.sin(WIDE.astype(z.dtype) @ z)


def net(x):
    return decode(encode(x))


@jax.custom_vjp
def backward_only(x):
    return jnp.sin(x)


backward_only.defvjp(lambda x: (jnp.sin(x), jnp.cos(x)), lambda slope, w: (w * slope,))


def forward_only(x):
    step = lambda state: (jnp.tanh(state[0]) * 1.1, state[1] + 1)
    return jax.lax.while_loop(lambda state: state[1] < 3, step, (x, 0))[0]


def same_slope(x):
    """What `forward_only` computes, with both modes."""
    for _ in range(3):
        x = jnp.tanh(x) * 1.1
    return x


def normalized(z):
    return (z - z.mean()) / jnp.sqrt(z.var() + 1e-5)


def attention(x):
    tokens = x.reshape(8, 5)
    return (jax.nn.softmax(tokens @ tokens.T) @ tokens).ravel()


def convolved(x):
    image = x.reshape(1, 1, 8, 5)
    hidden = jax.nn.relu(jax.lax.conv_general_dilated(image, jnp.asarray(KERNEL, x.dtype), (2, 2), "SAME"))
    return decode(jnp.mean(hidden, axis=(2, 3)).ravel()[:1] * jnp.ones(WAIST, x.dtype))


def scanned(x):
    z, ys = jax.lax.scan(lambda z, _: (jnp.sin(z) * 1.2, z.sum()), encode(x), None, length=4)
    return decode(z) * ys.sum()


def solved(z):
    return jnp.linalg.solve(3 * jnp.eye(WAIST, dtype=z.dtype) + jnp.outer(z, z), z)


def indexed(x):
    order = jnp.argsort(x)[:7] % M
    return net(x)[order] * jnp.where(x[:7] > 0, 1.0, 2.0)


def parallel(p):
    a, b = p
    return decode(encode(a)), decode(encode(b))


def late(x):
    y = net(x)
    return y + SIDE_OUT @ (SIDE_IN @ x)


def nested(p):
    x = p["x"][0].ravel() * p["scale"]
    y = net(x)
    return {"y": y, "part": (p["scale"], y[:4].reshape(2, 2)), "fixed": jnp.ones(3)}


TREE = {"x": (X.reshape(8, 5),), "scale": 1.3, "unused": np.ones((2, 2))}
# name: function, point, widths of the cuts
CASES = {
    "net": (net, X, [3]),
    "two waists": (lambda x: decode(jnp.tanh(WIDE.T @ jnp.exp(WIDE @ encode(x)))), X, [3]),
    "skip connection": (lambda x: net(x) + SIDE_OUT @ jnp.cos(SIDE_IN @ x), X, [5]),
    "used late": (late, X, [5]),
    "parallel": (parallel, (X, X[::-1].copy()), [6]),
    "jit": (jax.jit(lambda x: jax.jit(decode)(jax.jit(encode)(x))), X, [3]),
    "remat": (lambda x: jax.checkpoint(decode)(jax.checkpoint(encode)(x)), X, [3]),
    "activations": (lambda x: jax.nn.gelu(decode(jax.nn.softmax(jax.nn.relu(encode(jax.nn.silu(x)))))), X, [3]),
    "attention": (lambda x: net(attention(x)), X, [3]),
    "layer norm": (lambda x: normalized(decode(normalized(encode(normalized(x))))), X, [3]),
    "scan": (scanned, X, [3]),
    "convolution": (convolved, X, [1]),
    "sum": (lambda x: jnp.sin(jnp.sum(x**2)) * SPREAD, X, [1]),
    "low rank": (lambda x: OUTER[:, :9] @ jnp.outer(encode(x), jnp.sin(encode(x))).ravel(), X, [6]),
    "linear solve": (lambda x: decode(solved(encode(x))), X, [3]),
    "cond": (lambda x: decode(jax.lax.cond(x[0] > 0, lambda z: z * 2, jnp.sin, encode(x))), X, [3]),
    "fft": (lambda x: decode(jnp.abs(jnp.fft.rfft(x))[1:4]), X, [3]),
    "integers cross": (indexed, X, [3]),
    "stopped": (lambda x: decode(encode(x) * jax.lax.stop_gradient(x).sum()), X, [3]),
    "random": (lambda x: decode(encode(x) + jax.random.normal(jax.random.key(3), (WAIST,), x.dtype)), X, [3]),
    "pytree": (nested, TREE, [4]),
    "outputs twice": (lambda x: (lambda y: (y, y, x[0]))(net(x)), X, [4]),
}  # fmt: skip


def cut(f, x, **options):
    return waist.jacobian(f, x, waist.plan(f, x, has_aux=options.get("has_aux", False)), **options)


def agree(same, ours, theirs, x, tol=None):
    """Both are compiled as one program, which takes less time than two."""
    same(*jax.jit(lambda x: (ours(x), theirs(x)))(x), tol)


@pytest.mark.parametrize("name", CASES)
def test_a_jacobian_that_is_cut_is_jax_own(name, same):
    with jax.enable_x64(True):
        f, x, widths = CASES[name]
        x = cast(x, jnp.float64)
        plan = waist.plan(f, x)
        assert [c.width for c in plan.cuts] == widths
        agree(same, lambda x: waist.jacobian(f, x, plan), jax.jacobian(f), x, 1e-10)


@pytest.mark.parametrize("name", ["net", "pytree", "integers cross", "stopped"])
def test_it_is_jax_own_in_single_precision_too(name, same):
    f, x, _ = CASES[name]
    agree(same, lambda x: cut(f, x), jax.jacobian(f), cast(x, jnp.float32))


@pytest.mark.parametrize("chunk", [3, 100])
def test_chunks_of_any_size_give_the_same_jacobian(chunk, same):
    f, x, _ = CASES["pytree"]
    x = cast(x, jnp.float32)
    agree(same, lambda x: cut(f, x, chunk_size=chunk), jax.jacobian(f), x)


def test_of_many_waists_the_narrowest_is_the_one_that_pays(same):
    sizes = [(50, 4), (4, 60), (60, 3), (3, 45), (45, 5), (5, 70)]
    layers = [jnp.asarray(weights(out, into), jnp.float32) for into, out in sizes]

    def f(x):
        for layer in layers:
            x = jnp.sin(layer @ x)
        return x

    x = jnp.asarray(weights(1, 50)[0], jnp.float32)
    plan = waist.plan(f, x)
    assert [c.width for c in plan.cuts] == [3] and plan.work < plan.dense_work / 4
    agree(same, lambda x: waist.jacobian(f, x, plan), jax.jacobian(f), x)


def test_a_plan_takes_a_twentyfifth_of_the_operations():
    layers = [jnp.asarray(weights(*shape), jnp.float32) for shape in ((256, 256), (4, 256), (256, 4), (256, 256))]

    def f(x):
        for layer in layers:
            x = jnp.tanh(layer @ x)
        return x

    x = jnp.ones(256)
    plan = waist.plan(f, x)
    flops = lambda g: jax.jit(g).lower(x).compile().cost_analysis()["flops"]
    assert plan.passes == 8
    assert flops(lambda x: waist.jacobian(f, x, plan)) * 25 <= flops(jax.jacobian(f))


@pytest.mark.parametrize(
    ("f", "twin", "widths"),
    [
        (
            lambda x: backward_only(decode(forward_only(encode(x)))),
            lambda x: jnp.sin(decode(same_slope(encode(x)))),
            [3, 30],
        ),
        (lambda x: backward_only(INNER @ forward_only(x)), lambda x: jnp.sin(INNER @ same_slope(x)), [50]),
        (lambda x: decode(forward_only(DOWN @ backward_only(x))), lambda x: decode(same_slope(DOWN @ jnp.sin(x))), [3]),
    ],
    ids=["forward then reverse", "without a waist", "reverse then forward"],
)
def test_rules_for_one_mode_on_each_side_of_a_cut_both_run(f, twin, widths, same):
    x = cast(X, jnp.float32)
    for dense in (jax.jacfwd, jax.jacrev):
        with pytest.raises((TypeError, ValueError)):
            jax.jit(dense(f))(x)
    plan = waist.plan(f, x)
    assert [c.width for c in plan.cuts] == widths
    same(jax.jit(lambda x: waist.jacobian(f, x, plan))(x), jax.jacobian(twin)(x))


def test_it_works_under_jit_vmap_and_derivatives(same):
    x = cast(X, jnp.float32)
    many = jnp.stack([x, 2 * x])
    agree(same, jax.vmap(lambda x: cut(net, x)), jax.vmap(jax.jacobian(net)), many)
    agree(same, lambda many: jax.lax.map(lambda x: cut(net, x), many), jax.vmap(jax.jacobian(net)), many)
    size = lambda take: lambda x: jnp.sum(take(x) ** 2)
    ours, theirs = size(lambda x: cut(net, x)), size(jax.jacobian(net))
    agree(same, jax.grad(ours), jax.grad(theirs), x, 1e-4)
    agree(same, jax.jacfwd(ours), jax.grad(theirs), x, 1e-4)


def test_a_function_may_close_over_traced_weights(same):
    x = cast(X, jnp.float32)
    model = lambda w: lambda x: jnp.sin(w["out"] @ jnp.tanh(w["in"] @ x))
    w = cast({"in": NARROW @ INNER, "out": OUTER @ WIDE}, jnp.float32)
    ours, theirs = lambda w: cut(model(w), x), lambda w: jax.jacobian(model(w))(x)
    agree(same, ours, theirs, w)
    agree(same, jax.vmap(ours), jax.vmap(theirs), jax.tree.map(lambda a: jnp.stack([a, 2 * a]), w))
    slope = lambda take: jax.grad(lambda w: jnp.sum(take(w) ** 2))
    agree(same, slope(ours), slope(theirs), w, 1e-4)


def test_a_plan_from_shapes_holds_for_values_that_come_later(same):
    plan = waist.plan(net, jax.ShapeDtypeStruct((N,), jnp.float32))
    x = cast(X, jnp.float32)
    same(jax.jit(lambda x: waist.jacobian(net, x, plan))(x), jax.jacobian(net)(x))


def test_aux_is_returned_as_it_is_and_does_not_widen_a_cut(same):
    x = cast(X, jnp.float32)
    f = lambda x: (net(x), {"x": x, "loop": forward_only(x), "first": jnp.argmax(x), "name": "net", "three": 3})
    plan = waist.plan(f, x, has_aux=True)
    jac, aux = waist.jacobian(f, x, plan, has_aux=True)
    assert [c.width for c in plan.cuts] == [WAIST]
    assert (aux["name"], aux["three"], int(aux["first"])) == ("net", 3, int(np.argmax(X)))
    same(jac, jax.jacobian(net)(x))
    same([aux["x"], aux["loop"]], [x, same_slope(x)])


def test_a_plan_without_aux_serves_the_function_with_aux(same):
    x = cast(X, jnp.float32)
    f = lambda x: (net(x), x.sum())
    jac, aux = waist.jacobian(f, x, waist.plan(net, x), has_aux=True)
    same((jac, aux), (jax.jacobian(net)(x), x.sum()))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_print_is_kept_once(ordered, compiled, capsys):
    def f(x):
        z = encode(x)
        jax.debug.print("first {}", z.size, ordered=ordered)
        jax.debug.print("then {s}", s=z.sum(), ordered=ordered)
        return decode(z)

    take = lambda x: cut(f, x)
    jax.block_until_ready((jax.jit(take) if compiled else take)(cast(X, jnp.float32)))
    jax.effects_barrier()
    printed = capsys.readouterr().out
    assert printed.count("first") == printed.count("then") == 1


def test_effects_that_would_run_twice_are_refused():
    def body(z, _):
        jax.debug.print("first {}", z[0])
        return jnp.sin(z), None

    f = lambda x: decode(jax.lax.scan(body, encode(x), None, length=3)[0])
    with pytest.raises(errors.UnsupportedModeError, match=r"effects inside the scan at .*test_waist.py:\d+"):
        waist.plan(f, cast(X, jnp.float32))


def test_dtypes_may_differ_between_leaves(same):
    with jax.enable_x64(True):
        x = {"single": jnp.asarray(X, jnp.float32), "double": jnp.float64(1.5)}
        layers = cast([NARROW @ INNER, OUTER @ WIDE], jnp.float32)

        def f(p):
            z = jnp.tanh(layers[0] @ (p["single"] * p["double"].astype(jnp.float32)))
            y = layers[1] @ z
            return {"double": y.astype(jnp.float64) * 2, "single": jnp.sin(y)}

        agree(same, lambda x: cut(f, x), jax.jacobian(f), x, 1e-5)


def test_a_plan_says_where_it_cut():
    def f(x):
        with jax.named_scope("encoder"):
            z = encode(x)
        with jax.named_scope("decoder"):
            return jax.jit(decode)(z)

    plan = waist.plan(f, cast(X, jnp.float32))
    line = encode.__code__.co_firstlineno + 1
    assert plan.cuts[0].scope == "encoder"
    assert plan.cuts[0].source.endswith(f"test_waist.py:{line} (encode)")
    assert str(plan).startswith("cut at 3 numbers (encoder, ") and str(plan).endswith(f"test_waist.py:{line})")


def test_the_order_of_a_program_is_changed_where_that_makes_a_waist():
    x = (cast(X, jnp.float32), cast(X, jnp.float32))
    flow = flow_of(trace(parallel, x), 2)
    written = flow.ordered(range(len(flow.middle)))
    narrow = flow.ordered(narrow_order(flow, 1000))
    assert min(written.widths[1:-1]) >= M > min(narrow.widths) == 2 * WAIST
    assert sorted(map(id, narrow.steps)) == sorted(map(id, written.steps))


@pytest.mark.parametrize(
    ("f", "match"),
    [
        (lambda x: net(x) + x[:M], "fewer than 30 numbers cross; the narrowest is 43 numbers"),
        (lambda x: x - x.mean(), "fewer than 40 numbers cross; the narrowest is 41 numbers"),
        (jnp.sin, "no place between two operators"),
        (lambda x: jnp.ones(3), "no place between two operators"),
        (lambda x: jnp.fft.ifft(jnp.fft.fft(x)), "has dtype complex64"),
        (lambda x: jnp.fft.ifft(jnp.fft.fft(x)).real, "only real numbers cross"),
        (lambda x: jax.lax.map(lambda a: backward_only(forward_only(a)), x) * 2, "one mode that can run"),
        (lambda x: jnp.sin(weights(2, N) @ x), "fewer than 2 numbers"),
        (lambda x: FLAT @ (FLAT.T @ x), "a cut at the narrowest place, 28 numbers .* of the work of a dense mode"),
    ],
)
def test_a_function_without_a_waist_is_refused_and_told_why(f, match):
    with pytest.raises(errors.UnsupportedModeError, match=match):
        waist.plan(f, cast(X, jnp.float32))


def test_a_plan_for_another_program_is_refused():
    x = cast(X, jnp.float32)
    with pytest.raises(errors.ArgumentError, match=r"operators.*Make it with plan"):
        waist.jacobian(jnp.sin, x, waist.plan(net, x))

"""Each fused operator is its plain composition, in value, gradient and both mixtures of second order; it keeps less."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab import fused, losses
from gradlab.errors import DtypeError, OptionError, ShapeError

LABELS = jnp.array([3, 0, 2])


def plain_softmax(x, axis=-1):
    e = jnp.exp(x - jnp.max(x, axis, keepdims=True))
    return e / jnp.sum(e, axis, keepdims=True)


def plain_layer_norm(x, scale, bias, axis=-1, epsilon=1e-5):
    apart = x - jnp.mean(x, axis, keepdims=True)
    normalized = apart / jnp.sqrt(jnp.mean(apart**2, axis, keepdims=True) + epsilon)
    along = lambda a: jnp.moveaxis(jnp.broadcast_to(a, np.moveaxis(np.empty(x.shape), axis, -1).shape), -1, axis)
    return normalized * along(scale) + along(bias)


def plain_attention(q, k, v, is_causal=False, scale=None):
    scores = jnp.einsum("...id,...jd->...ij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        scores = jnp.where(jnp.arange(scores.shape[-2])[:, None] >= jnp.arange(scores.shape[-1]), scores, -jnp.inf)
    return jnp.einsum("...ij,...jd->...id", plain_softmax(scores), v)


@dataclass(frozen=True)
class Pair:
    """A fused operator, what it is made of, and the shapes of its inputs."""

    fused: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]

    def inputs(self, dtype: Any) -> tuple[jax.Array, ...]:
        return normal(7, self.shapes, dtype)


def normal(seed: int, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> tuple[jax.Array, ...]:
    draw = np.random.default_rng(seed)  # compiles nothing
    return tuple(jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes)


def both(name: str, *shapes: tuple[int, ...], **options: Any) -> Pair:
    plain = {"softmax": plain_softmax, "layer_norm": plain_layer_norm, "attention": plain_attention}[name]
    return Pair(lambda *a: getattr(fused, name)(*a, **options), lambda *a: plain(*a, **options), shapes)


PAIRS = {
    "softmax": both("softmax", (3, 5)),
    "softmax of the first axis": both("softmax", (4, 3), axis=0),
    "logistic": Pair(fused.logistic, lambda x: 1 / (1 + jnp.exp(-x)), ((2, 3),)),
    "cross-entropy of classes": Pair(
        lambda z: fused.softmax_cross_entropy(z, LABELS),
        lambda z: -jnp.log(plain_softmax(z))[jnp.arange(3), LABELS],
        ((3, 4),),
    ),
    "cross-entropy of probabilities": Pair(
        lambda z, y: fused.softmax_cross_entropy(z, y, axis=1),
        lambda z, y: -jnp.sum(y * jnp.log(plain_softmax(z, 1)), axis=1),
        ((2, 4, 3), (2, 4, 3)),
    ),
    "layer norm": both("layer_norm", (2, 1, 3), (3,), (3,)),
    "layer norm by one scale": both("layer_norm", (4, 3), (), (4,), axis=0, epsilon=0.1),
    "attention": both("attention", (2, 2), (3, 2), (3, 1)),
    "causal attention of heads": both("attention", (2, 1, 3, 2), (2, 4, 2), (1, 4, 3), is_causal=True),
    "attention of a learned scale": Pair(
        lambda q, k, v, s: fused.attention(q, k, v, scale=s),
        lambda q, k, v, s: plain_attention(q, k, v, scale=s),
        ((2, 3), (2, 3), (2, 1), ()),
    ),
}
# One of each operator.
PLAIN = ("softmax", "logistic", "cross-entropy of classes", "layer norm", "attention")
each = pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))


def scalar(f):
    """A number in which every entry of every output counts, and none linearly."""

    def g(args):
        out = f(*args)
        return jnp.sum(jnp.sin(out + jnp.arange(out.size, dtype=out.dtype).reshape(out.shape)))

    return g


@each
def test_value_and_gradient_are_those_of_the_composition(pair, dtype, same):
    derived = lambda f: lambda args: (f(*args), jax.grad(scalar(f))(args))
    same(*jax.jit(lambda args: (derived(pair.fused)(args), derived(pair.plain)(args)))(pair.inputs(dtype)))


@each
def test_second_derivatives_of_both_mixtures_are_those_of_the_composition(pair, same):
    product = lambda f, mode: gl.hvp(scalar(f), mode=mode)
    cases = (
        product(pair.fused, "forward_over_reverse"),
        product(pair.fused, "reverse_over_reverse"),
        product(pair.plain, "forward_over_reverse"),
    )
    with jax.enable_x64(True):
        args, v = pair.inputs(jnp.float64), normal(8, pair.shapes, jnp.float64)
        over_forward, over_reverse, expected = jax.jit(lambda *at: [case(*at) for case in cases])(args, v)
        same(over_forward, expected)
        same(over_reverse, expected)


# Each rule once. The first row of causal attention sees one key: its slope by the query is rounding, and no difference
# tells rounding from a value.
@pytest.mark.parametrize("name", [*PLAIN, "cross-entropy of probabilities"])
def test_check_finds_nothing_wrong_to_second_order(name):
    pair = PAIRS[name]
    found = gl.check(pair.fused, *pair.inputs(jnp.float32), order=2)
    assert found.ok, str(found)


@each
def test_a_mapped_operator_is_the_operator_of_each_example(pair, same):
    slopes = jax.grad(scalar(pair.fused))
    batch = tuple(jnp.asarray(np.stack([a, 2 * np.asarray(a)])) for a in pair.inputs(jnp.float32))
    mapped, *alone = jax.jit(
        lambda batch: (jax.vmap(slopes)(batch), *(slopes(tuple(a[i] for a in batch)) for i in range(2)))
    )(batch)
    for i, one in enumerate(alone):
        same(tuple(np.asarray(a)[i] for a in mapped), one)


def test_a_hessian_takes_a_mode_that_the_operator_has(same):
    x = jnp.array([0.3, -1.0, 2.0])
    f = lambda softmax: lambda x: jnp.sum(softmax(x) ** 2)
    same(*jax.jit(lambda x: (gl.hessian(f(fused.softmax))(x), jax.hessian(f(plain_softmax))(x)))(x))


@pytest.mark.parametrize("name", PLAIN)
def test_inputs_of_1e4_give_finite_values_and_gradients_in_both_orders(name):
    pair = PAIRS[name]
    args = tuple(jnp.asarray(1e4 * np.sign(a)) for a in pair.inputs(jnp.float32))
    results = jax.jit(
        lambda args: (pair.fused(*args), jax.grad(scalar(pair.fused))(args), gl.hvp(scalar(pair.fused))(args, args))
    )(args)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))


def test_cross_entropy_keeps_its_digits_at_large_logits():
    value, slope = jax.value_and_grad(fused.softmax_cross_entropy)(jnp.full(3, 1e4), 1)
    assert float(value) == pytest.approx(np.log(3), rel=1e-6)
    np.testing.assert_allclose(slope, [1 / 3, -2 / 3, 1 / 3], rtol=1e-6)


def test_attention_keeps_its_digits_at_large_scores(same):
    key = jnp.full((3, 1), 100.0)
    output, back = jax.vjp(fused.attention, key[:2], key, jnp.arange(3.0)[:, None])
    same(output, jnp.ones((2, 1)))
    same(back(output)[2], jnp.full((3, 1), 2 / 3))


def test_logistic_keeps_a_derivative_where_its_value_is_one():
    assert float(fused.logistic(30.0)) == 1.0
    assert float(jax.grad(fused.logistic)(30.0)) == pytest.approx(np.exp(-30.0), rel=1e-5)


@pytest.mark.parametrize("target", [LABELS, jax.nn.one_hot(LABELS, 4)], ids=["classes", "probabilities"])
def test_cross_entropy_is_the_loss_of_that_name(target, same):
    z = jax.random.normal(jax.random.key(1), (3, 4))
    same(fused.softmax_cross_entropy(z, target), losses.softmax_cross_entropy(z, target))
    same(fused.softmax_cross_entropy(z.T, target.T, axis=0), losses.softmax_cross_entropy(z, target))
    slopes = jax.jit(jax.vmap(jax.grad(fused.softmax_cross_entropy)))(z, target)
    same(slopes, losses.softmax_cross_entropy_derivative(z, target))


def test_a_class_that_is_masked_out_costs_nothing():
    value, slope = jax.value_and_grad(fused.softmax_cross_entropy)(jnp.array([0.0, -jnp.inf, 0.0]), 0)
    assert float(value) == pytest.approx(np.log(2), rel=1e-6)
    assert slope.tolist() == [-0.5, 0.0, 0.5]


def test_class_numbers_have_no_gradient():
    slopes = jax.grad(lambda args: fused.softmax_cross_entropy(*args).sum(), allow_int=True)(
        (jnp.zeros((3, 4)), LABELS)
    )
    assert slopes[1].dtype == jax.dtypes.float0 and slopes[1].shape == LABELS.shape


def test_causal_attention_does_not_see_the_future():
    q, k, v = normal(2, ((5, 2),) * 3, jnp.float32)
    slopes = jax.jit(jax.jacobian(lambda v: fused.attention(q, k, v, is_causal=True)[:, 0]))(v)[..., 0]
    assert bool(jnp.all((slopes > 0) == jnp.tri(5, dtype=bool)))


def test_integers_are_read_as_numbers_and_precisions_meet():
    assert fused.softmax(jnp.arange(3)).dtype == jnp.float32
    half = jnp.ones((2, 3), jnp.bfloat16)
    assert fused.softmax(half).dtype == fused.layer_norm(half, 1.0, 0.0).dtype == jnp.bfloat16
    slopes = jax.grad(lambda args: fused.layer_norm(*args).sum(), (0))((half, jnp.ones(3), 0.0))
    assert (slopes[0].dtype, slopes[1].dtype) == (jnp.bfloat16, jnp.float32)


def kept(f, args):
    """Bytes that wait for the backward: of the arrays that the pullback holds."""
    held = jax.tree.leaves(jax.eval_shape(lambda args: jax.vjp(f, *args)[1], args))
    return sum(a.size * a.dtype.itemsize for a in held)


@pytest.mark.parametrize(("name", "share"), zip(PLAIN, (1 / 2, 1, 3 / 4, 1 / 2, 1 / 2), strict=True))
def test_less_is_kept_for_the_backward(name, share):
    pair = PAIRS[name]
    shapes = {"attention": ((64, 4),) * 3, "layer norm": ((50, 16), (16,), (16,))}.get(name, ((3, 400),))
    args = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    assert kept(pair.fused, args) <= share * kept(pair.plain, args)


def test_attention_keeps_memory_linear_in_the_length():
    held = lambda n: kept(fused.attention, (jax.ShapeDtypeStruct((n, 4), jnp.float32),) * 3)
    assert held(512) == pytest.approx(2 * held(256), rel=0.01)


A = jnp.ones
MISTAKES = {
    "an axis that is not there": (lambda: fused.softmax(A((2, 3)), axis=2), ShapeError, r"axis=2 .*\(2, 3\)"),
    "a scalar": (lambda: fused.softmax(1.0), ShapeError, "axis=-1"),
    "nothing to choose from": (lambda: fused.softmax(A((2, 0))), ShapeError, r"\(2, 0\)"),
    "two axes": (lambda: fused.softmax(A((2, 3)), axis=(0, 1)), OptionError, "axis must be an integer"),
    "complex": (lambda: fused.logistic(1j), DtypeError, "complex x"),
    "as many classes as none": (lambda: fused.softmax_cross_entropy(A((5, 7)), A(4, int)), ShapeError, r"\(5, 7\)"),
    "classes that are floats": (lambda: fused.softmax_cross_entropy(A((5, 7)), A(5)), ShapeError, "integers"),
    "a scale of another length": (lambda: fused.layer_norm(A((2, 3)), A(2), A(3)), ShapeError, r"scale .*\(3,\)"),
    "a bias of another length": (lambda: fused.layer_norm(A((2, 3)), A(2), A(3), axis=0), ShapeError, "bias"),
    "no epsilon": (lambda: fused.layer_norm(A(3), 1.0, 0.0, epsilon=0.0), OptionError, "epsilon"),
    "keys of another width": (lambda: fused.attention(A((2, 3)), A((2, 4)), A((2, 3))), ShapeError, r"key .*\(2, 4\)"),
    "fewer values": (lambda: fused.attention(A((2, 3)), A((4, 3)), A((2, 3))), ShapeError, "n_keys"),
    "one token without its axis": (lambda: fused.attention(A(3), A((4, 3)), A((4, 3))), ShapeError, "length, d"),
    "no key": (lambda: fused.attention(A((2, 3)), A((0, 3)), A((0, 3))), ShapeError, "at least one key"),
    "batches": (lambda: fused.attention(A((2, 2, 3)), A((3, 2, 3)), A((2, 3))), ShapeError, "broadcast"),
    "a scale for each": (lambda: fused.attention(*[A((2, 3))] * 3, scale=A(3)), ShapeError, "scale must be a scalar"),
    "a mask": (lambda: fused.attention(*[A((2, 3))] * 3, is_causal=A((2, 2))), OptionError, "True or False"),
}


@pytest.mark.parametrize(("call", "error", "text"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_has_its_own_error_even_while_tracing(call, error, text):
    with pytest.raises(error, match=text):
        jax.eval_shape(call)


def test_layer_norm_of_large_numbers_in_half_precision():
    assert fused.layer_norm(jnp.array([0.0, 600.0], jnp.float16), 1.0, 0.0).tolist() == [-1.0, 1.0]

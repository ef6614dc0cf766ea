"""Operators with a hand-written backward: what is a dozen primitives elsewhere is one operator here, and keeps less.

Each is a pair. `_f_forward` returns the value and what the backward needs of it; `_f_backward` returns the cotangents.
Both are plain JAX on the last axis, so `forward_over_reverse` and `reverse_over_reverse` differentiate them once more;
forward mode alone has no rule (`jax.custom_vjp`), which `mode="auto"` knows. Values and gradients are finite for
logits of ±1e4 in float32.
"""

from functools import partial
from math import sqrt
from numbers import Real

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradlab import losses
from gradlab.errors import DtypeError, OptionError, ShapeError

Array = jax.Array


def softmax(x: ArrayLike, *, axis: int = -1) -> Array:
    """Positive numbers of sum 1: oᵢ = exp(xᵢ) / Σⱼ exp(xⱼ); backward, o (v − ⟨o, v⟩). Keeps o.

    Args:
        x: logits, shape `[..., n, ...]`.
        axis: the axis of length n.

    Returns:
        o, of the shape of x.

    Raises:
        DtypeError: x is complex.
        OptionError: axis is not an integer.
        ShapeError: x has no such axis, or one of length 0.

    Source: equations 6.1, 6.6 and 6.8.

    >>> jax.grad(lambda x: softmax(x)[0])(jnp.array([1e4, 1e4])).tolist()
    [0.25, -0.25]
    """
    (x,) = _real("softmax", x=x)
    axis = _axis("softmax", x, axis)
    return jnp.moveaxis(_softmax(jnp.moveaxis(x, axis, -1)), -1, axis)


def _softmax_forward(x: Array) -> tuple[Array, Array]:
    weights, total, _ = _exponentials(x)
    o = weights / total
    return o, o


def _softmax_backward(o: Array, v: Array) -> tuple[Array]:
    return (losses.softmax_pullback(o, v),)


@jax.custom_vjp
def _softmax(x: Array) -> Array:
    return _softmax_forward(x)[0]


_softmax.defvjp(_softmax_forward, _softmax_backward)


def logistic(x: ArrayLike) -> Array:
    """The sigmoid σ(x) = 1 / (1 + exp(−x)); backward, v σ(x) σ(−x). Keeps x.

    Args:
        x: logits, of any shape.

    Returns:
        σ(x), of the shape of x.

    Raises:
        DtypeError: x is complex.

    Source: equations 5.5 and 5.6.

    >>> float(jax.grad(logistic)(0.0)), float(jax.grad(logistic)(30.0)) > 0
    (0.25, True)
    """
    return _logistic(*_real("logistic", x=x))


def _logistic_forward(x: Array) -> tuple[Array, Array]:
    # Not σ(x), which is 1 beyond 17 in float32: 1 − σ(x) would lose a derivative that x still knows.
    return losses.sigmoid(x), x


def _logistic_backward(x: Array, v: Array) -> tuple[Array]:
    return (v * losses.sigmoid_derivative(x),)


@jax.custom_vjp
def _logistic(x: Array) -> Array:
    return _logistic_forward(x)[0]


_logistic.defvjp(_logistic_forward, _logistic_backward)


def softmax_cross_entropy(logits: ArrayLike, target: ArrayLike, *, axis: int = -1) -> Array:
    """The cross-entropy −Σᵢ yᵢ log softmax(z)ᵢ; backward, softmax(z) Σy − y. Keeps log softmax(z) and the target.

    Args:
        logits: z, shape `[..., classes, ...]`.
        target: class numbers, integers of the shape of z without its axis; or probabilities of the shape of z.
        axis: the axis of the classes.

    Returns:
        One loss for each example, in nats, of the shape of z without its axis. A class outside the range costs nothing.

    Raises:
        DtypeError: the logits or the target are complex.
        OptionError: axis is not an integer.
        ShapeError: the logits have no such axis, or one of length 0; or the target fits them in neither form.

    Source: equations 5.10 and 5.11.

    >>> jax.grad(softmax_cross_entropy)(jnp.zeros(4), 2).tolist()
    [0.25, 0.25, -0.75, 0.25]
    """
    (logits,) = _real("softmax_cross_entropy", logits=logits)
    axis, target = _axis("softmax_cross_entropy", logits, axis), jnp.asarray(target)
    examples = (*logits.shape[:axis], *logits.shape[axis + 1 :])
    if target.shape == logits.shape:
        logits, target = _real("softmax_cross_entropy", logits=logits, target=target)
        target = jnp.moveaxis(target, axis, -1)
    elif target.shape != examples or not jnp.issubdtype(target.dtype, jnp.integer):
        raise ShapeError(
            f"softmax_cross_entropy got a target of shape {target.shape} and dtype {target.dtype} for logits of shape "
            f"{logits.shape}, axis={axis}; expected class numbers (integers) of shape {examples}, or probabilities of "
            f"shape {logits.shape}. Reshape the target, or name the axis of the classes."
        )
    return _cross_entropy(jnp.moveaxis(logits, axis, -1), target)


def _cross_entropy_forward(z: Array, target: Array) -> tuple[Array, tuple[Array, Array]]:
    _, total, top = _exponentials(z)
    # log softmax(z) as z − max − log Σ: their sum, one number, would round 1e4 + log 2 to a thousandth.
    log_o = (z - top) - jnp.log(total)
    y = _shares(target, log_o)
    return -jnp.sum(y * jnp.where((y == 0) & jnp.isneginf(log_o), 0, log_o), axis=-1), (log_o, target)


def _cross_entropy_backward(kept: tuple[Array, Array], v: Array) -> tuple[Array, Array | None]:
    log_o, target = kept
    y, v = _shares(target, log_o), v[..., None]
    slope = v * (jnp.exp(log_o) * jnp.sum(y, axis=-1, keepdims=True) - y)
    return slope, None if jnp.issubdtype(target.dtype, jnp.integer) else -v * log_o


@jax.custom_vjp
def _cross_entropy(z: Array, target: Array) -> Array:
    return _cross_entropy_forward(z, target)[0]


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _shares(target: Array, like: Array) -> Array:
    """The target as probabilities: integers are class numbers."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        return jax.nn.one_hot(target, like.shape[-1], dtype=like.dtype)
    return target


def layer_norm(x: ArrayLike, scale: ArrayLike, bias: ArrayLike, *, axis: int = -1, epsilon: float = 1e-5) -> Array:
    """γ x̂ + β with x̂ = (x − μ) r and r = 1 / √(σ² + ε), of mean 0 and variance 1. Keeps x̂, r and γ.

    Backward, with g = γ v: ∂x = r (g − mean(g) − x̂ mean(g x̂)), ∂γ = Σ v x̂ and ∂β = Σ v over the examples.

    Args:
        x: shape `[..., n, ...]`.
        scale, bias: γ and β, shape `[n]` or `[]`; 1.0 and 0.0 leave x̂ as it is.
        axis: the axis of length n.
        epsilon: ε, positive, in the units of x².

    Returns:
        γ x̂ + β, of the shape of x.

    Raises:
        DtypeError: an array is complex.
        OptionError: axis is not an integer, or epsilon is not positive.
        ShapeError: x has no such axis, or one of length 0; or scale or bias have another length.

    Source: Ba, Kiros and Hinton, Layer normalization, arXiv:1607.06450.

    >>> layer_norm(jnp.array([1.0, 3.0]), 10.0, jnp.array([0.0, 5.0]), epsilon=1e-12).tolist()
    [-10.0, 15.0]
    """
    x, scale, bias = _real("layer_norm", x=x, scale=scale, bias=bias)
    axis = _axis("layer_norm", x, axis)
    scale, bias = (_spread(name, array, x, axis) for name, array in (("scale", scale), ("bias", bias)))
    if not isinstance(epsilon, Real) or not epsilon > 0:
        raise OptionError(f"epsilon must be a positive number, but got {epsilon!r}. It keeps √(σ² + ε) away from zero.")
    return jnp.moveaxis(_layer_norm(jnp.moveaxis(x, axis, -1), scale, bias, float(epsilon)), -1, axis)


def _spread(name: str, array: Array, x: Array, axis: int) -> Array:
    length = x.shape[axis : axis + 1]
    if array.shape not in (length, ()):
        raise ShapeError(
            f"layer_norm got {name} of shape {array.shape} for x of shape {x.shape}, axis={axis}; expected {length} "
            "or (). Map with jax.vmap over one that differs by example."
        )
    return jnp.broadcast_to(array, length)


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # squares of 300 overflow in float16
    apart = wide - jnp.mean(wide, axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(apart), axis=-1, keepdims=True) + epsilon)
    normalized = (apart * rate).astype(x.dtype)
    return scale * normalized + bias, (normalized, rate, scale)


def _layer_norm_backward(epsilon: float, kept: tuple[Array, ...], v: Array) -> tuple[Array, Array, Array]:
    normalized, rate, scale = kept
    mean = partial(jnp.mean, axis=-1, keepdims=True)
    g = scale * v
    slope = (rate * (g - mean(g) - normalized * mean(g * normalized))).astype(v.dtype)
    examples = tuple(range(v.ndim - 1))
    return slope, jnp.sum(v * normalized, axis=examples), jnp.sum(v, axis=examples)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    is_causal: bool = False,
    scale: ArrayLike | None = None,
) -> Array:
    """Scaled dot-product attention: O = P V, where P = softmax(S) by rows and S = Q Kᵀ / √d.

    Backward, from dO: dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − δ) with δ = rowsum(dO ∘ O), dQ = dS K / √d, dK = dSᵀ Q / √d.
    Keeps Q, K, V, O and two numbers a row, the largest score and the sum of exponentials: P is made anew from them.

    Args:
        query: Q, shape `[..., length, d]`.
        key: K, shape `[..., n_keys, d]`.
        value: V, shape `[..., n_keys, d_value]`. The leading axes broadcast: queries of many heads may share keys.
        is_causal: row i sees the keys 0 … i alone.
        scale: what multiplies Q Kᵀ, a scalar; 1/√d where None.

    Returns:
        O, shape `[..., length, d_value]`.

    Raises:
        DtypeError: an array is complex.
        OptionError: is_causal is not a bool.
        ShapeError: the shapes do not fit, there is no key, or scale is not a scalar.

    Source: equation 7.3; Vaswani et al., Attention is all you need, arXiv:1706.03762, equation 1; Dao et al.,
        FlashAttention, arXiv:2205.14135, algorithm 4.

    >>> q, k, v = jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.array([[0.0], [2.0], [4.0]])
    >>> attention(q, k, v).ravel().tolist(), attention(q, k, v, is_causal=True).ravel().tolist()
    ([2.0, 2.0, 2.0], [0.0, 1.0, 2.0])
    """
    if not isinstance(is_causal, bool):
        raise OptionError(f"is_causal must be True or False, but got {is_causal!r}.")
    _require_attention(jnp.shape(query), jnp.shape(key), jnp.shape(value))
    scale = 1 / sqrt(jnp.shape(query)[-1]) if scale is None else scale
    if jnp.shape(scale):
        raise ShapeError(f"scale must be a scalar, but has shape {jnp.shape(scale)}. Multiply the query by it instead.")
    query, key, value, scale = _real("attention", query=query, key=key, value=value, scale=scale)
    # Outside the rule, so that a learned scale has its gradient.
    return _attention(query * scale, key, value, is_causal)


def _require_attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]) -> None:
    given = f"attention got a query of shape {query}, a key of shape {key} and a value of shape {value}"
    if min(len(query), len(key), len(value)) < 2 or query[-1] != key[-1] or key[-2] != value[-2]:
        raise ShapeError(
            f"{given}; expected [..., length, d], [..., n_keys, d] and [..., n_keys, d_value]. Transpose what is "
            "another way round; the tokens are the last axis but one."
        )
    if 0 in key[-2:]:
        raise ShapeError(f"{given}; expected at least one key, of at least one number: leave an empty one out.")
    try:
        jnp.broadcast_shapes(query[:-2], key[:-2], value[:-2])
    except ValueError:
        raise ShapeError(
            f"{given}; expected leading axes that broadcast. Make each pair equal, or one of them 1."
        ) from None


def _scores(query: Array, key: Array, is_causal: bool) -> Array:
    scores = query @ key.mT
    return jnp.where(jnp.tri(query.shape[-2], key.shape[-2], dtype=bool), scores, -jnp.inf) if is_causal else scores


def _attention_forward(query: Array, key: Array, value: Array, is_causal: bool) -> tuple[Array, tuple[Array, ...]]:
    weights, total, top = _exponentials(_scores(query, key, is_causal))
    output = (weights @ value) / total
    # Two numbers a row and not their log-sum-exp, which would round the weights of scores of 1e4 to a thousandth.
    return output, (query, key, value, output, total, top)


def _attention_backward(is_causal: bool, kept: tuple[Array, ...], v: Array) -> tuple[Array, Array, Array]:
    # Without the barrier, a compiler finds the weights of the forward again, and keeps them. The one for CPUs does so
    # all the same, as it does with jax.checkpoint.
    query, key, value, output, total, top = jax.lax.optimization_barrier(kept)
    o = jnp.exp(_scores(query, key, is_causal) - top) / total
    delta = jnp.sum(v * output, axis=-1, keepdims=True)
    slope = o * (v @ value.mT - delta)
    return _folded(slope @ key, query), _folded(slope.mT @ query, key), _folded(o.mT @ v, value)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(query: Array, key: Array, value: Array, is_causal: bool) -> Array:
    return _attention_forward(query, key, value, is_causal)[0]


_attention.defvjp(_attention_forward, _attention_backward)


def _folded(slope: Array, like: Array) -> Array:
    """The transpose of broadcasting `like` to the shape of the slope: a sum over what was repeated."""
    return jax.linear_transpose(lambda a: jnp.broadcast_to(a, slope.shape), like)(slope)[0]


def _exponentials(x: Array) -> tuple[Array, Array, Array]:
    """exp(x − max), its sum and the max, all along the last axis; nothing overflows, and the sum is at least 1."""
    # The result does not depend on what is subtracted, so nothing has to be differentiated by it.
    top = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    weights = jnp.exp(x - top)
    return weights, jnp.sum(weights, axis=-1, keepdims=True), top


def _real(operator: str, **given: ArrayLike) -> list[Array]:
    """The arrays in their common real floating dtype."""
    given = {name: jnp.asarray(array) if isinstance(array, (list, tuple)) else array for name, array in given.items()}
    dtype = jnp.result_type(float, *given.values())
    if jnp.issubdtype(dtype, jnp.complexfloating):
        names = " and ".join(name for name, array in given.items() if jnp.iscomplexobj(array))
        raise DtypeError(f"{operator} needs real arrays, but got complex {names}. Pass the real and imaginary parts.")
    return [jnp.asarray(array, dtype) for array in given.values()]


def _axis(operator: str, x: Array, axis: int) -> int:
    """The axis, counted from the front."""
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise OptionError(f"axis must be an integer, but got {axis!r}. Reshape to act on several axes at once.")
    if not -x.ndim <= axis < x.ndim or not x.shape[axis]:
        raise ShapeError(
            f"{operator} got axis={axis} and an array of shape {x.shape}; expected an axis of length 1 or more."
        )
    return axis % x.ndim

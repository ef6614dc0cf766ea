"""Models as pairs of pure functions: `init(key) -> params` and `apply(params, x) -> y`.

Each constructor fixes the structure (sizes, activation) and returns a `Model`; parameters are dictionaries of arrays,
or tuples of them, in JAX's default precision. Initializers are those of `jax.nn.initializers`; the default is Glorot's,
for which the sizes of values and gradients stay alike from layer to layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.errors import OptionError
from gradlab.types import Params

Array = jax.Array
Initializer = Callable[..., Array]
GLOROT: Initializer = jax.nn.initializers.glorot_normal()


@dataclass(frozen=True)
class Model:
    """A model: `init(key)` draws parameters, `apply(params, x)` evaluates. Both are pure."""

    name: str
    init: Callable[[Array], Params]
    apply: Callable[[Params, Array], Array]


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise OptionError(f"{name} must be an integer of at least 1, but got {size!r}.")


def _linear(key: Array, n_in: int, n_out: int, initializer: Initializer) -> dict[str, Array]:
    return {"w": initializer(key, (n_in, n_out)), "b": jnp.zeros((n_out,))}


def _affine(params: Params, x: Array) -> Array:
    return x @ params["w"] + params["b"]


def linear_regression(n_features: int) -> Model:
    """ŷ = ⟨w, x⟩ + b, started at zero: the loss is convex, so the start does not matter.

    Args:
        n_features: the length of x.

    Returns:
        A model from x of shape `[..., n_features]` to predictions of shape `[...]`.

    Raises:
        OptionError: n_features is not a positive integer.

    Source: section 5 of the tutorial, equation 5.1.

    >>> model = linear_regression(3)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5,)
    """
    _require_sizes(n_features=n_features)
    init = lambda key: {"w": jnp.zeros((n_features,)), "b": jnp.zeros(())}
    return Model("linear_regression", init, _affine)


def logistic_regression(n_features: int) -> Model:
    """The logit z = ⟨w, x⟩ + b of a binary class; σ(z) is its probability. Started at zero.

    Args, Returns and Raises are those of `linear_regression`; the prediction is the logit.

    Source: equations 5.5 to 5.9.

    >>> model = logistic_regression(2)
    >>> float(model.apply({"w": jnp.ones(2), "b": 1.0}, jnp.ones(2)))
    3.0
    """
    return Model("logistic_regression", linear_regression(n_features).init, _affine)


def softmax_regression(n_features: int, n_classes: int) -> Model:
    """The logits z = x W + b of several classes. Started at zero.

    Args:
        n_features: the length of x.
        n_classes: the number of logits.

    Returns:
        A model from x of shape `[..., n_features]` to logits of shape `[..., n_classes]`.

    Raises:
        OptionError: a size is not a positive integer.

    Source: equation 5.10.

    >>> model = softmax_regression(64, 10)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 64))).shape
    (5, 10)
    """
    _require_sizes(n_features=n_features, n_classes=n_classes)
    init = lambda key: _linear(key, n_features, n_classes, jax.nn.initializers.zeros)
    return Model("softmax_regression", init, _affine)


def mlp(
    sizes: tuple[int, ...],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    residual: bool = False,
    initializer: Initializer = GLOROT,
) -> Model:
    """A multilayer perceptron: hₖ₊₁ = φ(hₖ Wₖ + bₖ), the last layer without φ.

    Args:
        sizes: the widths, from the input to the output; at least two.
        activation: φ, elementwise.
        residual: add hₖ to φ(…) in every hidden layer whose two widths are equal.
        initializer: draws each Wₖ from `(key, shape)`; biases start at zero.

    Returns:
        A model from shape `[..., sizes[0]]` to `[..., sizes[-1]]`; its parameters are a tuple of `{"w", "b"}`.

    Raises:
        OptionError: fewer than two sizes, or one that is not a positive integer.

    Source: equation 5.12; Glorot and Bengio (2010) for the initializer; He et al. (2016) for residual connections.

    >>> model = mlp((3, 16, 16, 2), activation=jnp.tanh, residual=True)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3))).shape
    (5, 2)
    """
    if len(sizes) < 2:
        raise OptionError(f"sizes must name at least an input and an output width, but got {sizes!r}.")
    _require_sizes(**{f"sizes[{i}]": size for i, size in enumerate(sizes)})

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        return tuple(_linear(k, a, b, initializer) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True))

    def apply(params: Params, x: Array) -> Array:
        for layer in params[:-1]:
            h = activation(_affine(layer, x))
            x = x + h if residual and h.shape == x.shape else h
        return _affine(params[-1], x)

    return Model("mlp", init, apply)


def attention(width: int, *, heads: int = 1, initializer: Initializer = GLOROT) -> Model:
    """Self-attention: softmax(Q Kᵀ / √d) V, with Q, K, V and the output each a linear map.

    Args:
        width: the length of a token.
        heads: how many attentions share it; divides width, and d = width / heads.
        initializer: draws the four matrices.

    Returns:
        A model from tokens of shape `[..., length, width]` to the same shape; its parameters are
        `{"query", "key", "value", "output"}`.

    Raises:
        OptionError: a size is not a positive integer, or heads does not divide width.

    Source: equation 7.3; Vaswani et al., Attention is all you need (2017).

    >>> model = attention(8, heads=2)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 3, 8))).shape
    (5, 3, 8)
    """
    _require_sizes(width=width, heads=heads)
    if width % heads:
        raise OptionError(f"heads must divide width, but got width={width} and heads={heads}.")
    names = ("query", "key", "value", "output")

    def init(key: Array) -> Params:
        keys = jax.random.split(key, len(names))
        return {name: _linear(k, width, width, initializer) for name, k in zip(names, keys, strict=True)}

    def apply(params: Params, x: Array) -> Array:
        split = lambda h: h.reshape(*h.shape[:-1], heads, width // heads).swapaxes(-2, -3)
        query, key, value = (split(_affine(params[name], x)) for name in names[:3])
        scores = query @ key.swapaxes(-1, -2) / jnp.sqrt(jnp.asarray(width // heads, x.dtype))
        mixed = (jax.nn.softmax(scores) @ value).swapaxes(-2, -3).reshape(x.shape)
        return _affine(params["output"], mixed)

    return Model("attention", init, apply)


def attention_classifier(
    n_tokens: int,
    n_features: int,
    n_classes: int,
    *,
    width: int = 32,
    heads: int = 4,
    initializer: Initializer = GLOROT,
) -> Model:
    """One block of attention over the parts of an input, averaged and classified.

    Tokens are embedded, with a learned position each; x + attention(x), then x + φ(x W) V; the mean over tokens gives
    the logits.

    Args:
        n_tokens, n_features: how many parts, and the length of each, such as the rows of an image.
        n_classes: the number of logits.
        width, heads: of the attention.
        initializer: draws every matrix.

    Returns:
        A model from `[..., n_tokens * n_features]` to logits of shape `[..., n_classes]`.

    Raises:
        OptionError: a size is not a positive integer, or heads does not divide width.

    Source: Vaswani et al. (2017); Dosovitskiy et al., An image is worth 16x16 words (2021), with learned positions.

    >>> model = attention_classifier(8, 8, 10)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 64))).shape
    (5, 10)
    """
    _require_sizes(n_tokens=n_tokens, n_features=n_features, n_classes=n_classes)
    mix = attention(width, heads=heads, initializer=initializer)
    think = mlp((width, 2 * width, width), initializer=initializer)

    def init(key: Array) -> Params:
        embed, position, mixing, thinking, classify = jax.random.split(key, 5)
        return {
            "embed": _linear(embed, n_features, width, initializer),
            "position": 0.1 * jax.random.normal(position, (n_tokens, width)),
            "mix": mix.init(mixing),
            "think": think.init(thinking),
            "classify": _linear(classify, width, n_classes, initializer),
        }

    def apply(params: Params, x: Array) -> Array:
        tokens = x.reshape(*x.shape[:-1], n_tokens, n_features)
        tokens = _affine(params["embed"], tokens) + params["position"]
        tokens = tokens + mix.apply(params["mix"], tokens)
        tokens = tokens + think.apply(params["think"], tokens)
        return _affine(params["classify"], jnp.mean(tokens, axis=-2))

    return Model("attention_classifier", init, apply)


def rnn_cell(params: Params, state: Array, x: Array) -> Array:
    """One step of a plain recurrent network: tanh(x W + h U + b).

    Args:
        params: `{"input": {"w", "b"}, "state": w}`.
        state: h, shape `[..., n_hidden]`.
        x: the input, shape `[..., n_in]`.

    Returns:
        The next state, shape `[..., n_hidden]`.

    Source: Elman, Finding structure in time, Cognitive Science 14 (1990).

    >>> model = rnn(2, 3)
    >>> rnn_cell(model.init(jax.random.key(0)), jnp.zeros(3), jnp.ones(2)).shape
    (3,)
    """
    return jnp.tanh(_affine(params["input"], x) + state @ params["state"])


def rnn(n_in: int, n_hidden: int, *, initializer: Initializer = GLOROT) -> Model:
    """A recurrent network: `rnn_cell` scanned along time from a zero state.

    Args:
        n_in: the length of one input.
        n_hidden: the length of the state.
        initializer: draws the input matrix; the state matrix is orthogonal, which keeps gradients through time.

    Returns:
        A model from `[time, ..., n_in]` to all states, `[time, ..., n_hidden]`.

    Raises:
        OptionError: a size is not a positive integer.

    Source: Elman (1990); Saxe et al. (2014) for the orthogonal start.

    >>> model = rnn(2, 3)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((7, 2))).shape
    (7, 3)
    """
    _require_sizes(n_in=n_in, n_hidden=n_hidden)

    def init(key: Array) -> Params:
        first, second = jax.random.split(key)
        state = jax.nn.initializers.orthogonal()(second, (n_hidden, n_hidden))
        return {"input": _linear(first, n_in, n_hidden, initializer), "state": state}

    def apply(params: Params, x: Array) -> Array:
        def step(state: Array, now: Array) -> tuple[Array, Array]:
            state = rnn_cell(params, state, now)
            return state, state

        start = jnp.zeros((*x.shape[1:-1], n_hidden), jnp.result_type(x, params["state"]))
        return jax.lax.scan(step, start, x)[1]

    return Model("rnn", init, apply)


def convolution(n_in: int, n_out: int, *, kernel: int = 3, initializer: Initializer = GLOROT) -> Model:
    """A two-dimensional cross-correlation with a bias, padded to keep height and width.

    Args:
        n_in, n_out: channels.
        kernel: the side of the square kernel, in pixels.
        initializer: draws the kernel, of shape `[kernel, kernel, n_in, n_out]`.

    Returns:
        A model from `[batch, height, width, n_in]` to `[batch, height, width, n_out]`.

    Raises:
        OptionError: a size is not a positive integer.

    Source: LeCun et al., Gradient-based learning applied to document recognition (1998).

    >>> model = convolution(1, 4)
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 4)
    """
    _require_sizes(n_in=n_in, n_out=n_out, kernel=kernel)

    def init(key: Array) -> Params:
        return {"w": initializer(key, (kernel, kernel, n_in, n_out)), "b": jnp.zeros((n_out,))}

    def apply(params: Params, x: Array) -> Array:
        axes: Any = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=axes) + params["b"]

    return Model("convolution", init, apply)

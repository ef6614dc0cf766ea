"""Losses of machine learning: classifiers of handwritten digits, mixtures, clusters, a recurrent network.

Averages are over examples wherever the published definition does not say otherwise.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.problems import digits
from gradlab.problems.record import Made, Problem
from gradlab.types import PyTree

__all__ = ["PROBLEMS"]

Array = jax.Array


# Handwritten digits.


def _cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over examples of -log softmax(logits)[label], logits[n c], labels[n]."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -jnp.mean(chosen)


def digits_softmax(params: PyTree, images: Array, labels: Array) -> Array:
    """The mean cross-entropy of softmax(X W + b), images X[n 64], W[64 10]."""
    return _cross_entropy(images @ params["weight"] + params["bias"], labels)


def digits_softmax_gradient(params: PyTree, images: Array, labels: Array) -> PyTree:
    """∇W = Xᵀ (P - Y) / n and ∇b = 1ᵀ (P - Y) / n, for probabilities P and one-hot labels Y."""
    probabilities = jax.nn.softmax(images @ params["weight"] + params["bias"])
    excess = (probabilities - jax.nn.one_hot(labels, 10, dtype=images.dtype)) / images.shape[0]
    return {"bias": jnp.sum(excess, axis=0), "weight": images.T @ excess}


def _make_digits_softmax(key: Array, size: int) -> Made:
    for_data, for_weight, for_bias = jax.random.split(key, 3)
    weight = jax.random.normal(for_weight, (64, 10)) / 8.0
    bias = 0.1 * jax.random.normal(for_bias, (10,))
    return digits_softmax, ({"bias": bias, "weight": weight}, *digits.load(for_data, size))


def digits_mlp(params: PyTree, images: Array, labels: Array) -> Array:
    """The mean cross-entropy of tanh layers with a linear last one; params is a list of (W, b)."""
    hidden = images
    for weight, bias in params[:-1]:
        hidden = jnp.tanh(hidden @ weight + bias)
    weight, bias = params[-1]
    return _cross_entropy(hidden @ weight + bias, labels)


def _make_digits_mlp(key: Array, size: int) -> Made:
    for_data, *for_layers = jax.random.split(key, 3)
    params = []
    for layer_key, wide_in, wide_out in zip(for_layers, (64, 32), (32, 10), strict=True):
        for_weight, for_bias = jax.random.split(layer_key)
        weight = jax.random.normal(for_weight, (wide_in, wide_out)) / wide_in**0.5
        params.append((weight, 0.1 * jax.random.normal(for_bias, (wide_out,))))
    return digits_mlp, (params, *digits.load(for_data, size))


def digits_attention(params: PyTree, images: Array, labels: Array) -> Array:
    """The mean cross-entropy of one attention block over the 8 rows of an image: softmax(Q Kᵀ / √d) V per head."""
    rows = images.reshape(-1, 8, 8)
    tokens = rows @ params["embed"] + params["position"]
    query, key, value = (jnp.einsum("btd,hde->bhte", tokens, params[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bhte,bhse->bhts", query, key) / query.shape[-1] ** 0.5
    mixed = jnp.einsum("bhts,bhse->bhte", jax.nn.softmax(scores), value)
    tokens = tokens + jnp.einsum("bhte,hed->btd", mixed, params["output"])
    return _cross_entropy(jnp.mean(tokens, axis=1) @ params["classify"], labels)


def _make_digits_attention(key: Array, size: int) -> Made:
    for_data, for_params = jax.random.split(key)
    shapes = {
        "embed": (8, 16),
        "position": (8, 16),
        "query": (2, 16, 8),
        "key": (2, 16, 8),
        "value": (2, 16, 8),
        "output": (2, 8, 16),
        "classify": (16, 10),
    }
    keys = jax.random.split(for_params, len(shapes))
    params = {
        name: jax.random.normal(one, shape) / shape[-2] ** 0.5
        for one, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return digits_attention, (params, *digits.load(for_data, size))


# Regression, mixtures, clusters.


def logistic_regression(weight: Array, features: Array, labels: Array) -> Array:
    """The mean of log(1 + exp z) - y z, z = X w, X[n d], y[n] in {0, 1}."""
    logits = features @ weight
    return jnp.mean(jnp.logaddexp(logits, 0.0) - labels * logits)


def logistic_regression_hessian(weight: Array, features: Array, labels: Array) -> Array:
    """H = Xᵀ diag(p (1 - p)) X / n, p = σ(X w)."""
    p = jax.nn.sigmoid(features @ weight)
    return features.T @ ((p * (1.0 - p))[:, None] * features) / features.shape[0]


def _make_logistic_regression(key: Array, size: int) -> Made:
    for_weight, for_features, for_labels = jax.random.split(key, 3)
    features = jax.random.normal(for_features, (4 * size, size))
    weight = jax.random.normal(for_weight, (size,)) / size**0.5
    labels = (jax.random.uniform(for_labels, (4 * size,)) < jax.nn.sigmoid(features @ weight)).astype(features.dtype)
    return logistic_regression, (weight, features, labels)


def _log_wishart_constant(degrees: int, d: int, gamma: float) -> float:
    log_gamma = 0.25 * d * (d - 1) * math.log(math.pi) + sum(math.lgamma(0.5 * (degrees - j)) for j in range(d))
    return degrees * d * (math.log(gamma) - 0.5 * math.log(2.0)) - log_gamma


def gmm(params: PyTree, points: Array) -> Array:
    """The log likelihood of a Gaussian mixture with a Wishart prior (γ = 1, m = 0), points x[n d].

    Σ_i logsumexp_k(α_k + Σ q_k - ½ |Q_k (x_i - μ_k)|²) - n logsumexp(α) - ½ n d log 2π
    + Σ_k ½ γ² (|exp q_k|² + |l_k|²) - K C, with Q_k lower triangular, exp q_k on its diagonal and l_k below it.
    `icf[k]` is q_k, then l_k column by column. The prior's sign is the benchmark's.
    """
    alphas, means, icf = params["alphas"], params["means"], params["icf"]
    (n, d), k = points.shape, alphas.shape[0]
    column, row = np.triu_indices(d, 1)
    log_diagonal, below = icf[:, :d], icf[:, d:]
    lower = jnp.zeros((k, d, d), icf.dtype).at[:, row, column].set(below)
    difference = points[:, None] - means
    spread = jnp.exp(log_diagonal) * difference + jnp.einsum("kde,nke->nkd", lower, difference)
    inner = alphas + jnp.sum(log_diagonal, axis=1) - 0.5 * jnp.sum(spread**2, axis=2)
    likelihood = jnp.sum(jax.nn.logsumexp(inner, axis=1)) - n * jax.nn.logsumexp(alphas)
    prior = 0.5 * (jnp.sum(jnp.exp(2.0 * log_diagonal)) + jnp.sum(below**2))
    return likelihood + prior - 0.5 * n * d * math.log(2.0 * math.pi) - k * _log_wishart_constant(d + 1, d, 1.0)


def _make_gmm(key: Array, size: int) -> Made:
    d, k = 8, 6
    for_alphas, for_means, for_icf, for_points = jax.random.split(key, 4)
    params = {
        "alphas": jax.random.normal(for_alphas, (k,)),
        "icf": 0.3 * jax.random.normal(for_icf, (k, d * (d + 1) // 2)),
        "means": jax.random.normal(for_means, (k, d)),
    }
    return gmm, (params, jax.random.normal(for_points, (size, d)))


def kmeans(centers: Array, points: Array) -> Array:
    """Σ_i min_k |x_i - c_k|², centers c[k d], points x[n d]."""
    return jnp.sum(jnp.min(jnp.sum((points[:, None] - centers) ** 2, axis=2), axis=1))


def kmeans_gradient(centers: Array, points: Array) -> Array:
    """∂f/∂c_k = 2 Σ (c_k - x_i) over the points whose nearest center is c_k."""
    nearest = jnp.argmin(jnp.sum((points[:, None] - centers) ** 2, axis=2), axis=1)
    member = jax.nn.one_hot(nearest, centers.shape[0], dtype=points.dtype)
    return 2.0 * (jnp.sum(member, axis=0)[:, None] * centers - member.T @ points)


def _make_kmeans(key: Array, size: int) -> Made:
    for_centers, for_points = jax.random.split(key)
    return kmeans, (jax.random.normal(for_centers, (5, 3)), jax.random.normal(for_points, (size, 3)))


# A recurrent network.


def _lstm_layer(below: Array, layer: PyTree) -> tuple[Array, tuple[Array, Array]]:
    """One layer of the benchmark's LSTM, whose gates are elementwise: weight[4 b], bias[4 b], hidden[b], cell[b]."""
    weight, bias, hidden, cell = layer
    forget_weight, input_weight, output_weight, change_weight = jnp.split(weight, 4)
    forget_bias, input_bias, output_bias, change_bias = jnp.split(bias, 4)
    forget = jax.nn.sigmoid(below * forget_weight + forget_bias)
    admit = jax.nn.sigmoid(hidden * input_weight + input_bias)
    release = jax.nn.sigmoid(below * output_weight + output_bias)
    change = jnp.tanh(hidden * change_weight + change_bias)
    cell = forget * cell + admit * change
    hidden = release * jnp.tanh(cell)
    return hidden, (hidden, cell)


def lstm(params: PyTree, state: tuple[Array, Array], sequence: Array) -> Array:
    """The mean over t and b of -s[t+1] (y - log(2 + Σ exp y)), y the prediction from s[0..t], sequence s[t b].

    Layers are scanned within a step and steps within the sequence; the 2 is the benchmark's.
    """

    def step(state: tuple[Array, Array], symbols: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        symbol, following = symbols
        layers = (params["weight"], params["bias"], *state)
        top, state = jax.lax.scan(_lstm_layer, symbol * params["into"], layers)
        prediction = top * params["out"] + params["shift"]
        return state, following @ (prediction - jnp.log(2.0 + jnp.sum(jnp.exp(prediction))))

    scores = jax.lax.scan(step, state, (sequence[:-1], sequence[1:]))[1]
    return -jnp.sum(scores) / sequence[1:].size


def _make_lstm(key: Array, size: int) -> Made:
    layers, b = 2, 14
    for_weight, for_bias, for_edges, for_state, for_sequence = jax.random.split(key, 5)
    into, out, shift = jax.random.normal(for_edges, (3, b))
    params = {
        "bias": jax.random.normal(for_bias, (layers, 4 * b)),
        "into": into,
        "out": out,
        "shift": shift,
        "weight": jax.random.normal(for_weight, (layers, 4 * b)),
    }
    hidden, cell = 0.5 * jax.random.normal(for_state, (2, layers, b))
    sequence = jax.random.bernoulli(for_sequence, 0.5, (size, b)).astype(hidden.dtype)
    return lstm, (params, (hidden, cell), sequence)


_DIGITS = "Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository, 1998"
_ADBENCH = "Šrajer, Kukelova and Fitzgibbon, A benchmark of selected algorithmic differentiation tools, 2018"

PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "digits_softmax",
        ("gradient",),
        _make_digits_softmax,
        512,
        "softmax regression on `size` images of digits",
        f"{_DIGITS}; Bishop, Pattern Recognition and Machine Learning, 2006, section 4.3.4",
        digits_softmax_gradient,
        requires="data",
    ),
    Problem(
        "digits_mlp",
        ("gradient",),
        _make_digits_mlp,
        512,
        "a network of 64, 32 and 10 units on `size` images of digits",
        f"{_DIGITS}; Rumelhart, Hinton and Williams, Learning representations by back-propagating errors, 1986",
        requires="data",
    ),
    Problem(
        "digits_attention",
        ("gradient",),
        _make_digits_attention,
        256,
        "an attention block of two heads over the rows of `size` images of digits",
        f"{_DIGITS}; Vaswani et al., Attention is all you need, 2017",
        requires="data",
    ),
    Problem(
        "logistic_regression",
        ("hessian", "gradient", "hvp"),
        _make_logistic_regression,
        100,
        "`size` coefficients and four times as many examples",
        "Bishop, Pattern Recognition and Machine Learning, 2006, equation 4.97",
        logistic_regression_hessian,
    ),
    Problem(
        "gmm",
        ("gradient",),
        _make_gmm,
        1000,
        "the log likelihood of `size` points in 8 dimensions under 6 Gaussians, with a Wishart prior",
        f"{_ADBENCH}",
    ),
    Problem(
        "kmeans",
        ("gradient", "hessian", "hvp"),
        _make_kmeans,
        1000,
        "the squared distances of `size` points to the nearest of 5 centers",
        "Lloyd, Least squares quantization in PCM, 1982; GradBench, k-means",
        kmeans_gradient,
    ),
    Problem(
        "lstm",
        ("gradient",),
        _make_lstm,
        128,
        "the loss of a two-layer elementwise LSTM on a sequence of `size` symbols",
        f"{_ADBENCH}; Hochreiter and Schmidhuber, Long short-term memory, 1997",
    ),
)

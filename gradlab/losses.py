"""Losses of one prediction and one target, each with its derivative in closed form beside it.

All are elementwise or act on the last axis, so they are per example: reduce with a mean or a sum. Every value and every
derivative is finite for logits of ±1e4 in float32.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gradlab.errors import OptionError, ShapeError

Array = jax.Array


def l2(prediction: ArrayLike, target: ArrayLike) -> Array:
    """The squared error (ŷ − y)².

    Args:
        prediction, target: real arrays that broadcast together.

    Returns:
        One loss for each number.

    Source: equation 5.1.

    >>> float(l2(3.0, 1.0))
    4.0
    """
    return jnp.square(jnp.subtract(prediction, target))


def l2_derivative(prediction: ArrayLike, target: ArrayLike) -> Array:
    """∂l2/∂ŷ = 2 (ŷ − y). Args and Returns as for `l2`.

    Source: equation 5.2.

    >>> float(l2_derivative(3.0, 1.0))
    4.0
    """
    return 2 * jnp.subtract(prediction, target)


def l1(prediction: ArrayLike, target: ArrayLike) -> Array:
    """The absolute error |ŷ − y|; its derivative by automatic differentiation is 0 at equality.

    Args:
        prediction, target: real arrays that broadcast together.

    Returns:
        One loss for each number.

    Source: equation 5.3.

    >>> float(l1(1.0, 3.0))
    2.0
    """
    # jnp.abs has derivative 1 at zero; this product has the symmetric one.
    difference = jnp.subtract(prediction, target)
    return difference * jnp.sign(difference)


def l1_derivative(prediction: ArrayLike, target: ArrayLike) -> Array:
    """∂l1/∂ŷ = sign(ŷ − y), and 0 at equality. Args and Returns as for `l1`.

    Source: equation 5.4.

    >>> [float(l1_derivative(y, 1.0)) for y in (0.0, 1.0, 2.0)]
    [-1.0, 0.0, 1.0]
    """
    return jnp.sign(jnp.subtract(prediction, target))


def huber(prediction: ArrayLike, target: ArrayLike, *, delta: float = 1.0) -> Array:
    """Squared near the target and straight beyond: d²/2 for |d| ≤ δ, δ (|d| − δ/2) otherwise, with d = ŷ − y.

    Args:
        prediction, target: real arrays that broadcast together.
        delta: where the loss turns straight, in the units of the target; positive.

    Returns:
        One loss for each number.

    Raises:
        OptionError: delta is not positive.

    Source: Huber, Robust estimation of a location parameter, Annals of Mathematical Statistics 35 (1964).

    >>> float(huber(0.5, 0.0)), float(huber(3.0, 0.0))
    (0.125, 2.5)
    """
    _require_positive(delta)
    d = jnp.subtract(prediction, target)
    inside = jnp.clip(d, -delta, delta)
    return inside * (d - 0.5 * inside)


def huber_derivative(prediction: ArrayLike, target: ArrayLike, *, delta: float = 1.0) -> Array:
    """∂huber/∂ŷ = ŷ − y, clipped to ±δ. Args, Returns and Raises as for `huber`.

    Source: Huber (1964).

    >>> [float(huber_derivative(y, 0.0)) for y in (-3.0, 0.5)]
    [-1.0, 0.5]
    """
    _require_positive(delta)
    return jnp.clip(jnp.subtract(prediction, target), -delta, delta)


def _require_positive(delta: float) -> None:
    if isinstance(delta, (int, float)) and not delta > 0:
        raise OptionError(f"delta must be positive, but got {delta!r}. It is where the loss turns straight.")


def sigmoid(z: ArrayLike) -> Array:
    """σ(z) = 1 / (1 + exp(−z)), between 0 at −∞ and 1 at +∞.

    Source: equation 5.5.

    >>> float(sigmoid(0.0)), float(sigmoid(-1e4))
    (0.5, 0.0)
    """
    return jax.nn.sigmoid(z)


def sigmoid_derivative(z: ArrayLike) -> Array:
    """σ'(z) = σ(z) (1 − σ(z)), at most ¼, at 0; falls to 0 on both sides.

    Source: equation 5.6.

    >>> float(sigmoid_derivative(0.0))
    0.25
    """
    # 1 − σ(z) = σ(−z), without the cancellation.
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-jnp.asarray(z))


def logistic(logit: ArrayLike, target: ArrayLike) -> Array:
    """The cross-entropy −y log σ(z) − (1 − y) log(1 − σ(z)) of a logit z.

    Args:
        logit: z, a real array.
        target: y, 0 or 1 or a probability; broadcasts with z.

    Returns:
        One loss for each number, in nats.

    Source: equation 5.7.

    >>> round(float(logistic(0.0, 1)), 4), float(logistic(1e4, 1)), float(logistic(1e4, 0))
    (0.6931, 0.0, 10000.0)
    """
    z, y = jnp.asarray(logit), jnp.asarray(target)
    # −y z + softplus(z) subtracts two large numbers for y = 1, z ≫ 0; in this form each term is small when the loss is.
    return y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z)


def logistic_derivative(logit: ArrayLike, target: ArrayLike) -> Array:
    """∂logistic/∂z = σ(z) − y. Args and Returns as for `logistic`.

    Source: equation 5.9.

    >>> float(logistic_derivative(0.0, 1)), float(logistic_derivative(-1e4, 1))
    (-0.5, -1.0)
    """
    return jax.nn.sigmoid(logit) - target


def softmax_cross_entropy(logits: ArrayLike, target: ArrayLike) -> Array:
    """The cross-entropy −Σᵢ yᵢ log softmax(z)ᵢ of logits z.

    Args:
        logits: z, shape `[..., classes]`.
        target: class numbers, integers of shape `[...]`, or probabilities of shape `[..., classes]`.

    Returns:
        One loss for each example, shape `[...]`, in nats.

    Raises:
        ShapeError: the target fits the logits in neither form.

    Source: equation 5.10.

    >>> round(float(softmax_cross_entropy(jnp.zeros(4), 2)), 4)
    1.3863
    """
    y, log_o = _probabilities(logits, target), jax.nn.log_softmax(logits)
    # A class that is masked by a logit of −inf costs nothing: not 0 · ∞.
    return -jnp.sum(y * jnp.where((y == 0) & jnp.isneginf(log_o), 0, log_o), axis=-1)


def softmax_cross_entropy_derivative(logits: ArrayLike, target: ArrayLike) -> Array:
    """∂loss/∂z = softmax(z) Σy − y, which is softmax(z) − onehot for a class. Args and Raises as for the loss.

    Returns:
        The derivative, shape `[..., classes]`; each entry is in [−1, 1], negative for the target alone.

    Source: equation 5.11.

    >>> softmax_cross_entropy_derivative(jnp.zeros(4), 2).tolist()
    [0.25, 0.25, -0.75, 0.25]
    """
    y = _probabilities(logits, target)
    return jax.nn.softmax(logits) * jnp.sum(y, axis=-1, keepdims=True) - y


def _probabilities(logits: ArrayLike, target: ArrayLike) -> Array:
    """The target as probabilities: integers of the logits' shape less the last axis are class numbers."""
    shape, given = jnp.shape(logits), jnp.shape(target)
    if not shape:
        raise ShapeError("softmax_cross_entropy needs logits of shape [..., classes], but got a scalar.")
    if given == shape[:-1] and jnp.issubdtype(jnp.result_type(target), jnp.integer):
        return jax.nn.one_hot(target, shape[-1], dtype=jnp.result_type(logits))
    if given == shape:
        return jnp.asarray(target, jnp.result_type(logits))
    raise ShapeError(
        f"softmax_cross_entropy got a target of shape {given} and dtype {jnp.result_type(target)} for logits of shape "
        f"{shape}; expected class numbers (integers) of shape {shape[:-1]} or probabilities of shape {shape}."
    )


def softmax_jacobian(probabilities: ArrayLike) -> Array:
    """∂softmax/∂z = diag(o) − o oᵀ from the outputs o = softmax(z): entries oᵢ (δᵢⱼ − oⱼ).

    Args:
        probabilities: o, shape `[n]`.

    Returns:
        J, shape `[n_outputs, n_inputs]`; symmetric, with rows that sum to 0.

    Source: equations 6.2 and 6.6.

    >>> softmax_jacobian(jnp.array([0.5, 0.5])).tolist()
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    o = jnp.asarray(probabilities)
    return jnp.diag(o) - jnp.outer(o, o)


def softmax_pullback(probabilities: ArrayLike, cotangent: ArrayLike) -> Array:
    """Jᵀ v = o (v − ⟨o, v⟩) for the softmax with outputs o: the cotangent of the logits, without J.

    Args:
        probabilities: o, shape `[..., n]`.
        cotangent: v = ∂loss/∂o, shape `[..., n]`.

    Returns:
        ∂loss/∂z, shape `[..., n]`; sums to 0 along the last axis.

    Source: equations 6.7 and 6.8.

    >>> softmax_pullback(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])).tolist()
    [0.25, -0.25]
    """
    o, v = jnp.asarray(probabilities), jnp.asarray(cotangent)
    return o * (v - jnp.sum(o * v, axis=-1, keepdims=True))

"""The handwritten digits of scikit-learn: 1,797 images of 8 × 8 pixels in ten classes."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradlab import models
from gradlab.errors import MissingExtraError, OptionError, nearest
from gradlab.losses import softmax_cross_entropy
from gradlab.models import Model
from gradlab.types import Loss, Optimizer, Params

SIZE = 1797
CLASSIFIERS = ("softmax", "mlp", "attention")
OPTIMIZERS = ("sgd", "momentum", "adam", "lbfgs")


class Images(NamedTuple):
    """Images of shape `[n, 64]`, row by row, pixels in [0, 1]; labels of shape `[n]`, integers from 0 to 9."""

    images: jax.Array
    labels: jax.Array


def load(key: jax.Array, size: int = SIZE) -> Images:
    """`size` images, drawn without repetition.

    Raises:
        OptionError: there are fewer.
        MissingExtraError: scikit-learn, which has them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError(
            "The handwritten digits come with scikit-learn, which cannot be imported here. "
            'Install it with: pip install "gradlab-jax[data]".'
        ) from error
    images, labels = load_digits(return_X_y=True)
    if size > len(labels):
        raise OptionError(f"size={size} images were asked for, and there are {len(labels)}. Give a smaller size.")
    chosen = jax.random.permutation(key, len(labels))[:size]
    return Images(jnp.asarray(images / 16.0, float)[chosen], jnp.asarray(labels)[chosen])


def split(*, key: jax.Array | None = None, test: int = 360) -> tuple[Images, Images]:
    """The digits to train on, and those to test with.

    Args:
        key: shuffles them; `jax.random.key(0)` by default.
        test: how many are set apart, less than 1,797.

    Returns:
        `(train, test)`, each with `.images` of shape `[n, 64]` and `.labels` of shape `[n]`.

    Raises:
        OptionError: test is out of range.
        MissingExtraError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI repository (1998).

    >>> train, test = split()
    >>> train.images.shape, test.labels.shape
    ((1437, 64), (360,))
    """
    if isinstance(test, bool) or not isinstance(test, int) or not 0 < test < SIZE:
        raise OptionError(f"test must be an integer from 1 to {SIZE - 1}, but got {test!r}.")
    shuffled = load(jax.random.key(0) if key is None else key)
    return Images(*(leaf[test:] for leaf in shuffled)), Images(*(leaf[:test] for leaf in shuffled))


@cache
def classifier(name: str) -> Model:
    """A model from images to ten logits: `"softmax"`, `"mlp"` or `"attention"`.

    >>> classifier("mlp").apply(classifier("mlp").init(jax.random.key(0)), jnp.zeros((5, 64))).shape
    (5, 10)
    """
    match name:
        case "softmax":
            return models.softmax_regression(64, 10)
        case "mlp":
            return models.mlp((64, 256, 10))
        case "attention":
            return models.attention_classifier(8, 8, 10)
        case _:
            known = ", ".join(CLASSIFIERS)
            raise OptionError(f"There is no classifier {name!r}; known are {known}.{nearest(name, CLASSIFIERS)}")


def recipe(name: str, learning_rate: float | None = None) -> Optimizer:
    """An optimizer by name, `"sgd"`, `"momentum"`, `"adam"` or `"lbfgs"`, with a learning rate that suits the digits.

    Args:
        name: which.
        learning_rate: another one; `lbfgs` searches its own.

    Raises:
        OptionError: a name that is none, or a learning rate for `lbfgs`.
    """
    import optax  # here, for the table of problems does without

    if name == "lbfgs" and learning_rate is not None:
        raise OptionError(f"lbfgs finds its step by a line search, but learning_rate={learning_rate} was given.")
    rate = lambda usual: usual if learning_rate is None else learning_rate
    match name:
        case "sgd":
            return optax.sgd(rate(0.2))
        case "momentum":
            return optax.sgd(rate(0.05), momentum=0.9)
        case "adam":
            return optax.adam(rate(5e-3))
        case "lbfgs":
            return optax.lbfgs()
        case _:
            known = ", ".join(OPTIMIZERS)
            raise OptionError(f"There is no optimizer {name!r} here; known are {known}.{nearest(name, OPTIMIZERS)}")


@cache
def cross_entropy(model: Model) -> Loss:
    """`loss(params, batch)`: the mean cross-entropy of a model over a batch of images, in nats; one function a model.

    Source: equation 5.10.
    """
    return lambda params, batch: jnp.mean(softmax_cross_entropy(model.apply(params, batch.images), batch.labels))


def accuracy(model: Model, params: Params, batch: Images) -> float:
    """The share of images whose largest logit is that of their label."""
    return float(jnp.mean(jnp.argmax(model.apply(params, batch.images), axis=-1) == batch.labels))

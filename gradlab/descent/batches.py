"""Which examples a step sees: all of them, or a batch drawn without replacement, in a new order each epoch.

The epochs follow one another as one long sequence of examples, cut into batches of one size: every example comes once
an epoch, also where the size does not divide their number, and a batch is a function of the key and its number alone.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gradlab.types import Loss, PyTree, ScalarFn


def length(data: PyTree) -> int:
    """The number of examples: the length of the leading axes."""
    return int(jnp.shape(jax.tree.leaves(data)[0])[0])


@partial(jax.jit, static_argnums=(2, 3))
def orders(key: jax.Array | None, epoch: int | jax.Array, epochs: int, examples: int) -> jax.Array:
    """The numbers of the examples in the order of some epochs, one after the other, shape `[epochs * examples]`.

    Args:
        key: of all epochs; that of epoch e is `fold_in(key, e)`. `jax.random.key(0)` for None.
        epoch: the first one.
        epochs, examples: how many.

    >>> both = orders(jax.random.key(1), 0, 2, 5)
    >>> sorted(both[5:].tolist()), bool((both[5:] == orders(jax.random.key(1), 1, 1, 5)).all())
    ([0, 1, 2, 3, 4], True)
    """
    key = jax.random.key(0) if key is None else key
    one = lambda e: jax.random.permutation(jax.random.fold_in(key, e), examples)
    return jax.vmap(one)(epoch + jnp.arange(epochs)).reshape(-1)


def rows(key: jax.Array | None, steps: int, batch_size: int, examples: int) -> jax.Array:
    """The numbers of the examples of the first steps, shape `[steps, batch_size]`.

    >>> rows(jax.random.key(1), 5, 2, 5).shape
    (5, 2)
    """
    every = orders(key, 0, max(1, -(-steps * batch_size // examples)), examples)
    return every[: steps * batch_size].reshape(steps, batch_size)


class Orders:
    """The orders of the epochs around a step, in blocks that are drawn once each, as the steps come to them.

    A block has as many epochs as the steps of one call can touch, so that two that follow one another hold the examples
    of any call.

    Args:
        key, batch_size, examples: as above.
        capacity: the most steps of a call.
    """

    def __init__(self, key: jax.Array | None, batch_size: int, examples: int, capacity: int) -> None:
        self.key, self.batch_size, self.examples = key, batch_size, examples
        self.epochs = -(-capacity * batch_size // examples)
        self.kept: tuple[int, jax.Array] | None = None

    def around(self, step: int) -> tuple[jax.Array, int]:
        """Two blocks, shape `[2 * epochs * examples]`, and where in them the examples of a step begin."""
        block, offset = divmod(step * self.batch_size, self.epochs * self.examples)
        if self.kept is None or self.kept[0] != block:
            length = self.epochs * self.examples
            follows = self.kept is not None and self.kept[0] == block - 1
            first = self.kept[1][length:] if self.kept and follows else self._drawn(block)
            self.kept = block, jnp.concatenate([first, self._drawn(block + 1)])
        return self.kept[1], offset

    def _drawn(self, block: int) -> jax.Array:
        return orders(self.key, block * self.epochs, self.epochs, self.examples)


def on_batch(loss: Loss, data: PyTree, rows: jax.Array | None) -> ScalarFn:
    """The loss of params alone, on the examples of these numbers; on all data for None."""
    if data is None:
        return loss
    batch = data if rows is None else jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), data)
    return lambda params: loss(params, batch)

"""Which examples a step sees: all of them, or a batch drawn without replacement, in a new order each epoch.

The epochs follow one another as one long sequence of examples, cut into batches of one size: every example comes once
an epoch, also where the size does not divide their number, and a batch is a function of the key and its number alone.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gradlab.types import Loss, PyTree, ScalarFn


def length(data: PyTree) -> int:
    """The number of examples: the length of the leading axes."""
    return int(jnp.shape(jax.tree.leaves(data)[0])[0])


def rows(key: jax.Array | None, epoch: Any, offset: Any, steps: int, batch_size: int, examples: int) -> jax.Array:
    """The numbers of the examples of some steps that follow one another, shape `[steps, batch_size]`.

    Args:
        key: of all epochs; that of epoch e is `fold_in(key, e)`. `jax.random.key(0)` for None.
        epoch, offset: where the first step starts, integers that may be traced, offset in `[0, examples)`.
        steps, batch_size, examples: sizes.

    >>> both = rows(jax.random.key(1), 0, 0, 5, 2, 5)
    >>> sorted(both.reshape(2, 5)[1].tolist())
    [0, 1, 2, 3, 4]
    >>> bool((rows(jax.random.key(1), 0, 4, 3, 2, 5) == both[2:]).all())
    True
    """
    key = jax.random.key(0) if key is None else key
    # As many epochs as the steps can touch, from wherever in the first of them they start.
    epochs = epoch + jnp.arange(1 + -(-steps * batch_size // examples))
    orders = jax.vmap(lambda e: jax.random.permutation(jax.random.fold_in(key, e), examples))(epochs)
    return jax.lax.dynamic_slice_in_dim(orders.reshape(-1), offset, steps * batch_size).reshape(steps, batch_size)


def place(step: int, batch_size: int, examples: int) -> tuple[int, int]:
    """The epoch in which a step starts, and the offset there; Python's integers, which do not overflow.

    >>> place(7, 64, 100)
    (4, 48)
    """
    return divmod(step * batch_size, examples)


def on_batch(loss: Loss, data: PyTree, rows: jax.Array | None) -> ScalarFn:
    """The loss of params alone, on the examples of these numbers; on all data for None."""
    if data is None:
        return loss
    batch = data if rows is None else jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0), data)
    return lambda params: loss(params, batch)

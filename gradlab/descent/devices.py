"""Where arrays lie: those that are placed stay, and what belongs to a run goes where its params are."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from gradlab.distributed.placement import put
from gradlab.types import PyTree


def whole(tree: PyTree) -> Sharding | None:
    """Where a number goes that all devices of these arrays need: on each of their mesh; None for one default device."""
    placed = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) and leaf.committed]
    for leaf in sorted(placed, key=lambda leaf: -len(leaf.sharding.device_set)):
        if isinstance(leaf.sharding, NamedSharding):
            return NamedSharding(leaf.sharding.mesh, PartitionSpec())
        return leaf.sharding
    return None


def settled(tree: PyTree, where: Sharding | None) -> PyTree:
    """Arrays on the device: those that are on several stay as they are, the others go to all that `where` names."""

    def settle(leaf: Any) -> jax.Array:
        there = isinstance(leaf, jax.Array) and (where is None or len(leaf.sharding.device_set) > 1)
        return leaf if there else jax.device_put(leaf) if where is None else put(leaf, where)

    return jax.tree.map(settle, tree)


@jax.jit
def copied(tree: PyTree) -> PyTree:
    """The same numbers in buffers of their own, so that one of the two can be given away."""
    return jax.tree.map(jnp.copy, tree)

"""What the steps of a descent are fed with: arrays on the device, or batches from an iterator, drawn ahead."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from gradlab.descent import batches, placement
from gradlab.descent.programs import Draw, Shape
from gradlab.descent.requirements import require_batches
from gradlab.errors import ArgumentError, OptionError
from gradlab.types import PyTree

# Steps of one compiled call; its history has room for as many.
CAPACITY = 1024


class Arrays:
    """Data that lie on the device: all of them in every step, or batches that the compiled program draws by itself.

    Args:
        data: a pytree of arrays, or None.
        batch_size: None for all of them.
        key: of the batches.
        where: the devices of the params.
    """

    most = CAPACITY

    def __init__(self, data: PyTree, batch_size: int | None, key: jax.Array | None, where: Sharding | None) -> None:
        self.data = None if data is None else placement.settled(data, where)
        self.shape = Shape(CAPACITY, batch_size)
        self.key, self.where, self.orders = key, where, None
        if batch_size is not None:
            self.orders = batches.Orders(key, batch_size, batches.length(data), CAPACITY)

    def calls(self, step: int) -> Iterator[tuple[PyTree, Draw | None]]:
        """The data and the draw of the calls from a step on: of the one that all steps of a stretch are made in."""
        draw = None
        if self.orders is not None:
            order, offset = self.orders.around(step)
            draw = Draw(placement.settled(order, self.where), offset)
        yield self.data, draw

    def skip(self, steps: int) -> None:
        """Which batch a step sees is known from its number: there is nothing to skip."""


class Stream:
    """Batches from an iterator, one a step; the next is drawn and sent while the device is at work on the one before.

    Args:
        data: an iterable of pytrees of arrays.
        where: the devices of the params, for arrays that are on none.
    """

    shape = Shape(1, fresh=True)
    # Losses that wait on the device until the host looks.
    most = CAPACITY

    def __init__(self, data: Iterable[PyTree], where: Sharding | None) -> None:
        self.source = iter(data)
        self.where = where
        self.waiting: list[PyTree] = []

    def _sent(self, batch: PyTree) -> PyTree:
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
                raise ArgumentError(
                    f"A batch of the data holds a {type(leaf).__name__} at batch{jax.tree_util.keystr(path)}; expected "
                    "arrays. Convert it in the iterator, or close over it."
                )
        return placement.settled(batch, self.where)

    def calls(self, step: int) -> Iterator[tuple[PyTree, None]]:
        """The batches from here on, each for a call of one step; it looks one ahead."""
        while self.waiting or self._draw():
            yield self.waiting.pop(), None
            # The step that this one is for has been sent to the device, which is at work on it.
            self._draw()

    def _draw(self) -> bool:
        """Get the next batch, if there is one."""
        for batch in self.source:
            self.waiting.append(self._sent(batch))
            return True
        return False

    def skip(self, steps: int) -> None:
        """Drop the batches that earlier steps have seen."""
        for _ in range(steps):
            if next(self.source, None) is None:
                return


Feed = Arrays | Stream


def feed(data: PyTree, batch_size: int | None, key: jax.Array | None, where: Sharding | None) -> Feed:
    """What a descent is fed with.

    Raises:
        OptionError, ShapeError: batch_size does not go with the data.
    """
    if not is_stream(data):
        require_batches(data, batch_size, key)
        return Arrays(data, batch_size, key, where)
    if batch_size is not None:
        raise OptionError(
            f"batch_size={batch_size} goes with arrays, but data is a {type(data).__name__}, whose batches have a size "
            "of their own. Leave it out."
        )
    return Stream(data, where)


def is_stream(data: Any) -> bool:
    """Whether data are an iterator of batches, or make one, and are no array and no container of arrays."""
    return isinstance(data, Iterable) and not isinstance(data, (tuple, list, Mapping)) and not hasattr(data, "shape")

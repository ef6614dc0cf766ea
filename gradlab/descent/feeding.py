"""What the steps of a descent are fed with: arrays on the device, or batches from an iterator, drawn ahead."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from gradlab.descent import batches, devices
from gradlab.descent.programs import Draw, Shape
from gradlab.descent.requirements import require_batches
from gradlab.errors import ArgumentError, OptionError
from gradlab.types import Params, PyTree

# Steps of one compiled call, and calls of one step that wait on the device, until the host looks.
CAPACITY = 1024


class Arrays:
    """Data that lie on the device: all of them in every step, or batches that the compiled program draws by itself.

    Args:
        data: a pytree of arrays, or None.
        batch_size: None for all of them.
        key: of the batches.
        where: the devices of the params.
    """

    def __init__(self, data: PyTree, batch_size: int | None, key: jax.Array | None, where: Sharding | None) -> None:
        self.data = None if data is None else devices.settled(data, where)
        self.shape = Shape(CAPACITY, batch_size)
        self.key, self.where, self.orders = key, where, None
        if batch_size is not None:
            self.orders = batches.Orders(key, batch_size, batches.length(data), CAPACITY)

    def calls(self, step: int) -> Iterator[tuple[PyTree, Draw | None]]:
        """The data and the draw of the calls from a step on: of the one that all steps of a stretch are made in."""
        draw = None
        if self.orders is not None:
            order, offset = self.orders.around(step)
            draw = Draw(devices.settled(order, self.where), offset)
        yield self.data, draw

    def skip(self, steps: int) -> None:
        """Which batch a step sees is known from its number: there is nothing to skip."""


class Stream:
    """Batches from an iterator, one a step; the next is drawn and sent while the device is at work on the one before.

    Args:
        source: an iterator of pytrees of arrays.
        where: the devices of the params, for arrays that are on none.
    """

    shape = Shape(1, fresh=True)

    def __init__(self, source: Iterator[PyTree], where: Sharding | None) -> None:
        self.source, self.where = source, where
        self.waiting: list[PyTree] = []

    def _sent(self, batch: PyTree) -> PyTree:
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex)):
                raise ArgumentError(
                    f"A batch of the data holds a {type(leaf).__name__} at batch{jax.tree_util.keystr(path)}; expected "
                    "arrays. Convert it in the iterator, or close over it."
                )
        return devices.settled(batch, self.where)

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
        deque(islice(self.source, steps), maxlen=0)


Feed = Arrays | Stream


def feed(params: Params, data: PyTree, batch_size: int | None, key: jax.Array | None) -> tuple[Feed, Sharding | None]:
    """What a descent is fed with, and where its params go: to the devices that they or the data are on.

    Raises:
        OptionError, ShapeError: batch_size does not go with the data.
    """
    if not is_stream(data):
        require_batches(data, batch_size, key)
        where = devices.whole((params, data))
        return Arrays(data, batch_size, key, where), where
    if batch_size is not None:
        raise OptionError(
            f"batch_size={batch_size} goes with arrays, but data is a {type(data).__name__}, whose batches have a size "
            "of their own. Leave it out."
        )
    source = iter(data)
    first = list(islice(source, 1))
    where = devices.whole((params, first))
    return Stream(chain(first, source), where), where


def is_stream(data: Any) -> bool:
    """Whether data are an iterator of batches, or make one, and are no array and no container of arrays."""
    return isinstance(data, Iterable) and not isinstance(data, (tuple, list, Mapping)) and not hasattr(data, "shape")

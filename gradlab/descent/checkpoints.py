"""Descents on disk: the carry and the history, written whole or not at all by orbax, and known again by their mark."""

import tempfile
import warnings
import zlib
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.descent.feeding import Arrays, Feed
from gradlab.descent.optimizers import describe, plain
from gradlab.descent.programs import Carry
from gradlab.errors import CheckpointError, MissingExtraError
from gradlab.types import Optimizer, PyTree

KEPT = 3


class Saved(NamedTuple):
    """What a checkpoint holds: the carry, and the history of shape `[step]`."""

    carry: Carry
    losses: np.ndarray
    norms: np.ndarray


class Checkpoints:
    """The checkpoints of one descent, the newest few, in a folder of their own.

    Args:
        folder: it is made.
        every: so many steps from one to the next.
        mark: what tells this descent from another one; see `mark`.

    Raises:
        CheckpointError: the folder cannot be written to.
        MissingExtraError: orbax is not installed.
    """

    def __init__(self, folder: str | PathLike[str], every: int, mark: dict[str, Any]) -> None:
        self.folder = Path(folder).absolute()
        self.every = every
        self.mark = mark
        self.last = 0
        ocp = orbax()
        _require_writable(self.folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def until(self, step: int) -> int:
        """How many steps there are to the next checkpoint."""
        return self.every - step % self.every

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this many steps."""
        return step % self.every == 0

    def save(self, carry: Carry, losses: np.ndarray, norms: np.ndarray) -> None:
        """Write one, unless it is there."""
        step = len(losses)
        if step == self.last:
            return
        ocp = orbax()
        arrays = {str(i): plain(leaf) for i, leaf in enumerate(jax.tree.leaves(carry))}
        arrays |= {"losses": losses, "norms": norms}
        about = {"mark": self.mark, "dtypes": [str(losses.dtype), str(norms.dtype)], "checksum": _checksum(arrays)}
        if step in self.manager.all_steps():  # a damaged one
            self.manager.delete(step)
        self.manager.save(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), run=ocp.args.JsonSave(about))
        )
        self.last = step

    def newest(self, like: Carry, most: int) -> Saved | None:
        """The newest checkpoint that is whole, or None where there is none yet.

        Args:
            like: a carry of the same structure, shapes and placement.
            most: the number of steps that the descent is to have.

        Raises:
            CheckpointError: they belong to another descent, or to more steps, or are all damaged.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        if steps and steps[0] > most:
            raise CheckpointError(
                f"{self.folder} holds a descent of {steps[0]} steps, more than the steps={most} that were asked for. "
                "Ask for as many or more, or give another checkpoint_dir."
            )
        damages = []
        for step in steps:
            try:
                found = self._read(step, like)
            except CheckpointError:
                raise
            except Exception as error:  # whatever orbax, tensorstore or the file system say of what they cannot read
                damages.append(f"the checkpoint of step {step} in {self.folder} is damaged ({_brief(error)})")
                continue
            if damages:
                warnings.warn(f"{'; '.join(damages)}. Going on from step {step}.", stacklevel=4)
            self.last = step
            return found
        if damages:
            raise CheckpointError(
                f"{'; '.join(damages)}. No other is left: remove the folder to start anew, or give another "
                "checkpoint_dir."
            )
        return None

    def _read(self, step: int, like: Carry) -> Saved:
        ocp = orbax()
        about = self.manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        self._require_mark(about["mark"], step)
        leaves, structure = jax.tree.flatten(like)
        shapes: dict[str, Any] = {str(i): _shape(plain(leaf)) for i, leaf in enumerate(leaves)}
        shapes |= {
            name: np.empty(step, dtype) for name, dtype in zip(("losses", "norms"), about["dtypes"], strict=True)
        }
        arrays = self.manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes)))["arrays"]
        if about["checksum"] != _checksum(arrays):
            raise ValueError("its numbers do not have the checksum that they were written with")
        carry = [_like(arrays[str(i)], leaf) for i, leaf in enumerate(leaves)]
        return Saved(jax.tree.unflatten(structure, carry), np.asarray(arrays["losses"]), np.asarray(arrays["norms"]))

    def _require_mark(self, found: dict[str, Any], step: int) -> None:
        for name, here in self.mark.items():
            there = found.get(name)
            if there != here:
                raise CheckpointError(
                    f"{self.folder} holds step {step} of another descent: its {name} is {_told(there)}, but here it is "
                    f"{_told(here)}. Give another checkpoint_dir, or make the call that began it."
                )


def mark(optimizer: Optimizer, feed: Feed, carry: Carry) -> dict[str, Any]:
    """What tells one descent from another, by name, as JSON: shapes, the optimizer, the batches.

    What the loss computes is not in it.
    """
    found: dict[str, Any] = {"optimizer": describe(optimizer)}
    for name in ("params", "state"):
        found |= _kinds(getattr(carry, name), name if name == "params" else "optimizer state")
    found["number of arrays"] = len(found) - 1
    if isinstance(feed, Arrays) and feed.data is not None:
        found |= _kinds(feed.data, "data")
        found["batch_size"] = feed.shape.batch_size
        if feed.shape.batch_size is not None:
            key = jax.random.key(0) if feed.key is None else feed.key
            found["key"] = np.asarray(plain(key)).tolist()
    return found


def _kinds(tree: PyTree, name: str) -> dict[str, str]:
    """Each leaf by its path: `float32[3,2]`."""
    kind = lambda leaf: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    return {name + jax.tree_util.keystr(path): kind(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def orbax() -> Any:
    """The package, or the error that says how to get it."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise MissingExtraError(
            "checkpoint_dir needs orbax, which cannot be imported here. "
            'Install it with: pip install "gradlab-jax[checkpoint]".'
        ) from error
    return ocp


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(
            f"checkpoint_dir={str(folder)!r} cannot be written to: {error.strerror or error}. Give a folder that can."
        ) from error


def _like(array: Any, leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    return array


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _checksum(arrays: dict[str, Any]) -> int | None:
    """Of all numbers; None where another process has some of them."""
    if not all(getattr(array, "is_fully_addressable", True) for array in arrays.values()):
        return None
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).data.cast("B") if np.size(arrays[name]) else b"", found)
    return found


def _told(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]

"""Arrays on a mesh of devices: whole, by their rows, or put together from what each process has."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from gradlab.errors import OptionError, ShapeError, nearest
from gradlab.inputs import require_count
from gradlab.types import PyTree

Axis = str | tuple[str, ...]


def mesh(axes: Mapping[str, int] | None = None, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices of all processes as a grid with named axes, over which the compiler shards by itself.

    Args:
        axes: the name and size of each axis; one size may be -1, for what is left. None for one axis `"data"`.
        devices: which ones; None for all.

    Returns:
        A mesh with axes of type `Auto`.

    Raises:
        OptionError: the sizes do not multiply to the number of devices.

    Source: the documentation of `jax.make_mesh`.

    >>> mesh().size == jax.device_count()
    True
    >>> mesh({"data": -1, "model": 1}).axis_names
    ('data', 'model')
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = _sizes({"data": -1} if axes is None else axes, count)
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)


def _sizes(axes: object, count: int) -> dict[str, int]:
    if not isinstance(axes, Mapping) or not axes or not all(isinstance(name, str) for name in axes):
        raise OptionError(f"axes must map names to sizes, such as {{'data': {count}}}, but got {axes!r:.60}.")
    open_axes = [name for name, size in axes.items() if size == -1]
    for name, size in axes.items():
        if name not in open_axes:
            require_count(size, f"axes[{name!r}]")
    fixed = prod(size for size in axes.values() if size != -1)
    if len(open_axes) > 1 or (count % fixed if open_axes else count != fixed):
        raise OptionError(
            f"axes={dict(axes)} must multiply to the number of devices, which is {count}; one size may be -1, for what "
            f"is left. Take {{'data': {count}}}, or pass devices= for fewer."
        )
    return {name: count // fixed if size == -1 else size for name, size in axes.items()}


def shard(data: PyTree, mesh: Mesh, axis: Axis = "data") -> PyTree:
    """Every leaf with its rows, the leading axis, split over an axis of the mesh.

    Args:
        data: a pytree of arrays `[rows, ...]`; with several processes, the same values on each.
        mesh: k devices along the axis.
        axis: of the mesh, or a tuple of them.

    Returns:
        The same values, placed: each device has `rows / k` of the rows.

    Raises:
        ShapeError: a leaf whose rows k does not divide.
        OptionError: the mesh has no such axis.

    Source: the documentation of `jax.sharding.NamedSharding`.

    >>> shard({"x": jnp.ones((4, 3))}, mesh(devices=jax.devices()[:1]))["x"].sharding.spec[0]
    'data'
    """
    parts = _parts(mesh, axis)
    sharding = NamedSharding(mesh, PartitionSpec(axis))

    def place(path: tuple, leaf: Any) -> jax.Array:
        _require_rows(path, leaf, parts, f"axis {axis!r} of the mesh has {parts} devices")
        return put(leaf, sharding)

    return jax.tree_util.tree_map_with_path(place, data)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Every leaf whole, a copy on each device of the mesh.

    Args:
        tree: a pytree of arrays; with several processes, the same values on each.
        mesh: the devices.

    Returns:
        The same values, placed.

    Source: the documentation of `jax.sharding.NamedSharding`.

    >>> replicate({"w": 1.0}, mesh())["w"].sharding.is_fully_replicated
    True
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, sharding), tree)


def put(leaf: Any, sharding: Sharding) -> jax.Array:
    """An array or a number where a sharding says; with several processes, the same value on each."""
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    # device_put would send the whole of it to all processes to compare, and take a NaN for a difference.
    whole = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, jnp.result_type(leaf))
    return jax.make_array_from_callback(whole.shape, sharding, lambda place: whole[place])


def from_local(data: PyTree, mesh: Mesh, axis: Axis = "data") -> PyTree:
    """Global arrays from the rows that each process has read for itself, in the order of the processes.

    Args:
        data: a pytree of arrays `[rows, ...]`, this process's own; as many rows in each process.
        mesh: the devices of all processes.
        axis: the axis of the mesh that the rows are split over, or a tuple of them.

    Returns:
        Arrays `[rows * processes, ...]`, no row of which leaves its process. (Where the processes lie along another
        axis of the mesh, they must all have the same rows, and there are no more of them.)

    Raises:
        ShapeError: rows that the devices of a process do not divide, or not as many as in another process.
        OptionError: the mesh has no such axis.

    Source: the documentation of `jax.make_array_from_process_local_data`.

    >>> from_local({"x": np.ones((4, 3))}, mesh(devices=jax.devices()[:1]))["x"].shape
    (4, 3)
    """
    _parts(mesh, axis)
    parts = _parts(mesh.local_mesh, axis)
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        _require_rows(path, leaf, parts, f"axis {axis!r} of the mesh has {parts} devices of this process")
    _require_alike([len(leaf) for leaf in jax.tree.leaves(data)])
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), data)


def _parts(mesh: object, axis: Axis) -> int:
    """How many devices an axis has."""
    if not isinstance(mesh, Mesh):
        raise OptionError(
            f"mesh must be a jax.sharding.Mesh, but got {mesh!r:.60}. gradlab.distributed.mesh() makes one."
        )
    names = axis if isinstance(axis, tuple) else (axis,)
    for name in names:
        if name not in mesh.shape:
            known = ", ".join(map(repr, mesh.shape))
            raise OptionError(f"The mesh has no axis {name!r}; it has {known}.{nearest(name, mesh.shape)}")
    return prod(mesh.shape[name] for name in names)


def _require_rows(path: tuple, leaf: Any, parts: int, why: str) -> None:
    name, shape = "data" + jax.tree_util.keystr(path), jnp.shape(leaf)
    if not shape:
        raise ShapeError(f"{name} has shape (), and no rows to split. Take gradlab.distributed.replicate for it.")
    if shape[0] % parts:
        raise ShapeError(
            f"{name} has shape {shape}, but {why}, which do not divide its {shape[0]} rows. Drop "
            f"{shape[0] % parts} of them, or add {-shape[0] % parts}."
        )


def _require_alike(rows: list[int]) -> None:
    """Processes with unlike shapes would compile unlike programs, and wait for one another."""
    if jax.process_count() == 1:
        return
    every = np.asarray(multihost_utils.process_allgather(np.asarray(rows, np.int32)))
    if (every != every[0]).any():
        raise ShapeError(
            "Every process must have as many rows, but the leaves of process 0, of process 1 and so on have "
            f"{', '.join(map(str, every.tolist()))}. Cut all to the fewest."
        )

"""Jacobians whose directions are spread over the devices of a mesh: columns in forward mode, rows in reverse.

The map from a direction to its column or row is linear and the same for all of them, so that every device takes its
share without hearing of the others; what f itself costs is paid on each.

Source: Xu et al., GSPMD: general and scalable parallelization for ML computation graphs (2021).
"""

from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Literal, assert_never, cast

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gradlab import inputs, trees
from gradlab.errors import ArgumentError, OptionError
from gradlab.mode import dense
from gradlab.mode.dense import Direction
from gradlab.mode.support import Unary
from gradlab.types import Fn, PyTree


def require_mesh(mesh: object) -> None:
    """Raise `OptionError` unless `mesh` is a `jax.sharding.Mesh` whose axes the compiler may shard over by itself."""
    if not isinstance(mesh, Mesh):
        raise OptionError(
            f"mesh must be a jax.sharding.Mesh or None, but got {type(mesh).__name__}: {mesh!r:.60}. "
            "gradlab.distributed.mesh() makes one of all devices."
        )
    given = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Auto]
    if given:
        raise OptionError(
            f"mesh must have axes of type Auto, but these are not: {', '.join(map(str, given))}. Take "
            "gradlab.distributed.mesh(), or jax.make_mesh(…, axis_types=(jax.sharding.AxisType.Auto, …))."
        )


def sharded(f: Unary, direction: Direction, mesh: Mesh, has_aux: bool = False) -> Unary:
    """`x ↦ J` by forward or reverse mode, each device of the mesh taking its share of the columns or rows.

    Args:
        f: a function of one pytree.
        direction: which mode.
        mesh: k devices; the n directions are filled up with zeros to a multiple of k, and cut again.
        has_aux: f returns `(y, aux)`, and the result is `(J, aux)`.

    Returns:
        A function to run under `jit`; its result has the structure that `jax.jacobian` gives.
    """
    match direction:
        case "forward":
            return lambda x: _columns(f, x, mesh, has_aux)
        case "reverse":
            return lambda x: _rows(f, x, mesh, has_aux)
        case _:
            assert_never(direction)


def _columns(f: Unary, x: PyTree, mesh: Mesh, has_aux: bool) -> Any:
    y, push, *aux = jax.linearize(f, x, has_aux=cast(Any, has_aux))
    jac = dense.by_input(_spread(push, x, mesh, axis=-1), x, y)
    placed = jax.tree.map(lambda out, block: _placed(block, x, mesh, before=jnp.ndim(out)), y, jac)
    return (placed, *aux) if has_aux else placed


def _rows(f: Unary, x: PyTree, mesh: Mesh, has_aux: bool) -> Any:
    y, pull, *aux = jax.vjp(f, x, has_aux=cast(Any, has_aux))
    jac = dense.by_output(_spread(lambda w: pull(w)[0], y, mesh, axis=0), x, y)
    keep = lambda out, leaf: _keep(leaf, mesh, _shares(jnp.shape(out), mesh))
    placed = jax.tree.map(lambda out, block: jax.tree.map(partial(keep, out), block), y, jac)
    return (placed, *aux) if has_aux else placed


def _placed(block: PyTree, x: PyTree, mesh: Mesh, *, before: int) -> PyTree:
    """Split each leaf along the axes that count the directions, which come after as many others."""
    whole = (None,) * before
    return jax.tree.map(lambda leaf, part: _keep(part, mesh, (*whole, *_shares(jnp.shape(leaf), mesh))), x, block)


def _spread(apply: Unary, x: PyTree, mesh: Mesh, *, axis: Literal[0, -1]) -> PyTree:
    """Apply a linear map to every unit vector of x's space, each device to its share.

    Returns:
        A pytree of the structure that `apply` gives; each leaf has one axis of length n more, first (0) or last (-1).
    """
    n = trees.size(x)
    vectors = trees.basis(x, jnp.arange(n + -n % mesh.size))
    everything = (mesh.axis_names,)
    share = jax.tree.map(lambda leaf: _keep(leaf, mesh, everything), vectors)

    def cut(block: jax.Array) -> jax.Array:
        whole = () if axis == 0 else (None,) * (block.ndim - 1)
        return jax.lax.slice_in_dim(_keep(block, mesh, (*whole, *everything)), 0, n, axis=axis)

    return jax.tree.map(cut, jax.vmap(apply, out_axes=axis)(share))


def _keep(leaf: jax.Array, mesh: Mesh, shares: tuple[Any, ...]) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec(*shares)))


def _shares(shape: tuple[int, ...], mesh: Mesh) -> tuple[tuple[str, ...] | None, ...]:
    """Which axes of the mesh split each axis of an array: as many as divide it, the first ones first."""
    left, shares = list(mesh.axis_names), []
    for size in shape:
        taken: list[str] = []
        for name in tuple(left):
            if size % mesh.shape[name] == 0:
                size //= mesh.shape[name]
                taken.append(name)
                left.remove(name)
        shares.append(tuple(taken) or None)
    return tuple(shares)


@dataclass(frozen=True)
class _Fixed:
    """What a program is compiled for: where the arrays go, and all that is none, each with its type as 1 == True."""

    structure: Any
    values: tuple[tuple[type, Any] | None, ...]

    def fill(self, arrays: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest = iter(arrays)
        return jax.tree.unflatten(self.structure, [next(rest) if v is None else v[1] for v in self.values])


def compiled(take: Fn, mesh: Mesh) -> Fn:
    """The same function as one program on the devices of the mesh, for it is the compiler that spreads the work.

    Args:
        take: a function that `jit` can trace; it is compiled once for each shape of its arrays and numbers, and for
            each value of an integer, bool, string or other object, which stay what they are.
        mesh: where.

    Raises:
        OptionError: an array was put on other devices; when the result is called.
        ArgumentError: an argument that is no array cannot be hashed.
    """

    @partial(jax.jit, static_argnums=0)
    def program(fixed: _Fixed, arrays: list[Any]) -> Any:
        args, kwargs = fixed.fill(arrays)
        return take(*args, **kwargs)

    @wraps(take)
    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree_util.tree_flatten_with_path((args, kwargs))
        arrays = [leaf for _, leaf in leaves if _is_traced(leaf)]
        for path, leaf in leaves:
            (_require_there(path, leaf, mesh) if _is_traced(leaf) else _require_hashable(path, leaf))
        fixed = tuple(None if _is_traced(leaf) else (type(leaf), leaf) for _, leaf in leaves)
        with inputs.tracing():
            return program(_Fixed(structure, fixed), arrays)

    return run


def _is_traced(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") or isinstance(leaf, (float, complex))


def _require_there(path: tuple, leaf: Any, mesh: Mesh) -> None:
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or not leaf.committed:
        return
    if leaf.sharding.device_set != set(mesh.devices.flat):
        raise OptionError(
            f"{_name(path)} was put on {len(leaf.sharding.device_set)} device(s), which are not the {mesh.size} of "
            f"mesh={dict(mesh.shape)}. Put it there: gradlab.distributed.replicate(x, mesh), or shard(x, mesh)."
        )


def _require_hashable(path: tuple, leaf: Any) -> None:
    try:
        hash(leaf)
    except TypeError:
        raise ArgumentError(
            f"{_name(path)} is a {type(leaf).__name__}, which is no array and cannot be hashed; with mesh= a program "
            "is compiled for each such value. Close over it, or make it hashable."
        ) from None


def _name(path: tuple) -> str:
    """The path as the caller knows it: `args[0]['w']`, or `kwargs['w']`."""
    return ("args", "kwargs")[path[0].idx] + jax.tree_util.keystr(path[1:])

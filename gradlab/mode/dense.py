"""Jacobians from every direction of a space, forward (columns) or reverse (rows), all at once or in chunks.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), chapter 3, and section 5.1 for Hessians.
"""

from typing import Any, Literal, assert_never, cast

import jax
import jax.numpy as jnp

from gradlab import trees
from gradlab.jaxprs import images, saves, trace
from gradlab.mode.support import Unary
from gradlab.types import Mixture, PyTree

Direction = Literal["forward", "reverse"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
# The preferred first: one linearized gradient serves all columns; then the mixtures that need fewer reverse rules.
MIXTURES: tuple[Mixture, ...] = (
    "forward_over_reverse",
    "reverse_over_forward",
    "reverse_over_reverse",
    "forward_over_forward",
)


def unchunked(f: Unary, direction: Direction, has_aux: bool = False) -> Unary:
    """`x ↦ J` by JAX's own program, all directions at once."""
    match direction:
        case "forward":
            return jax.jacfwd(f, has_aux=has_aux)
        case "reverse":
            return jax.jacrev(f, has_aux=has_aux)
        case _:
            assert_never(direction)


def dense(f: Unary, direction: Direction, chunk_size: int | None = None, has_aux: bool = False) -> Unary:
    """`x ↦ J` by forward or reverse mode, all directions at once or in chunks."""
    if chunk_size is None:
        return lambda x: _whole(f, x, direction, has_aux)
    match direction:
        case "forward":
            return lambda x: _chunked_forward(f, x, chunk_size, has_aux)
        case "reverse":
            return lambda x: _chunked_reverse(f, x, chunk_size, has_aux)
        case _:
            assert_never(direction)


def _whole(f: Unary, x: PyTree, direction: Direction, has_aux: bool) -> Any:
    """JAX's own program; or, where that would multiply matrices by the identity, one without these products."""
    own = unchunked(f, direction, has_aux)
    program = trace(f, x)
    y = program.shape[0] if has_aux else program.shape
    space = y if direction == "reverse" else jax.eval_shape(lambda x: x, x)
    floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves((space, y)))
    # Linearized, a loop would keep what a push forward through it needs of each iteration.
    apart = direction == "reverse" or not program.operators & {"scan", "while", "custom_vjp_call"}
    if not (floating and apart and trees.size(space) > 1 and "dot_general" in program.operators):
        return own(x)
    y, apply, *aux = linear(f, x, direction, has_aux)
    applied = trace(apply, space)
    if not saves(applied, space):
        return own(x)
    if direction == "forward":
        jac = by_input(images(applied, space, axis=-1), x, y)
    else:
        jac = by_output(images(applied, space), x, y)
    return (jac, *aux) if has_aux else jac


def linear(f: Unary, x: PyTree, direction: Direction, has_aux: bool = False) -> tuple[Any, ...]:
    """f(x), then v ↦ J v or w ↦ Jᵀ w, then aux if f has one."""
    match direction:
        case "forward":
            return tuple(jax.linearize(f, x, has_aux=cast(Any, has_aux)))
        case "reverse":
            y, pull, *aux = jax.vjp(f, x, has_aux=cast(Any, has_aux))
            return y, lambda w: pull(w)[0], *aux
        case _:
            assert_never(direction)


def _chunked_forward(f: Unary, x: PyTree, chunk_size: int, has_aux: bool) -> Any:
    _, push, *aux = linear(f, x, "forward", has_aux)
    jac = assembled(push, x, chunk_size)
    return (jac, *aux) if has_aux else jac


def assembled(column: Unary, x: PyTree, chunk_size: int) -> PyTree:
    """The matrix with these columns, in JAX's structure: that of a column, with x's structure at each leaf.

    Args:
        column: from a unit vector of x's space to the column that belongs to it, a pytree.
        x: the space of the directions.
        chunk_size: directions at a time.
    """
    return by_input(in_chunks(column, x, chunk_size, axis=-1), x, jax.eval_shape(column, x))


def by_input(columns: PyTree, x: PyTree, y: PyTree) -> PyTree:
    """Columns, the axis of directions last, in JAX's structure: that of y, with x's structure at each leaf."""
    return jax.tree.map(lambda block, out: _split(block, x, jnp.shape(out), axis=-1), columns, y)


def _chunked_reverse(f: Unary, x: PyTree, chunk_size: int, has_aux: bool) -> Any:
    y, pull, *aux = linear(f, x, "reverse", has_aux)
    jac = by_output(in_chunks(pull, y, chunk_size, axis=0), x, y)
    return (jac, *aux) if has_aux else jac


def by_output(rows: PyTree, x: PyTree, y: PyTree) -> PyTree:
    """Rows, the axis of directions first, in JAX's structure: that of y, with x's structure at each leaf."""
    leaves, structure = jax.tree.flatten(y)
    parts = [jax.tree.leaves(_split(row, y, jnp.shape(leaf), axis=0)) for row, leaf in _with_shapes(rows, x)]
    inner = jax.tree.structure(x)
    rebuilt = [jax.tree.unflatten(inner, [part[i] for part in parts]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, rebuilt)


def _with_shapes(rows: PyTree, x: PyTree) -> list[tuple[jax.Array, Any]]:
    return list(zip(jax.tree.leaves(rows), jax.tree.leaves(x), strict=True))


def in_chunks(apply: Unary, x: PyTree, chunk_size: int, *, axis: Literal[0, -1]) -> PyTree:
    """Apply a map to every unit vector of x's space, `chunk_size` of them at a time.

    Each chunk is written in place into the result, so no more than one chunk of intermediate values is alive. The last
    chunk is moved back to end with the last direction: it repeats a few instead of needing a program of its own.

    Args:
        apply: the map, from x's space to another.
        x: the space of the directions; n numbers in all.
        chunk_size: directions at a time.
        axis: where the direction goes, first (0) or last (-1).

    Returns:
        A pytree of the structure that `apply` gives; each leaf has one axis of length n more.
    """
    n = trees.size(x)
    chunk = min(chunk_size, n)
    batched = jax.vmap(apply, out_axes=axis)
    template = jax.eval_shape(batched, jax.eval_shape(lambda i: trees.basis(x, i), jnp.arange(chunk)))

    def place(buffer: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, part, start, axis=axis if axis == 0 else buffer.ndim - 1)

    def step(i: jax.Array, buffers: PyTree) -> PyTree:
        start = jnp.minimum(i * chunk, n - chunk)
        part = batched(trees.basis(x, start + jnp.arange(chunk)))
        return jax.tree.map(lambda b, p: place(b, p, start), buffers, part)

    def full(leaf: Any) -> jax.Array:
        shape = (n, *leaf.shape[1:]) if axis == 0 else (*leaf.shape[:-1], n)
        return jnp.zeros(shape, leaf.dtype)

    return jax.lax.fori_loop(0, -(-n // chunk), step, jax.tree.map(full, template))


def _split(block: jax.Array, x: PyTree, shape: tuple[int, ...], *, axis: Literal[0, -1]) -> PyTree:
    """Cut the axis of directions into the leaves of x, each with its own shape."""
    leaves, structure = jax.tree.flatten(x)
    parts, offset = [], 0
    for leaf in leaves:
        count = trees.size(leaf)
        piece = block if count == block.shape[axis] else jax.lax.slice_in_dim(block, offset, offset + count, axis=axis)
        parts.append(piece.reshape((*jnp.shape(leaf), *shape) if axis == 0 else (*shape, *jnp.shape(leaf))))
        offset += count
    return jax.tree.unflatten(structure, parts)


def directions(mode: Mixture) -> tuple[Direction, Direction]:
    """The outer and the inner direction that a mixture's name says.

    >>> directions("forward_over_reverse")
    ('forward', 'reverse')
    """
    outer, inner = mode.split("_over_")
    return cast(Direction, outer), cast(Direction, inner)


def nested(f: Unary, mode: Mixture, chunk_size: int | None = None) -> Unary:
    """`x ↦ H`: the inner Jacobian, and the outer one of it.

    In chunks, an inner reverse mode needs one pass for each output of f, which is one, so the outer directions are
    chunked. An inner forward mode is taken one direction at a time, H e = ∂(J e)/∂x, and those directions are chunked:
    the outer derivative of a whole inner Jacobian would keep n × n values for each of its rows.
    """
    outer, inner = directions(mode)
    if chunk_size is None or inner == "reverse":
        return dense(unchunked(f, inner), outer, chunk_size)
    size = chunk_size if outer == "forward" else None

    def columns(x: PyTree) -> Any:
        slope_along = lambda e: lambda x: jax.jvp(f, (x,), (e,))[1]
        return assembled(lambda e: dense(slope_along(e), outer, size)(x), x, chunk_size)

    return columns

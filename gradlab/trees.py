"""Vector algebra on pytrees: a pytree of arrays is one vector, whatever its structure.

Leaves keep their shapes and dtypes; scalars have shape `()`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gradlab.types import PyTree, Scalar


def vdot(a: PyTree, b: PyTree) -> Scalar:
    """The inner product ⟨a, b⟩ = Σ conj(aᵢ) bᵢ over all leaves.

    Args:
        a, b: pytrees of one structure, with leaves of the same shapes.

    Returns:
        A scalar, shape `()`.

    >>> float(vdot({"w": jnp.array([1.0, 2.0]), "b": 3.0}, {"w": jnp.array([4.0, 5.0]), "b": 6.0}))
    32.0
    """
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, a, b))


def axpy(scale: Scalar | float, x: PyTree, y: PyTree) -> PyTree:
    """`scale * x + y`, leaf by leaf, in the dtype of y.

    >>> axpy(2.0, (1.0, 3.0), (10.0, 20.0))
    (12.0, 26.0)
    """
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


def scale(factor: Scalar | float, x: PyTree) -> PyTree:
    """`factor * x`, leaf by leaf.

    >>> scale(2.0, (1.0, 3.0))
    (2.0, 6.0)
    """
    return jax.tree.map(lambda a: factor * a, x)


def norm(x: PyTree) -> Scalar:
    """The Euclidean norm √⟨x, x⟩ over all leaves; free of overflow, and of NaN in its derivative at zero.

    Source: the scaled sum of squares of BLAS `nrm2`.

    >>> round(float(norm({"a": jnp.array([3e30]), "b": jnp.array(4e30)})) / 1e30, 5)
    5.0
    """
    leaves = [jnp.abs(leaf) for leaf in jax.tree.leaves(x)]
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack([jnp.max(leaf, initial=0) for leaf in leaves])))
    one = jnp.where(largest > 0, largest, 1)
    squares = sum((jnp.sum((leaf / one) ** 2) for leaf in leaves), start=jnp.zeros((), one.dtype))
    return jnp.where(squares > 0, one * jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def unit(v: PyTree) -> PyTree:
    """v/|v|, and zeros for a zero v.

    >>> unit({"a": jnp.array([3.0]), "b": jnp.array(4.0)})["b"]
    Array(0.8, dtype=float32)
    """
    length = norm(v)
    # Divided leaf by leaf: one over the smallest lengths is infinite.
    return jax.tree.map(lambda a: jnp.where(length > 0, a / jnp.where(length > 0, length, 1), 0), v)


def size(x: PyTree) -> int:
    """How many numbers the pytree holds, over all leaves.

    >>> size({"w": jnp.zeros((2, 3)), "b": 0.0})
    7
    """
    return sum(jnp.size(leaf) if not hasattr(leaf, "size") else int(leaf.size) for leaf in jax.tree.leaves(x))


def basis(x: PyTree, indices: jax.Array) -> PyTree:
    """The unit vectors of x's space at the given flat indices, one along a new leading axis.

    Args:
        x: the pytree (or its `jax.ShapeDtypeStruct`s) whose space it is; n numbers in all.
        indices: integers in [0, n), shape `[k]`, in the order of `ravel`.

    Returns:
        A pytree of x's structure, each leaf of shape `[k, *leaf.shape]`.

    >>> basis({"a": jnp.zeros(2), "b": jnp.zeros(())}, jnp.array([1, 2]))["b"]
    Array([0., 1.], dtype=float32)
    """
    leaves, structure = jax.tree.flatten(x)
    vectors, offset = [], 0
    for leaf in leaves:
        shape, count = jnp.shape(leaf), size(leaf)
        hot = jax.nn.one_hot(indices - offset, count, dtype=jnp.result_type(leaf))
        vectors.append(hot.reshape(indices.shape + shape))
        offset += count
    return jax.tree.unflatten(structure, vectors)


def random_like(seed: int, x: PyTree) -> PyTree:
    """A standard normal vector of x's structure, shapes and dtypes.

    Drawn by NumPy: XLA would compile a program for each shape, which takes longer than most of what is done with it.

    >>> random_like(0, {"a": jnp.zeros((2, 3))})["a"].shape
    (2, 3)
    """
    draw = np.random.default_rng(seed).standard_normal

    def like(leaf: Any) -> jax.Array:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        real = draw(shape)
        return jnp.asarray(
            (real + 1j * draw(shape)) / 2**0.5 if jnp.issubdtype(dtype, jnp.complexfloating) else real, dtype
        )

    return jax.tree.map(like, x)


def ravel(x: PyTree) -> tuple[jax.Array, Callable[[jax.Array], PyTree]]:
    """The pytree as one array of shape `[n]`, and the function that puts it back.

    >>> flat, back = ravel({"a": jnp.ones(2), "b": jnp.zeros(())})
    >>> flat.shape, sorted(back(flat))
    ((3,), ['a', 'b'])
    """
    return ravel_pytree(x)

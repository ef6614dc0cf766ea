"""What is checked before a descent starts: every mistake gets its name, its place and its cure here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import inputs
from gradlab.errors import ArgumentError, NonFiniteError, NotScalarError, OptionError, ShapeError
from gradlab.types import Loss, Optimizer, Params, PyTree


def require_job(
    loss: Loss,
    optimizer: Optimizer,
    params: Params,
    data: PyTree,
    batch_size: int | None,
    key: jax.Array | None,
) -> None:
    """Raise gradlab's own error unless the loss can be taken at these params and data, found by tracing alone.

    Raises:
        ArgumentError: no optimizer, or a loss that takes another number of arguments.
        NotDifferentiableError, EmptyInputError: params that cannot move.
        OptionError, ShapeError: batch_size does not go with the data.
        NotScalarError: the loss is not one real number.
    """
    require_optimizer(optimizer)
    inputs.require_differentiable(params, "params")
    require_batches(data, batch_size, key)
    require_loss(loss, params, example(data, batch_size))


def example(data: PyTree, batch_size: int | None) -> PyTree:
    """What the loss gets as a batch: the data, or the shapes of so many rows of them."""
    if batch_size is None:
        return data
    rows = lambda leaf: jax.ShapeDtypeStruct((batch_size, *jnp.shape(leaf)[1:]), jnp.result_type(leaf))
    return jax.tree.map(rows, data)


def require_options(
    optimizer: Any, steps: object, tol: object, checkpoint_dir: object, checkpoint_every: object
) -> None:
    """Raise `OptionError` or `ArgumentError` for an option of `descend` that makes no sense by itself."""
    require_optimizer(optimizer)
    inputs.require_count(steps, "steps", least=0)
    inputs.require_count(checkpoint_every, "checkpoint_every", none=True)
    if tol is not None and not (isinstance(tol, (int, float)) and not isinstance(tol, bool) and tol >= 0):
        raise OptionError(f"tol must be a number of at least 0, or None to take every step, but got {tol!r}.")
    if checkpoint_every is not None and checkpoint_dir is None:
        raise OptionError(
            f"checkpoint_every={checkpoint_every} was given without checkpoint_dir. Say where to save, or leave it out."
        )


def require_optimizer(optimizer: Any) -> None:
    """Raise `ArgumentError` unless this is a pair of init and update."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ArgumentError(
            f"optimizer must be one of optax's, such as optax.adam(1e-3), but got {type(optimizer).__name__}: "
            f"{optimizer!r:.60}. A learning rate alone goes into one: optax.sgd(learning_rate)."
        )


def require_loss(loss: Loss, params: Params, batch: PyTree) -> None:
    """Raise unless `loss(params)`, or `loss(params, batch)` where there is a batch, is one real number."""
    args = (params,) if batch is None else (params, batch)
    if error := inputs.misfit(loss, *args):
        cure = (
            "Give data=, or a loss of params alone."
            if batch is None
            else "With data it must be loss(params, batch); pack several arrays into one tuple or dict."
        )
        raise ArgumentError(f"The loss cannot be called with {len(args)} argument(s): {error}. {cure}") from error
    with inputs.tracing():
        y = jax.eval_shape(loss, *args)
    leaves = jax.tree.leaves(y)
    if not isinstance(y, jax.ShapeDtypeStruct) or y.shape != () or not jnp.issubdtype(y.dtype, jnp.floating):
        given = f"{leaves[0].dtype} of shape {leaves[0].shape}" if len(leaves) == 1 else f"{len(leaves)} arrays"
        raise NotScalarError(
            f"The loss must return one real number of shape (), but it returns {given}. Reduce it: jnp.mean(…) over "
            "the examples, and a weighted sum where there are several terms."
        )


def require_batches(data: PyTree, batch_size: int | None, key: jax.Array | None) -> None:
    """Raise unless batches of this size can be drawn from the data; a key needs no batches to be valid."""
    if key is not None:
        inputs.require_key(key)
    if batch_size is None:
        return
    inputs.require_count(batch_size, "batch_size")
    leaves = jax.tree_util.tree_leaves_with_path(data)
    if not leaves:
        raise OptionError(f"batch_size={batch_size} was given without data. Give data=, or leave batch_size out.")
    lengths = {}
    for path, leaf in leaves:
        name = "data" + jax.tree_util.keystr(path)
        if not jnp.shape(leaf):
            raise ShapeError(
                f"{name} is a single number, but batch_size={batch_size} cuts every array of the data along its "
                "leading axis. Close over what is no example."
            )
        lengths[name] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise ShapeError(f"The arrays of data must have leading axes of one length, the examples, but {told}.")
    examples = next(iter(lengths.values()))
    if batch_size > examples:
        raise OptionError(
            f"batch_size={batch_size} is more than the {examples} examples of the data. Give at most {examples}, or "
            "leave it out to take all of them in every step."
        )


def require_finite(params: Params, data: PyTree) -> None:
    """Raise `NonFiniteError` where the initial params hold NaN or infinities, or the data NaN; it names the leaf."""
    for tree, name, passes, what in (
        (params, "params", lambda xp, leaf: xp.isfinite(leaf), "NaN or infinite"),
        (data, "data", lambda xp, leaf: ~xp.isnan(leaf), "NaN"),
    ):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            count = _failing(leaf, passes)
            if count:
                raise NonFiniteError(
                    f"{name}{jax.tree_util.keystr(path)} holds {count} of {jnp.size(leaf)} numbers that are {what}, "
                    "which no step can mend. Drop or fill them, or mask them in the loss, before descending."
                )


def all_finite(tree: PyTree) -> bool:
    """Whether no number is NaN or infinite."""
    return not any(_failing(leaf, lambda xp, leaf: xp.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def _failing(leaf: Any, passes: Callable[[Any, Any], Any]) -> int:
    """How many numbers of an array do not pass; by NumPy, which compiles nothing, where the array is in its reach."""
    if not jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf), jnp.inexact):
        return 0
    if jax.default_backend() == "cpu" and getattr(leaf, "is_fully_addressable", True):
        passed = passes(np, np.asarray(leaf))
        return 0 if passed.all() else int(np.sum(~passed))
    return int(jnp.sum(~passes(jnp, leaf)))

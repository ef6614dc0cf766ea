"""One step of gradient descent, and the pure loop of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gradlab import inputs
from gradlab.descent import batches
from gradlab.descent.requirements import require_job
from gradlab.types import Loss, Optimizer, Params, PyTree, Scalar, ScalarFn


class History(NamedTuple):
    """What a loop saw: before each step, the loss and the norm of its gradient, both of shape `[steps]`."""

    losses: jax.Array
    gradient_norms: jax.Array


class Evaluation(NamedTuple):
    """A loss at one point, its gradient as optimizers take it, and that gradient's Euclidean norm."""

    loss: Scalar
    gradient: Params
    norm: Scalar


def evaluate(value: ScalarFn, params: Params, state: PyTree, *, kept: bool) -> Evaluation:
    """The loss and its gradient at params.

    Args:
        value: the loss as a function of params alone.
        params, state: of this step.
        kept: whether the loss and the gradient that a line search left in the state belong to this very function, so
            that they need not be computed again.
    """
    found = kept_gradient(state) if kept else None
    if found is None:
        loss, gradient = _value_and_gradient(value, params)
    else:
        # Before the first search the state holds an infinite loss.
        loss, gradient = jax.lax.cond(
            jnp.isfinite(found[0]), lambda _: found, lambda params: _value_and_gradient(value, params), params
        )
    return Evaluation(loss, gradient, norm(gradient))


def _value_and_gradient(value: ScalarFn, params: Params) -> tuple[Scalar, Params]:
    loss, gradient = jax.value_and_grad(value)(params)
    # JAX's gradient by a complex number is the conjugate of the direction of ascent.
    return loss, jax.tree.map(jnp.conj, gradient)


def norm(gradient: Params) -> Scalar:
    """√Σ|gᵢ|² over all leaves, in float32 at least, finite wherever the gradient is: a second sum is of small squares.

    Source: the accumulators of Blue, A portable Fortran program to find the Euclidean norm of a vector (1978).

    >>> float(norm({"w": jnp.full(4, 300, jnp.float16)})), float(norm(jnp.full(4, 2.0**100))) == 2.0**101
    (600.0, True)
    """
    sizes = [jnp.abs(leaf) for leaf in jax.tree.leaves(gradient)]
    widest = jnp.result_type(jnp.float32, *sizes)
    half = jnp.finfo(widest).maxexp // 2
    scale = 2.0 ** -(half + 16)
    # The compiler would take the scale out of a square, were it not chosen for the large ones alone.
    shrunk = lambda size: jnp.where(size > 2.0 ** (half // 2), size * scale, 0)
    total = lambda parts: sum((jnp.sum(jnp.square(part)) for part in parts), start=jnp.zeros((), widest))
    wide = [size.astype(widest) for size in sizes]
    plain = jnp.sqrt(total(wide))
    return jnp.where(jnp.isinf(plain), jnp.sqrt(total(map(shrunk, wide))) / scale, plain)


def moved(
    optimizer: Optimizer, value: ScalarFn, params: Params, state: PyTree, found: Evaluation
) -> tuple[Params, PyTree]:
    """Params and state after the optimizer's update; one that searches along a line is given the function too."""
    extra = {"value": found.loss, "grad": found.gradient, "value_fn": value}
    update = optax.with_extra_args_support(optimizer).update
    updates, state = update(found.gradient, state, params, **extra)
    return optax.apply_updates(params, updates), state


def kept_gradient(state: PyTree) -> tuple[Scalar, Params] | None:
    """The loss and the gradient of the point that a line search has moved to, where an optimizer's state holds them.

    They are looked for in optax's own records: params may have entries of any name.
    """
    holds = lambda node: isinstance(node, tuple) and {"value", "grad"} <= set(getattr(node, "_fields", ()))
    found = [node for node in jax.tree.leaves(state, is_leaf=holds) if holds(node) and node.grad is not None]
    return (found[0].value, found[0].grad) if len(found) == 1 else None


def strong(leaf: Any) -> jax.Array:
    """A leaf as an array of a definite dtype, so that it has the same type before a loop and after it."""
    dtype = jnp.result_type(leaf)
    return leaf if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.asarray(leaf, dtype)


def descent_loop(
    loss: Loss, optimizer: Optimizer, *, steps: int, batch_size: int | None = None, key: jax.Array | None = None
) -> Callable[..., tuple[Params, PyTree, History]]:
    """Gradient descent as one pure function, a `scan` over its steps: to be jitted, mapped, sharded, differentiated.

    θ ← θ + optimizer(∇loss(θ)), `steps` times; nothing stops it, so a run that diverges shows it in its history.

    Args:
        loss: `loss(params)`, or `loss(params, batch)` where there are data; one real number.
        optimizer: any of optax's, those that search along a line included. It may be made of traced numbers, as in
            `jax.vmap(lambda rate: descent_loop(loss, optax.sgd(rate), steps=100)(params)[2].losses)(rates)`.
        steps: how many.
        batch_size: so many examples a step, each once an epoch and in a new order each epoch; all of them for None.
        key: the random key that orders them; `jax.random.key(0)` where there is none. It may be traced.

    Returns:
        A function `(params, data=None) ↦ (params, state, history)`: the last params, the state of the optimizer, and
        `history.losses` and `history.gradient_norms` of shape `[steps]`, each of the point that a step starts from.
        `data` is a pytree of arrays; with batch_size, their leading axes are the examples, of one length.

    Raises:
        OptionError: steps, batch_size or key out of range; at once.
        NotScalarError, NotDifferentiableError, ShapeError, ArgumentError: from the function, before anything runs.

    Source: Cauchy (1847); equation 4.1. Robbins and Monro, A stochastic approximation method (1951), for batches.

    >>> loop = descent_loop(lambda x: (2.0 * x - 9.0) ** 2, optax.sgd(0.125), steps=3)
    >>> params, state, history = loop(5.0)
    >>> float(params), history.losses.tolist(), history.gradient_norms.tolist()
    (4.5, [1.0, 0.0, 0.0], [4.0, 0.0, 0.0])
    """
    inputs.require_function(loss, "descent_loop")
    inputs.require_count(steps, "steps", least=0)

    def run(params: Params, data: PyTree = None) -> tuple[Params, PyTree, History]:
        require_job(loss, optimizer, params, data, batch_size, key)
        params = jax.tree.map(strong, params)
        state = jax.tree.map(strong, optimizer.init(params))
        kept = batch_size is None

        def step(carry: tuple[Params, PyTree], rows: jax.Array | None) -> tuple[tuple[Params, PyTree], History]:
            value = batches.on_batch(loss, data, rows)
            found = evaluate(value, *carry, kept=kept)
            return moved(optimizer, value, *carry, found), History(found.loss, found.norm)

        rows = None if batch_size is None else batches.rows(key, steps, batch_size, batches.length(data))
        (params, state), history = jax.lax.scan(step, (params, state), rows, length=steps)
        return params, state, history

    return run

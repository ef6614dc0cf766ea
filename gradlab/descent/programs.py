"""Many steps of a descent as one compiled program, which stops by itself; compiled once for each loss."""

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from gradlab import inputs
from gradlab.descent import batches, devices
from gradlab.descent.optimizers import Known
from gradlab.descent.requirements import example, require_loss
from gradlab.descent.step import evaluate, moved, strong
from gradlab.errors import ArgumentError
from gradlab.jaxprs import hoist
from gradlab.types import Loss, Optimizer, Params, PyTree, ScalarFn

# Steps at a time where several processes work together.
TOGETHER = 100
RUNNING, CONVERGED, DIVERGED = range(3)


class Carry(NamedTuple):
    """What goes from step to step.

    Attributes:
        params: of the next step.
        previous: of the step before, where the loss was still finite.
        state: the optimizer's.
        status: an integer of shape (): `RUNNING`, or `CONVERGED` or `DIVERGED` (the loss or the gradient's norm is not
            finite), which leave params where they were.
    """

    params: Params
    previous: Params
    state: PyTree
    status: jax.Array


class Draw(NamedTuple):
    """Which batches some steps see: numbers of examples in their order, and where those of the first step begin."""

    order: jax.Array
    offset: int | jax.Array


@dataclass(frozen=True)
class Shape:
    """What is fixed when a program is compiled.

    Attributes:
        capacity: the most steps of one call.
        batch_size: None for whole batches.
        fresh: each call has data of its own, so that nothing of the step before can be used again.
    """

    capacity: int
    batch_size: int | None = None
    fresh: bool = False


@dataclass(eq=False)
class Program:
    """A compiled `(carry, data, draw, limit, tol) ↦ (carry, losses, norms, done)`, and how long a step of it takes.

    `limit` and `tol` are numbers of the call, so one program serves any number of steps up to its capacity; the carry
    is donated. `done` of the entries of losses and norms, each of shape `[capacity]`, are filled.
    """

    compiled: Any
    constants: list[Any]
    seconds: float | None = field(default=None)

    def __call__(self, *args: Any) -> tuple[Carry, jax.Array, jax.Array, jax.Array]:
        return self.compiled(self.constants, *args)

    def steps_in(self, seconds: float) -> int:
        """How many steps fit into a time; one, as long as none has been timed."""
        if jax.process_count() > 1:  # all processes must take the same number, and each has a clock of its own
            return TOGETHER
        return 1 if self.seconds is None else max(1, int(seconds / self.seconds))


SETTINGS = (
    "enable_x64",
    "default_matmul_precision",
    "default_prng_impl",
    "numpy_dtype_promotion",
    "debug_nans",
    "disable_jit",
)
# By loss, and gone with it: nothing that is kept here refers to the function itself.
_KEPT: weakref.WeakKeyDictionary[Any, dict[Hashable, Program]] = weakref.WeakKeyDictionary()


def start(known: Known, params: Params, where: Sharding | None) -> Carry:
    """The carry of the first step, in buffers of its own."""
    if where is not None and len(where.device_set) > 1:
        # Run operator by operator, the optimizer puts its state where the params are; compiled, it would not.
        params = devices.settled(params, where)
        carry = _first(known.optimizer, params)
        return devices.copied(devices.settled(carry, where))
    return _started(known, params)


@partial(jax.jit, static_argnums=0)
def _started(known: Known, params: Params) -> Carry:
    return jax.tree.map(jnp.copy, _first(known.optimizer, params))


def _first(optimizer: Optimizer, params: Params) -> Carry:
    params = jax.tree.map(strong, params)
    state = jax.tree.map(strong, optimizer.init(params))
    return Carry(params, params, state, jnp.int32(RUNNING))


def program(loss: Loss, known: Known, shape: Shape, *args: Any) -> Program:
    """The program for arguments of these shapes and devicess: compiled, or as it was kept from an earlier call.

    Args:
        loss, known: of the descent. As with `jax.jit`, what the loss closes over is read once.
        shape: what is fixed.
        args: `(carry, data, draw, limit, tol)`.
    """
    key = (known, shape, _signature(args), _settings())
    try:
        kept = _KEPT.setdefault(loss, {})
    except TypeError:  # a callable that cannot be hashed, or not referred to weakly
        kept = {}
    if key not in kept:
        kept[key] = _compile(loss, known.optimizer, shape, args)
    return kept[key]


def _signature(args: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(args)
    kind = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding) if isinstance(leaf, jax.Array) else type(leaf)
    return structure, tuple(map(kind, leaves))


def _settings() -> Hashable:
    """What a trace hangs on beside its arguments."""
    return tuple(getattr(jax.config, f"jax_{name}", None) for name in SETTINGS)


def _compile(loss: Loss, optimizer: Optimizer, shape: Shape, args: Any) -> Program:
    carry, data, *_ = args
    batch = example(data, shape.batch_size)
    require_loss(loss, carry.params, batch)
    pure, constants = hoist(loss, carry.params, *(() if data is None else (batch,)))
    if inputs.is_traced(constants):
        raise ArgumentError(
            "descend runs on the host and cannot be traced, but the loss closes over a traced value. Inside jit, vmap "
            "or grad, take gradlab.descent_loop."
        )
    whole = devices.whole(carry)
    constants = devices.settled(constants, whole)
    # Without constants the loss itself is compiled: its program is the same, with its names.
    run = lambda constants, *args: _steps(partial(pure, constants) if constants else loss, optimizer, shape, *args)
    # What comes out of one call goes into the next: it stays where it is.
    placed = jax.tree.map(lambda leaf: leaf.sharding, carry)
    jitted = jax.jit(run, donate_argnums=1, out_shardings=(placed, whole, whole, whole))
    return Program(jitted.lower(constants, *args).compile(), constants)


def _steps(
    loss: Loss, optimizer: Optimizer, shape: Shape, carry: Carry, data: PyTree, draw: Draw | None, limit: Any, tol: Any
) -> tuple[Carry, jax.Array, jax.Array, jax.Array]:
    """Up to `limit` steps, none after the first one that converges or diverges."""
    kept = shape.batch_size is None and not shape.fresh

    def on_step(i: Any) -> ScalarFn:
        if draw is None or shape.batch_size is None:
            return batches.on_batch(loss, data, None)
        at = draw.offset + i * shape.batch_size
        return batches.on_batch(loss, data, jax.lax.dynamic_slice_in_dim(draw.order, at, shape.batch_size))

    kinds = jax.eval_shape(lambda c: evaluate(on_step(0), c.params, c.state, kept=kept), carry)

    def go_on(loop: Any) -> jax.Array:
        i, carry, _ = loop
        return (i < limit) & (carry.status == RUNNING)

    def step(loop: Any) -> Any:
        i, carry, history = loop
        carry, seen = _step(on_step(i), optimizer, carry, tol, kept=kept)
        write = lambda buffer, one: jax.lax.dynamic_update_index_in_dim(buffer, one, i, 0)
        return i + 1, carry, tuple(map(write, history, seen))

    empty = tuple(jnp.full(shape.capacity, jnp.nan, kind.dtype) for kind in (kinds.loss, kinds.norm))
    done, carry, (losses, norms) = jax.lax.while_loop(go_on, step, (jnp.int32(0), carry, empty))
    return carry, losses, norms, done


def _step(
    value: ScalarFn, optimizer: Optimizer, carry: Carry, tol: Any, *, kept: bool
) -> tuple[Carry, tuple[jax.Array, jax.Array]]:
    """One step, which changes nothing but the status where it is the last one."""
    found = evaluate(value, carry.params, carry.state, kept=kept)
    finite = jnp.isfinite(found.loss) & jnp.isfinite(found.norm)
    status = jnp.where(finite, jnp.where(found.norm <= tol, CONVERGED, RUNNING), DIVERGED)
    params, state = moved(optimizer, value, carry.params, carry.state, found)
    keep = partial(jax.tree.map, lambda new, old: jnp.where(status == RUNNING, new, old))
    previous = keep(carry.params, carry.previous)
    return Carry(keep(params, carry.params), previous, keep(state, carry.state), status), (found.loss, found.norm)

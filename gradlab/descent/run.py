"""`descend`: compiled steps in stretches, with the host in between to watch, to save and to stop."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike

import jax
import numpy as np
import optax

from gradlab import inputs
from gradlab.descent import devices
from gradlab.descent.checkpoints import Checkpoints, mark
from gradlab.descent.feeding import CAPACITY, Arrays, Feed, feed, is_stream
from gradlab.descent.optimizers import Known
from gradlab.descent.programs import DIVERGED, RUNNING, Carry, program, start
from gradlab.descent.requirements import all_finite, require_finite, require_options
from gradlab.descent.result import Descent, Ending, concluded
from gradlab.descent.watching import bar, interruption
from gradlab.errors import ArgumentError
from gradlab.types import Loss, Optimizer, Params, PyTree

# How long the device works before the host looks: often enough for a hand on Ctrl-C, rarely enough to cost nothing.
STRETCH_SECONDS = 0.25
SGD = optax.sgd(1e-2)


@dataclass(frozen=True, eq=False)
class Job:
    """A descent: what stays the same from step to step."""

    loss: Loss
    known: Known
    feed: Feed
    tol: float | None
    checkpoints: Checkpoints | None
    progress: bool


@dataclass(frozen=True, eq=False)
class Position:
    """Where a descent is: what goes into its next step, and the history of those before.

    Attributes:
        carry: on the device.
        parts: losses and gradient norms, in pieces that follow one another.
        status: of the carry, on the host.
        starved: whether the data have come to an end.
    """

    carry: Carry
    parts: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    status: int = RUNNING
    starved: bool = False

    @cached_property
    def step(self) -> int:
        return sum(len(losses) for losses, _ in self.parts)

    @property
    def goes_on(self) -> bool:
        return self.status == RUNNING and not self.starved

    @property
    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """Losses and gradient norms, each of shape `[step]`."""
        if not self.parts:
            return np.empty(0, np.float32), np.empty(0, np.float32)
        losses, norms = zip(*self.parts, strict=True)
        return np.concatenate(losses), np.concatenate(norms)


def descend(
    loss: Loss,
    params: Params,
    *,
    data: PyTree = None,
    optimizer: Optimizer = SGD,
    steps: int = 1000,
    batch_size: int | None = None,
    key: jax.Array | None = None,
    tol: float | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
) -> Descent:
    """Gradient descent: θ ← θ + optimizer(∇loss(θ)), compiled, watched and stopped where it should.

    The steps run in stretches of one compiled program; a second call with the same loss and shapes compiles nothing.
    Arrays that the loss closes over are read once, as with `jax.jit`.

    Args:
        loss: `loss(params)`, or `loss(params, batch)` where there are data; one real number.
        params: a pytree of floating or complex arrays, which is left as it is; arrays that are placed stay placed.
        data: a pytree of arrays, or an iterator of batches, of which each step takes one.
        optimizer: any of optax's, those that search along a line included; `optax.sgd(1e-2)` where none is given.
        steps: at most so many.
        batch_size: of arrays, so many examples (entries of the leading axes) a step: each once an epoch, in a new order
            each epoch, none left out. All of them for None.
        key: the random key that orders them; `jax.random.key(0)` where there is none.
        tol: stop at the first step whose gradient has a norm of at most this, in units of the loss over the params.
        checkpoint_dir: a folder to save to, and to go on from: the same call, made again after whatever ended the first
            one, ends with the same bits as if it had not been ended. Needs the extra `checkpoint`.
        checkpoint_every: save after every so many steps, and at the end; a tenth of all steps where it is not given.
        progress: show a bar with the loss and the gradient's norm on stderr.

    Returns:
        A `Descent`. Its run stops early where it converges, where a loss, gradient or update is not finite, where the
        data end, and on Ctrl-C, which is no error (a second Ctrl-C is).

    Raises:
        ArgumentError, OptionError: a call or an option that makes no sense, by name.
        NotScalarError: the loss is not one real number.
        NotDifferentiableError, EmptyInputError: params that cannot move.
        ShapeError: arrays of data of unequal length.
        NonFiniteError: NaN or infinite params, NaN in the data; it says in which leaf.
        CheckpointError: the folder cannot be used, or belongs to another run.
        MissingExtraError: checkpoint_dir without orbax.
        All before anything is computed.

    Source: Cauchy, Méthode générale pour la résolution des systèmes d'équations simultanées (1847); equation 4.1.

    >>> result = descend(lambda x: (x - 3.0) ** 2, 0.0, optimizer=optax.sgd(0.25), tol=1e-3)
    >>> result
    Descent(converged, steps=14, loss=1.341e-07)
    >>> round(float(result.params), 3)
    3.0
    """
    inputs.require_function(loss, "descend")
    require_options(optimizer, steps, tol, checkpoint_dir, checkpoint_every)
    inputs.require_differentiable(params, "params")
    _require_values(params, data)
    source, where = feed(params, data, batch_size, key)
    require_finite(params, source.data if isinstance(source, Arrays) else None)
    known = Known(optimizer)
    carry = start(known, params, where)
    saved = None
    if checkpoint_dir is not None:
        saved = Checkpoints(checkpoint_dir, checkpoint_every or max(1, steps // 10), mark(optimizer, source, carry))
    job = Job(loss, known, source, tol, saved, progress)
    return _descend(job, _beginning(job, carry, steps), steps)


def _require_values(params: Params, data: PyTree) -> None:
    arrays = params if is_stream(data) else (params, data)
    if inputs.is_traced(arrays):
        raise ArgumentError(
            "descend runs on the host and cannot be traced, but params or data are. Inside jit, vmap or grad, take "
            "gradlab.descent_loop."
        )


def _beginning(job: Job, carry: Carry, target: int) -> Position:
    """Where the newest checkpoint is, or the start."""
    found = job.checkpoints.newest(carry, target) if job.checkpoints else None
    if found is None:
        return Position(carry)
    job.feed.skip(len(found.losses))
    return Position(found.carry, ((found.losses, found.norms),), int(found.carry.status))


def _descend(job: Job, position: Position, target: int) -> Descent:
    """Go on to a number of steps, or as far as it goes."""
    with interruption() as asked, bar(job.progress, position.step, target) as show:
        while position.goes_on and position.step < target and not asked():
            position = _stretch(job, position, target - position.step)
            show(position.step, position.parts)
            if job.checkpoints and job.checkpoints.due(position.step):
                job.checkpoints.save(position.carry, *position.history)
        if job.checkpoints:
            job.checkpoints.save(position.carry, *position.history)
        # A last update that overflows has no step after it that would see that.
        overflows = position.status == RUNNING and not all_finite(position.carry.params)
        status = DIVERGED if overflows else position.status
        ending = Ending(status, target, job.tol, interrupted=asked(), starved=position.starved)
    return concluded(position.carry, *position.history, ending, lambda steps: _resumed(job, position, steps))


def _resumed(job: Job, position: Position, steps: int) -> Descent:
    inputs.require_count(steps, "steps")
    # The copy is given to the device to be overwritten; the result that is resumed stays.
    return _descend(job, replace(position, carry=devices.copied(position.carry)), position.step + steps)


def _stretch(job: Job, position: Position, most: int) -> Position:
    """Steps of about `STRETCH_SECONDS`, no more than `most`, and none past the next checkpoint."""
    if job.checkpoints:
        most = min(most, job.checkpoints.until(position.step))
    tol = -1.0 if job.tol is None else float(job.tol)
    carry, calls, sent, began = position.carry, [], 0, 0.0
    for data, draw in job.feed.calls(position.step):
        run = program(job.loss, job.known, job.feed.shape, carry, data, draw, 1, tol)
        began = began or time.perf_counter()
        wanted = min(most, run.steps_in(STRETCH_SECONDS), CAPACITY)
        count = min(max(wanted - sent, 1), job.feed.shape.capacity)
        carry, *seen = run(carry, data, draw, count, tol)
        calls.append(seen)
        sent += count
        if sent >= wanted:
            break
    else:
        position = replace(position, starved=True)
    if not calls:
        return position
    status, history = jax.device_get((carry.status, calls))
    parts = tuple((losses[:done], norms[:done]) for losses, norms, done in history)
    after = Position(carry, position.parts + parts, int(status), position.starved)
    run.seconds = (time.perf_counter() - began) / max(1, after.step - position.step)
    return after

"""What a descent gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from gradlab.descent.programs import CONVERGED, DIVERGED, Carry
from gradlab.errors import OptionError
from gradlab.types import Params, PyTree

Status = Literal["converged", "max_steps", "diverged", "interrupted"]


@dataclass(frozen=True, eq=False)
class Descent:
    """Where a descent got to, and what it saw on the way.

    Attributes:
        params: of the last step; where it diverged, the last ones with a finite loss.
        state: the optimizer's state there.
        losses, gradient_norms: one number a step, shape `[steps]`: at the params that the step started from.
        steps: how many there were. The last one of a run that converged or diverged moved nothing.
        status: `converged` (a gradient norm of at most tol), `max_steps`, `diverged` (a loss, gradient or update that
            is not finite) or `interrupted`.
        message: the same in a sentence, with what to do next.
    """

    params: Params
    state: PyTree
    losses: np.ndarray
    gradient_norms: np.ndarray
    steps: int
    status: Status
    message: str
    _resume: Callable[[int], "Descent"] = field(repr=False)

    def resume(self, steps: int) -> "Descent":
        """The same descent, `steps` further: bit for bit what an unbroken run would have given.

        Args:
            steps: how many more.

        Returns:
            A result of all steps, old and new; this one stays as it is. A run that has converged is returned itself.

        Raises:
            OptionError: steps is no positive integer, or the run has diverged.
        """
        return self._resume(steps)

    def plot(self, ax: Any = None) -> Any:
        """Loss and gradient norm over the steps, as matplotlib axes."""
        from gradlab import plots

        return plots.descent(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """The history and how it ended, as JSON scalars, lists and dicts; params and state are left out."""
        return {
            "status": self.status,
            "message": self.message,
            "steps": self.steps,
            "losses": self.losses.tolist(),
            "gradient_norms": self.gradient_norms.tolist(),
        }

    def __str__(self) -> str:
        return f"{self.status} after {self.steps} steps: {self.message}"

    def __repr__(self) -> str:
        last = f", loss={self.losses[-1]:.4g}" if self.steps else ""
        return f"Descent({self.status}, steps={self.steps}{last})"

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.status)}</b> after {self.steps} steps: {escape(self.message)}</p>"


@dataclass(frozen=True)
class Ending:
    """What a descent was asked for, and what ended it beside its own status.

    Attributes:
        status: `RUNNING`, `CONVERGED` or `DIVERGED`.
        target: the number of steps.
        tol: None for all of them.
        interrupted: by Ctrl-C.
        starved: the data came to an end.
    """

    status: int
    target: int
    tol: float | None
    interrupted: bool
    starved: bool


def concluded(
    carry: Carry, losses: np.ndarray, norms: np.ndarray, ending: Ending, resume: Callable[[int], Descent]
) -> Descent:
    """The result of a descent that has ended.

    Args:
        carry: after its last step.
        losses, norms: its history.
        ending: what it was asked for.
        resume: what goes on from there, where that has a meaning.
    """
    steps = len(losses)
    params = carry.previous if ending.status == DIVERGED else carry.params
    make = lambda status, message, resume: Descent(params, carry.state, losses, norms, steps, status, message, resume)
    if ending.status == CONVERGED:
        message = f"the gradient's norm fell to {norms[-1]:.3g}, which is at most tol={ending.tol:g}."
        done: Descent = make("converged", message, lambda steps: done)
        return done
    if ending.status == DIVERGED:
        message = _divergence(losses, norms)
        return make("diverged", message, lambda steps: _refused(message))
    if ending.interrupted and steps < ending.target:
        return make(
            "interrupted", f"Ctrl-C before step {steps + 1} of {ending.target}; .resume(steps) goes on.", resume
        )
    told = f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}, " if steps else "no step was asked for, "
    if ending.starved and steps < ending.target:
        return make("max_steps", f"{told}and the data ended before step {steps + 1} of {ending.target}.", resume)
    far = f"the gradient's norm is {norms[-1]:.3g}" if steps else "nothing was computed"
    return make("max_steps", f"{told}{far}{'' if ending.tol is None else f', above tol={ending.tol:g}'}.", resume)


def _divergence(losses: np.ndarray, norms: np.ndarray) -> str:
    """What was not finite, where, and what to try."""
    steps, loss = len(losses), losses[-1]
    blame = "gradlab.graph(loss, params, …).blame() names the operator and the line"
    if not np.isfinite(loss):
        what = f"the loss of step {steps} is {loss:g}"
    elif not np.isfinite(norms[-1]):
        what = f"the gradient of step {steps} is not finite, where the loss is {loss:.4g}"
    else:
        what = f"the update of step {steps} is not finite, where the loss is {loss:.4g}"
    if steps == 1:
        return f"{what}, at the very start; {blame}."
    return (
        f"{what}, after {losses[-2]:.4g} in the step before, whose params are kept. Try a smaller learning rate, or "
        f"optax.clip_by_global_norm(1.0) before the optimizer; {blame} where a NaN or an infinity is born."
    )


def _refused(message: str) -> Descent:
    raise OptionError(
        f"This descent diverged, and would again: {message} Start another one: gradlab.descend(loss, result.params, …)."
    )

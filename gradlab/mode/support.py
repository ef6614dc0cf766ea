"""Which differentiation rules a function has, found by tracing and never by running."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradlab import inputs
from gradlab.errors import UnsupportedModeError, first_sentence
from gradlab.jaxprs import lacks_forward_rule, trace
from gradlab.types import PyTree

Mode = TypeVar("Mode", bound=str)
Unary = Callable[[PyTree], Any]

NO_FORWARD_RULE = "it calls a custom_vjp function, whose rule serves reverse mode only"


def obstacle(compute: Callable[..., Any], *args: PyTree) -> str | None:
    """Why `compute` cannot be traced at these arguments, in JAX's words, or None when it can.

    A `while_loop` has no reverse mode and a `custom_vjp` no forward mode; JAX says so while tracing, so nothing runs
    here. Call it only on functions whose undifferentiated part is known to trace: what is caught is then the rule's.

    Args:
        compute: a function that takes a derivative.
        args: its arguments, or their shapes.

    Returns:
        The first sentence of the error, or None.

    >>> import jax
    >>> loop = lambda x: jax.lax.while_loop(lambda c: c < 3.0, lambda c: c * x, x)
    >>> obstacle(jax.grad(loop), 1.5)[:34], obstacle(jax.jacfwd(loop), 1.5)
    ('Reverse-mode differentiation does ', None)
    """
    try:
        if lacks_forward_rule(trace(compute, *args)):
            return NO_FORWARD_RULE
    except Exception as error:  # JAX's class for a missing rule differs by rule: TypeError, ValueError, KeyError, …
        return first_sentence(error)
    return None


def first_supported(candidates: Sequence[tuple[Mode, Callable[[PyTree], Any]]], x: PyTree, of: str) -> Mode:
    """The first of the candidate modes that can run at x.

    Args:
        candidates: pairs of a mode and the function that computes it, the preferred one first.
        x: the point, or its shapes.
        of: the quantity, for the error.

    Raises:
        UnsupportedModeError: none of them can; the text has every reason.
    """
    reasons = []
    for mode, compute in candidates:
        reason = obstacle(compute, x)
        if reason is None:
            return mode
        reasons.append(f"{mode}: {reason}.")
    raise UnsupportedModeError(f"No mode of {of} can run for this function. " + " ".join(reasons))


def explained(
    compute: Callable[[PyTree], Any],
    x: PyTree,
    mode: str,
    of: str,
    others: Callable[[], Sequence[tuple[str, Callable[[PyTree], Any]]]],
    *,
    within: Callable[[PyTree], Any] | None = None,
    pushes: bool = False,
) -> Any:
    """`compute(x)`; when the function lacks the rule that the mode needs, the error says so and names modes that run.

    The check is made only after a failure, so a call that succeeds pays nothing for it; but a single push forward that
    is being traced fails only later, so there it is made first.

    Args:
        compute: the derivative in this mode.
        x: the point.
        mode, of: their names, for the error.
        others: makes the other modes, as for `first_supported`.
        within: a derivative that this one differentiates; what it cannot do is told first, since JAX's words for a
            derivative of a derivative may be about neither.
        pushes: the derivative pushes single tangents forward.

    Raises:
        UnsupportedModeError: the derivative cannot even be traced, or not be lowered.
    """

    def refusal(reason: str) -> UnsupportedModeError:
        runs = [name for name, other in others() if name != mode and obstacle(other, x) is None]
        advice = f"These modes can run here: {', '.join(runs)}." if runs else "No other mode can run here either."
        first = obstacle(within, x) if within else None
        return UnsupportedModeError(f"{of} cannot use mode {mode!r} for this function: {first or reason}. {advice}")

    if pushes and inputs.is_traced(x):
        reason = obstacle(compute, x)
        if reason is not None:
            raise refusal(reason)
    try:
        return compute(x)
    except (TypeError, ValueError, KeyError, NotImplementedError) as error:
        reason = obstacle(compute, x)
        if reason is None or isinstance(error, UnsupportedModeError):
            raise
        raise refusal(reason) from error

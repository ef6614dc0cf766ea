"""The host between two stretches: a bar to look at, and a Ctrl-C that waits for the stretch to end."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.progress import Progress

Parts = Sequence[tuple[np.ndarray, np.ndarray]]
Show = Callable[[int, Parts], None]


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the first one is remembered, so that no step is lost; a second one does not wait.

    Other threads than the main one cannot be interrupted, and a process that ignores the signal goes on ignoring it.
    """
    asked: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not main or before in (signal.SIG_IGN, None):
        yield lambda: False
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def progress(*, transient: bool = False) -> "Progress":
    """What every bar shows, on stderr: how far, how long, and a line of text; a transient one leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*parts, console=Console(stderr=True), transient=transient)


@contextmanager
def bar(wanted: bool, began: int, target: int) -> Iterator[Show]:
    """A bar on stderr with the loss and the gradient's norm, or nothing."""
    if not wanted:
        yield lambda step, parts: None
        return
    with progress() as shown:
        task = shown.add_task("compiling", total=target, completed=began)

        def show(step: int, parts: Parts) -> None:
            losses, norms = parts[-1] if parts else (np.empty(0), np.empty(0))
            told = f"loss {losses[-1]:.4g}, gradient {norms[-1]:.3g}" if len(losses) else ""
            shown.update(task, completed=step, description=told)

        yield show

"""Several processes on this machine that work together: started together, ended together."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Literal, get_args

from gradlab.errors import DistributedError, OptionError, nearest
from gradlab.inputs import require_count

Platform = Literal["cpu", "gpu"]

# What a process is told, and reads when it joins.
COORDINATOR, PROCESSES, PROCESS = "GRADLAB_COORDINATOR", "GRADLAB_PROCESSES", "GRADLAB_PROCESS"
LOCAL_DEVICES, LAUNCHER, FAILURES = "GRADLAB_LOCAL_DEVICES", "GRADLAB_LAUNCHER", "GRADLAB_FAILURES"

# How a process ends after an error that nobody caught.
FAILED = 1

# Seconds between the request to end and the end.
GRACE = 3.0
# Seconds in which the process that was lost first may still be seen to have ended.
MOMENT = 2.0


def launch(
    command: Sequence[str],
    processes: int,
    *,
    devices: int = 1,
    platform: Platform = "cpu",
    timeout: float | None = None,
) -> None:
    """Run a program in several processes on this machine, and end all of them as soon as one fails.

    The program calls `gradlab.distributed.start()`, which finds its place in the environment. Output is not captured.
    However this call ends, by an error, Ctrl-C or a kill, no process that has called `start` outlives it.

    Args:
        command: the program and its arguments, such as `[sys.executable, "train.py"]`.
        processes: how many.
        devices: of each: so many virtual ones with `"cpu"`, so many GPUs of its own with `"gpu"`.
        platform: what JAX runs on.
        timeout: seconds for the whole run; None for no limit.

    Raises:
        OptionError: an option outside its range, or a command that is none.
        DistributedError: a process failed, or the time was up; the text names the first and how it ended.

    Source: the documentation of `jax.distributed`; `torchrun` and `mpirun` do this for other runtimes.

    >>> import sys
    >>> launch([sys.executable, "-c", "raise SystemExit(3)"], 1)
    Traceback (most recent call last):
    gradlab.errors.DistributedError: Process 0 of 1 ended with exit code 3...
    """
    require_count(processes, "processes")
    require_count(devices, "devices")
    if timeout is not None and not timeout > 0:
        raise OptionError(f"timeout must be a positive number of seconds or None, but got {timeout!r}.")
    if platform not in get_args(Platform):
        raise OptionError(
            f"platform must be 'cpu' or 'gpu', but got {platform!r}.{nearest(platform, get_args(Platform))}"
        )
    if isinstance(command, str) or not command:
        raise OptionError(f"command must be a list of a program and its arguments, but got {command!r:.60}.")
    with _running(command, processes, devices, platform) as (children, failures):
        _await(children, failures, timeout)


@contextmanager
def _running(
    command: Sequence[str], processes: int, devices: int, platform: Platform
) -> Iterator[tuple[list[subprocess.Popen], int]]:
    """The processes, which have ended when the scope does, and the pipe in which those that fail say so."""
    ours, theirs = os.pipe()
    failures, failing = os.pipe()
    os.set_blocking(failures, False)
    children: list[subprocess.Popen] = []
    try:
        address = f"127.0.0.1:{_free_port()}"
        for index in range(processes):
            place = {COORDINATOR: address, PROCESSES: str(processes), PROCESS: str(index)}
            pipes = {LAUNCHER: str(ours), FAILURES: str(failing)}
            environment = {**os.environ, **_devices(index, devices, platform), **place, **pipes}
            # A session of its own, so that what it starts itself can be ended with it.
            child = subprocess.Popen(list(command), env=environment, pass_fds=[ours, failing], start_new_session=True)
            children.append(child)
        yield children, failures
    except OSError as error:
        raise DistributedError(f"The program {command[0]!r} cannot be run: {error}. Give its path.") from error
    finally:
        _end(children)
        for end in (ours, theirs, failures, failing):
            os.close(end)


def _devices(index: int, devices: int, platform: Platform) -> dict[str, str]:
    """What gives a process its devices."""
    if platform == "gpu":
        own = range(index * devices, (index + 1) * devices)
        return {LOCAL_DEVICES: ",".join(map(str, own))}
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in f]
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "XLA_FLAGS": " ".join(flags)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await(children: list[subprocess.Popen], failures: int, timeout: float | None) -> None:
    """Return when all have ended well; raise as soon as one has not, or the time is up."""
    ended: SimpleQueue[tuple[int, int]] = SimpleQueue()

    def wait(index: int, child: subprocess.Popen) -> None:
        ended.put((index, child.wait()))

    for numbered in enumerate(children):
        threading.Thread(target=wait, args=numbered, daemon=True).start()
    deadline = None if timeout is None else time.monotonic() + timeout
    for done in range(len(children)):
        try:
            index, code = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            raise DistributedError(
                f"After {timeout:g} seconds, {len(children) - done} of {len(children)} processes had not ended, and "
                "were. Raise timeout=, or look where they wait."
            ) from None
        if code != 0:
            index, code = _first(index, code, ended, len(children) - done - 1, failures)
            raise DistributedError(_obituary(index, code, len(children)))


def _first(index: int, code: int, ended: SimpleQueue[tuple[int, int]], running: int, failures: int) -> tuple[int, int]:
    """The process that was lost first, where its end was seen after that of another one.

    The memory of a killed process is given back before its end is told, and its connections are closed before that: in
    the meantime another one can fail for want of it. A signal comes from outside, so it is the cause; all but that of
    `abort`, by which a program ends itself. Of those that said that they fail, it is the first to say so.
    """
    if code < 0:
        return index, code
    until = time.monotonic() + MOMENT
    with suppress(Empty):
        for _ in range(running):
            other, its_code = ended.get(timeout=max(0.0, until - time.monotonic()))
            if its_code < 0 and its_code != -signal.SIGABRT:
                return other, its_code
    with suppress(BlockingIOError):
        told = [int(line) for line in os.read(failures, 4096).split()]
        if index in told:
            return told[0], FAILED
    return index, code


def _obituary(index: int, code: int, processes: int) -> str:
    how = f"with exit code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
    others = {1: "", 2: " The other one was ended."}.get(processes, f" The other {processes - 1} were ended.")
    return f"Process {index} of {processes} ended {how}.{others} See above for what it wrote."


def _end(children: list[subprocess.Popen]) -> None:
    """Ask all to end, and kill what is left after a grace: nothing stays, not even what they have started."""
    try:
        _signal(children, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        with suppress(subprocess.TimeoutExpired):
            for child in children:
                child.wait(max(0.0, deadline - time.monotonic()))
    finally:
        _signal(children, signal.SIGKILL)
        for child in children:
            child.wait()


def _signal(children: list[subprocess.Popen], number: signal.Signals) -> None:
    for child in children:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

"""One process among several: how it joins them, and how it ends with them."""

import atexit
import io
import os
import stat
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax

from gradlab.distributed.launching import COORDINATOR, FAILED, FAILURES, LAUNCHER, LOCAL_DEVICES, PROCESS, PROCESSES
from gradlab.errors import DistributedError, OptionError, first_sentence
from gradlab.inputs import require_count


@dataclass(frozen=True)
class _Place:
    """Where a process stands among the others."""

    coordinator: str
    processes: int
    index: int


def start(
    coordinator: str | None = None,
    *,
    processes: int | None = None,
    index: int | None = None,
    timeout: int = 30,
    shutdown_timeout: int = 60,
) -> None:
    """Join the other processes, so that `jax.devices()` is the devices of all; before anything else of JAX.

    Without arguments, the place is what `launch` says, and on a cluster (Slurm, Kubernetes, MPI, Cloud TPU) what JAX
    finds out by itself. A process that is lost takes the others with it: they end with an error, from JAX's runtime,
    once it has been silent for `timeout` seconds, or at once where they notice in a sum over all. Where the others are
    not there within five minutes, JAX's runtime aborts the process.

    Args:
        coordinator: `"host:port"` of the process of index 0, where all can reach it.
        processes: how many there are.
        index: which one this is, from 0.
        timeout: seconds.
        shutdown_timeout: seconds that a process at its end waits for the others to end, before it ends them.

    Raises:
        OptionError: arguments that do not fit together.
        DistributedError: called twice, or after JAX has touched a device; or there is no cluster to be found.

    Source: the documentation of `jax.distributed.initialize`.

    >>> start("localhost", processes=2, index=0)
    Traceback (most recent call last):
    gradlab.errors.OptionError: coordinator must be 'host:port', but got 'localhost'. ...
    """
    require_count(timeout, "timeout")
    require_count(shutdown_timeout, "shutdown_timeout")
    place = _place(coordinator, processes, index)
    if jax.distributed.is_initialized():
        raise DistributedError("gradlab.distributed.start was called before: a process joins once, at its beginning.")
    # Before the others are waited for: the launcher may be gone by now.
    _heed_launcher()
    failures = _inherited(FAILURES)
    local = os.environ.get(LOCAL_DEVICES)
    try:
        jax.distributed.initialize(
            coordinator_address=place.coordinator if place else None,
            num_processes=place.processes if place else None,
            process_id=place.index if place else None,
            local_device_ids=[int(i) for i in local.split(",")] if local else None,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=shutdown_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(_refusal(error, place)) from error
    # Last in, first out: before what JAX itself does at the end.
    atexit.register(_leave, failures, place.index if place else 0)


def _refusal(error: Exception, place: _Place | None) -> str:
    if "must be called before" in str(error):
        return "JAX has its devices already. Call gradlab.distributed.start() before anything that makes an array."
    if place is None:
        return (
            f"No cluster was found: {first_sentence(error)}. Pass coordinator='host:port', processes= and index=, or "
            "start the processes with gradlab.distributed.launch."
        )
    return (
        f"Process {place.index} of {place.processes} could not join at {place.coordinator}: {first_sentence(error)}. "
        "Process 0 must run there, and all of them must be started."
    )


def _place(coordinator: str | None, processes: int | None, index: int | None) -> _Place | None:
    """Where this process stands, by the arguments or the environment; None where JAX is to find out."""
    given = {"coordinator": coordinator, "processes": processes, "index": index}
    if all(value is None for value in given.values()):
        names = dict(zip(given, (COORDINATOR, PROCESSES, PROCESS), strict=True))
        given = {name: os.environ.get(variable) for name, variable in names.items()}
        if all(value is None for value in given.values()):
            return None
        for name in ("processes", "index"):
            given[name] = _whole(given[name], names[name])
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise OptionError(
            f"coordinator, processes and index go together, but {' and '.join(missing)} is missing. "
            "Give all three, or none on a cluster and under gradlab.distributed.launch."
        )
    return _checked(given["coordinator"], given["processes"], given["index"])


def _whole(text: Any, variable: str) -> int | None:
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    raise OptionError(f"The environment variable {variable} must be a whole number, but is {text!r}.")


def _checked(coordinator: Any, processes: Any, index: Any) -> _Place:
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(
            f"coordinator must be 'host:port', but got {coordinator!r}. Take the address of process 0 and any free "
            "port there, such as '10.0.0.1:1234'."
        )
    require_count(processes, "processes")
    require_count(index, "index", least=0)
    if index >= processes:
        raise OptionError(
            f"index must be less than processes, but got index={index}, processes={processes}. Count from 0."
        )
    return _Place(coordinator, processes, index)


def _leave(failures: int | None, index: int) -> None:
    """End at once after an error that nobody caught: JAX would wait for the others to end, and they for this one.

    The launcher is told before: the others fail for want of this process, and may be seen to end first.
    """
    if getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1"):
        sys.stdout.flush()
        sys.stderr.flush()
        if failures is not None:
            with suppress(OSError):  # it is gone
                os.write(failures, f"{index}\n".encode())
        os._exit(FAILED)


def _heed_launcher() -> None:
    """End when `launch` does, however it ends: the pipe that it holds is then closed."""
    pipe = _inherited(LAUNCHER)
    if pipe is None:
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Whole lines among those of the others, and none lost where JAX's runtime aborts the process.
        sys.stdout.reconfigure(line_buffering=True, write_through=False)

    def watch() -> None:
        os.read(pipe, 1)
        os.write(2, b"gradlab.distributed.launch has ended, and so does this process.\n")
        os._exit(1)

    threading.Thread(target=watch, name="gradlab-launcher", daemon=True).start()


def _inherited(variable: str) -> int | None:
    """The pipe of the launcher that the environment names, which no process started from here gets; None without."""
    pipe = int(os.environ.pop(variable, -1))
    # A program between the launcher and this one may have closed it.
    try:
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return None
    except OSError:
        return None
    os.set_inheritable(pipe, False)
    return pipe

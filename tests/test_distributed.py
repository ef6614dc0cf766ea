"""Several processes over loopback: the same numbers as one, and no process without the others."""

import os
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import distributed, errors
from gradlab.distributed import launching

DATA = np.linspace(0.0, 1.0, 24, dtype=np.float32).reshape(8, 3)

SUMS = """
import sys
from gradlab import distributed, errors
distributed.start()
try:
    distributed.start()
except errors.DistributedError as error:
    assert "before" in str(error)
import jax, jax.numpy as jnp, numpy as np, gradlab
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
data = np.linspace(0.0, 1.0, 24, dtype=np.float32).reshape(8, 3)
grid = distributed.mesh()
own = data[4 * jax.process_index():][:4]
whole = distributed.replicate(data, grid)
total = jax.jit(lambda x: jnp.stack([x.sum(), (x**2).sum(), x[1:].max(), x[:, 0] @ x[:, 1]]))
sums = [total(x) for x in (distributed.shard(data, grid), distributed.from_local(own, grid), whole)]
jac = gradlab.jacobian(lambda x: jnp.cumsum(jnp.sin(x)), mode="forward", mesh=grid)(data[:, 1])
assert not jac.is_fully_addressable
try:
    distributed.from_local(np.ones((2 + 2 * jax.process_index(), 3)), grid)
except errors.ShapeError as error:
    assert "[2], [4]" in str(error)
else:
    raise SystemExit("no error")
if jax.process_index() == 0:
    np.savez(sys.argv[1], jac=distributed.replicate(jac, distributed.mesh()), *sums)
else:
    distributed.replicate(jac, grid)
"""

# Process `argv[1]` is lost in the midst of sums over all.
LOST = """
import os, signal, sys
from gradlab import distributed
distributed.start(timeout=5)
import jax, jax.numpy as jnp, numpy as np
x = distributed.from_local(np.ones((2, 3)), distributed.mesh())
total = jax.jit(jnp.sum)
for step in range(10**9):
    assert float(total(x)) == 12.0
    if step == 3 and jax.process_index() == int(sys.argv[1]):
        if sys.argv[2] == "raise":
            raise ValueError("lost")
        os.kill(os.getpid(), signal.SIGKILL)
"""

# Processes that stay until they are ended.
STAY = """
import signal, sys
if sys.argv[1] == "joined":
    from gradlab import distributed
    distributed.start()
sys.stdout.write("up\\n")
sys.stdout.flush()
signal.pause()
"""


def python(source, *args):
    return [sys.executable, "-c", source, *map(str, args)]


def test_two_processes_of_two_devices_compute_what_one_device_does(tmp_path, same):
    distributed.launch(python(SUMS, tmp_path / "sums.npz"), 2, devices=2, timeout=300)
    found = np.load(tmp_path / "sums.npz")
    expected = np.array([DATA.sum(), (DATA**2).sum(), 1.0, DATA[:, 0] @ DATA[:, 1]], np.float32)
    for name in ("arr_0", "arr_1", "arr_2"):
        same(found[name], expected)
    same(found["jac"], np.asarray(jax.jacfwd(lambda x: jnp.cumsum(jnp.sin(x)))(DATA[:, 1])))


@pytest.mark.parametrize(
    ("index", "how", "text"),
    [
        (1, "kill", f"Process 1 of 2 ended by signal 9 ({signal.strsignal(9)}). The other one was ended."),
        (0, "raise", "Process 0 of 2 ended with exit code 1. The other one was ended."),
    ],
)
def test_the_launcher_names_the_process_that_was_lost(index, how, text):
    with pytest.raises(errors.DistributedError, match=re.escape(text)):
        distributed.launch(python(LOST, index, how), 2, timeout=300)


# Both say that they fail, process 0 first, and process 1 is seen to end first.
LATE = """
import os, time
index = os.environ["GRADLAB_PROCESS"]
time.sleep(int(index))
os.write(int(os.environ["GRADLAB_FAILURES"]), index.encode() + b"\\n")
time.sleep(60 * (index == "0"))
os._exit(1)
"""


def test_of_two_that_fail_the_first_to_say_so_is_named():
    with pytest.raises(errors.DistributedError, match="Process 0 of 2 ended with exit code 1"):
        distributed.launch(python(LATE), 2, timeout=300)


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_has_lost_another_ends_with_an_error_of_its_own(index):
    # No launcher watches these two.
    address = f"127.0.0.1:{launching._free_port()}"
    alike = {"JAX_PLATFORMS": "cpu", launching.COORDINATOR: address, launching.PROCESSES: "2"}
    both = [
        subprocess.Popen(
            python(LOST, index, "kill"),
            env={**os.environ, **alike, launching.PROCESS: str(i)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert both[index].returncode == -signal.SIGKILL
    assert both[1 - index].returncode not in (0, -signal.SIGKILL)
    assert re.search("another task died|Gloo all-reduce failed", said[1 - index])


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, "alone"), (signal.SIGINT, "joined"), (signal.SIGKILL, "joined")]
)
def test_no_process_outlives_its_launcher(number, kind):
    # With Python's own handler: in the background the signal is ignored, and children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    source = f"{heed}; from gradlab import distributed; distributed.launch({python(STAY, kind)!r}, 2)"
    with subprocess.Popen(python(source), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as launcher:
        try:
            assert [launcher.stdout.readline() for _ in range(2)] == ["up\n"] * 2
            launcher.send_signal(number)
            # The pipe ends once every process that could write to it has.
            assert launcher.communicate(timeout=60)[0] == ""
        finally:
            launcher.kill()
    assert launcher.returncode != 0


def test_a_run_that_takes_too_long_is_ended():
    with pytest.raises(errors.DistributedError, match=r"After 0\.5 seconds, 2 of 2 processes had not ended"):
        distributed.launch(python("import signal; signal.pause()"), 2, timeout=0.5)


def test_a_process_on_a_gpu_has_devices_of_its_own():
    assert [launching._devices(i, 2, "gpu")[launching.LOCAL_DEVICES] for i in range(3)] == ["0,1", "2,3", "4,5"]


WRONG = {
    "no port": (lambda: distributed.start("localhost", processes=2, index=0), "coordinator must be 'host:port'"),
    "port": (lambda: distributed.start("host:99999", processes=2, index=0), "coordinator must be 'host:port'"),
    "index": (lambda: distributed.start("host:1", processes=2, index=2), "index=2, processes=2. Count from 0"),
    "negative": (lambda: distributed.start("host:1", processes=2, index=-1), "index must be an integer"),
    "none": (lambda: distributed.start("host:1", processes=0, index=0), "processes must be an integer"),
    "missing": (lambda: distributed.start("host:1"), "processes and index is missing"),
    "timeout": (lambda: distributed.start("host:1", processes=2, index=0, timeout=0), "timeout must be"),
    "axes": (lambda: distributed.mesh(("data", 8)), "axes must map names to sizes"),
    "no axes": (lambda: distributed.mesh({}), "axes must map names to sizes"),
    "size": (lambda: distributed.mesh({"data": 0}), "axes['data'] must be an integer"),
    "no mesh": (lambda: distributed.shard(DATA, "data"), "gradlab.distributed.mesh() makes one"),
    "no command": (lambda: distributed.launch([], 2), "command must be a list"),
    "line": (lambda: distributed.launch("python train.py", 2), "command must be a list"),
    "processes": (lambda: distributed.launch(["true"], 0), "processes must be"),
    "devices": (lambda: distributed.launch(["true"], 1, devices=0), "devices must be"),
    "platform": (lambda: distributed.launch(["true"], 1, platform="gpus"), "Did you mean 'gpu'?"),
    "limit": (lambda: distributed.launch(["true"], 1, timeout=-1), "timeout must be a positive number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_refused(case):
    call, text = WRONG[case]
    with pytest.raises(errors.OptionError, match=re.escape(text)):
        call()


def test_what_the_environment_says_is_checked_alike(monkeypatch):
    monkeypatch.setenv(launching.COORDINATOR, "127.0.0.1:1")
    with pytest.raises(errors.OptionError, match="processes and index is missing"):
        distributed.start()
    monkeypatch.setenv(launching.PROCESSES, "two")
    with pytest.raises(errors.OptionError, match="GRADLAB_PROCESSES must be a whole number, but is 'two'"):
        distributed.start()


def test_joining_comes_before_the_first_device():
    assert jax.devices()
    with pytest.raises(errors.DistributedError, match="before anything that makes an array"):
        distributed.start("127.0.0.1:1", processes=1, index=0)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(errors.DistributedError, match="'no-such-program' cannot be run"):
        distributed.launch(["no-such-program"], 2)

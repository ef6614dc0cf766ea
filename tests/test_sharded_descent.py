"""A descent of two processes: lost and made again, it ends with the bits of one that was not."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gradlab import distributed
from gradlab.errors import DistributedError

ROOT = Path(__file__).parent.parent
JOB = """
import os, signal, sys
import jax, numpy as np, optax
import gradlab as gl

gl.distributed.start(timeout=20)
folder, out, lost = sys.argv[1:]
mesh = gl.distributed.mesh()
rows = np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32)[jax.process_index()]
start = gl.distributed.replicate({"w": np.ones(4, np.float32)}, mesh)
loss = lambda params, rows: jax.numpy.mean((jax.numpy.tanh(rows @ params["w"]) - rows[:, 0]) ** 2)
data = gl.distributed.from_local(rows, mesh)
options = {"optimizer": optax.adam(0.01), "checkpoint_dir": folder or None}
if lost and jax.process_index() == 1:
    gl.descend(loss, start, data=data, steps=40, **options)
    os.kill(os.getpid(), signal.SIGKILL)
result = gl.descend(loss, start, data=data, steps=40 if lost else 100, **options)
if lost:
    gl.descend(loss, start, data=data, steps=100, **options)
if jax.process_index() == 0:
    np.savez(out, w=np.asarray(result.params["w"]), losses=result.losses)
"""


@pytest.fixture(autouse=True)
def this_copy_of_gradlab(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def run(folder, out, lost=""):
    distributed.launch([sys.executable, "-c", JOB, str(folder), str(out), lost], 2, devices=2, timeout=300)


def test_the_pair_goes_on_after_one_of_it_was_lost(tmp_path):
    run("", tmp_path / "unbroken.npz")
    with pytest.raises(DistributedError, match=r"Process 1 of 2 ended by signal 9 .*The other one was ended"):
        run(tmp_path / "run", tmp_path / "none.npz", "lost")
    assert max(int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdigit()) == 40
    run(tmp_path / "run", tmp_path / "resumed.npz")
    unbroken, resumed = (np.load(tmp_path / f"{name}.npz") for name in ("unbroken", "resumed"))
    assert all(np.array_equal(unbroken[name], resumed[name]) for name in ("w", "losses"))

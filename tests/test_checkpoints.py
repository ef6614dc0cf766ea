"""A descent that was ended goes on where it was, to the same bits, or says why it does not."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradlab as gl
from gradlab.descent.optimizers import plain
from gradlab.errors import CheckpointError, MissingExtraError

ROOT = Path(__file__).parent.parent
X = jax.random.normal(jax.random.key(1), (50, 3))
START = {"w": jnp.zeros(3)}


def loss(params, batch):
    return jnp.mean((batch @ params["w"] - jnp.sin(batch[:, 0])) ** 2)


def run(folder=None, steps=60, **options):
    options = {"data": X, "batch_size": 8, "optimizer": optax.adam(0.05), "start": START} | options
    saved = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": 20}
    return gl.descend(loss, options.pop("start"), steps=steps, **options, **saved)


def bits(result):
    leaves = jax.tree.leaves((result.params, result.state, result.losses, result.gradient_norms))
    return [np.asarray(plain(leaf)).tobytes() for leaf in leaves]


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


OPTIMIZERS = {
    "adam": lambda: optax.adam(0.05),
    "lbfgs": lambda: optax.lbfgs(),
    "noisy": lambda: optax.noisy_sgd(0.05, key=jax.random.key(3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_goes_on_has_the_bits_of_one_that_was_not_ended(tmp_path, name):
    batch_size = None if name == "lbfgs" else 8
    whole = run(optimizer=OPTIMIZERS[name](), batch_size=batch_size)
    run(tmp_path / "run", steps=33, optimizer=OPTIMIZERS[name](), batch_size=batch_size)
    assert bits(run(tmp_path / "run", optimizer=OPTIMIZERS[name](), batch_size=batch_size)) == bits(whole)


def test_a_run_that_has_ended_is_given_back_and_the_last_few_checkpoints_are_kept(tmp_path):
    first = run(tmp_path, steps=90)
    assert steps_in(tmp_path) == [60, 80, 90]
    assert bits(run(tmp_path, steps=90)) == bits(first)


@pytest.mark.parametrize(
    ("options", "status"), [({"tol": 0.2}, "converged"), ({"optimizer": optax.sgd(1e20)}, "diverged")]
)
def test_how_a_run_ended_is_kept_too(tmp_path, options, status):
    first, second = run(tmp_path, **options), run(tmp_path, **options)
    assert first.status == second.status == status and bits(first) == bits(second)


def test_a_stream_goes_on_with_the_batches_that_were_not_seen(tmp_path):
    stream = lambda: (X[i : i + 5] for i in range(45))
    options = {"batch_size": None}
    whole = run(data=stream(), steps=40, **options)
    run(tmp_path, steps=17, data=stream(), **options)
    assert bits(run(tmp_path, steps=40, data=stream(), **options)) == bits(whole)


def test_resume_saves_as_well(tmp_path):
    result = run(tmp_path, steps=30).resume(30)
    assert steps_in(tmp_path)[-1] == 60 and bits(run(tmp_path)) == bits(result)


@pytest.mark.parametrize("how", ["truncated", "flipped", "removed"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, how):
    run(tmp_path, steps=50)
    files = [path for path in (tmp_path / "50").rglob("*") if path.is_file()]
    for path in files if how != "removed" else ():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else content)
    if how == "removed":
        shutil.rmtree(tmp_path / "50" / "arrays")
    with pytest.warns(UserWarning, match=r"the checkpoint of step 50 in .* is damaged .*Going on from step 40"):
        result = run(tmp_path)
    assert bits(result) == bits(run()) and steps_in(tmp_path)[-1] == 60


def test_numbers_that_are_not_those_that_were_written_are_seen(tmp_path):
    import orbax.checkpoint as ocp

    run(tmp_path, steps=20)
    run(tmp_path, steps=40)
    with ocp.CheckpointManager(tmp_path) as manager:
        found = manager.restore(
            40, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(), run=ocp.args.JsonRestore())
        )
        arrays = {**found["arrays"], "0": found["arrays"]["0"] + 1}
        manager.delete(40)
        items = {"arrays": ocp.args.StandardSave(arrays), "run": ocp.args.JsonSave(found["run"])}
        manager.save(40, args=ocp.args.Composite(**items))
    with pytest.warns(UserWarning, match="checksum"):
        assert bits(run(tmp_path)) == bits(run())


def test_no_checkpoint_that_is_whole_is_an_error_and_no_silent_start(tmp_path):
    run(tmp_path, steps=20)
    for path in (tmp_path / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="No other is left"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"start": {"w": jnp.zeros((3, 1))}}, r"its params\['w'\] is float32\[3\], but here it is float32\[3,1\]"),
        ({"start": {"v": jnp.zeros(3)}}, r"params\['v'\] is missing"),
        ({"optimizer": optax.sgd(0.05)}, r"optimizer is chain\(scale_by_adam.*but here it is chain\(identity"),
        ({"optimizer": optax.adam(0.1)}, r"step_size=-0.05.*step_size=-0.1"),
        ({"batch_size": 9}, "batch_size is 8, but here it is 9"),
        ({"data": X[:40]}, r"data is float32\[50,3\], but here it is float32\[40,3\]"),
        ({"key": jax.random.key(4)}, r"key is \[0, 0\], but here it is \[0, 4\]"),
        ({"steps": 10}, "more than the steps=10"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_by_name(tmp_path, options, text):
    run(tmp_path, steps=20)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=text):
        run(tmp_path, **options)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_found_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        run(tmp_path / "file" / "run")


def test_orbax_is_loaded_for_checkpoints_alone_and_named_where_it_is_missing(monkeypatch, tmp_path):
    code = "import sys, gradlab; gradlab.descend(lambda x: x**2, 1.0, steps=1); assert 'orbax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(MissingExtraError, match=r"gradlab-jax\[checkpoint\]"):
        run(tmp_path)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "killed.py"), str(tmp_path), "2", "0"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "killed 2 times" in done.stdout


@pytest.fixture(autouse=True)
def no_other_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield

"""Jacobians over a mesh: what one device can tell of them, and the rest on eight virtual ones."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

import gradlab as gl
from gradlab import distributed

F = jnp.sin
ONE = jax.devices()[:1]
ALONE = distributed.mesh(devices=ONE)
EXPLICIT = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,), devices=ONE)


def test_everything_holds_on_eight_virtual_devices():
    """The properties of tests/eight_devices.py, in a process of their own: this one has its devices already."""
    tests = Path(__file__).with_name("eight_devices.py")
    eight = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)],
        env={**os.environ, **eight},
        cwd=tests.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
def test_a_mesh_of_one_device_changes_nothing(mode, same):
    f = lambda p: {"y": jnp.outer(p["a"], p["b"]), "s": jnp.sum(p["a"]) ** 2}
    x = {"a": jnp.linspace(0.0, 1.0, 3), "b": jnp.linspace(1.0, 2.0, 2)}
    same(gl.jacobian(f, mode=mode, mesh=ALONE)(x), jax.jit(jax.jacfwd(f))(x))
    same(jax.jit(gl.jacobian(f, mode=mode, mesh=ALONE))(x), jax.jit(jax.jacfwd(f))(x))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mesh": 8}, "mesh must be a jax.sharding.Mesh or None, but got int: 8"),
        ({"mesh": ALONE.abstract_mesh}, "mesh must be a jax.sharding.Mesh"),
        ({"mesh": EXPLICIT}, "type Auto, but these are not: data"),
        ({"mesh": ALONE, "mode": "sparse"}, "mode='sparse'"),
        ({"mesh": ALONE, "mode": "waist"}, "mode='waist'"),
        ({"mesh": ALONE, "output": "bcoo"}, "output='bcoo'"),
        ({"mesh": ALONE, "chunk_size": 4}, "chunk_size=4"),
        ({"mesh": ALONE, "memory_limit": 100}, "memory_limit=100"),
    ],
)
def test_what_does_not_go_with_a_mesh_is_refused_at_once(options, text):
    with pytest.raises(gl.errors.OptionError) as caught:
        gl.jacobian(F, **options)
    assert text in str(caught.value)

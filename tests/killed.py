"""Kill a descent with SIGKILL at random moments until it is done, and compare with one that nobody touched.

Run: python tests/killed.py FOLDER KILLS SEED. It ends with an error where bits differ.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradlab.descent import descend
from gradlab.descent.checkpoints import orbax

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
STEPS = 200


def loss(params, batch):
    return jnp.mean((jnp.tanh(batch @ params["w"]) @ params["v"] - batch[:, 0]) ** 2)


def run(**options):
    """The whole job, and its bits."""
    params = {"w": jnp.eye(4), "v": jnp.ones(4)}
    optimizer = optax.chain(optax.add_noise(1e-3, 0.5, jax.random.key(3)), optax.adam(1e-2))
    result = descend(
        loss, params, data=X, optimizer=optimizer, steps=STEPS, batch_size=7, key=jax.random.key(5), **options
    )
    found = [result.losses, result.gradient_norms, *jax.tree.leaves(result.params)]
    return b"".join(np.asarray(leaf).tobytes() for leaf in found)


def apart(job):
    """Run a job in a process of its own, made before JAX has started anything, and return its number."""
    child = os.fork()
    if child == 0:
        try:
            job()
        finally:
            os._exit(0)
    return child


def killed(child, folder, draw):
    """Wait until the process begins to write, then a random while that ends within a write or between two, and kill it.

    Returns whether it was still there.
    """
    before = set(os.listdir(folder)) if folder.exists() else set()
    moment = None
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if moment is None and folder.exists() and set(os.listdir(folder)) - before:
            moment = time.monotonic() + draw.uniform(0.0, 0.5)
        if moment is not None and time.monotonic() >= moment:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)
    return False


def main(folder, kills, seed):
    orbax()  # loaded once, before the processes part
    draw, done = random.Random(seed), 0
    whole, resumed, checkpoints = (Path(folder, name) for name in ("whole.bin", "resumed.bin", "run"))
    os.waitpid(apart(lambda: whole.write_bytes(run())), 0)
    while done < kills:
        # Each series of kills begins anew, as often as it takes: a job that gets through is checked at once.
        job = lambda: resumed.write_bytes(run(checkpoint_dir=checkpoints, checkpoint_every=10))
        if killed(apart(job), checkpoints, draw):
            done += 1
            continue
        _compare(whole, resumed)
        shutil.rmtree(checkpoints)
    os.waitpid(apart(job), 0)
    _compare(whole, resumed)
    print(f"killed {done} times; every run that came to its end had the bits of the one that nobody touched")


def _compare(whole, resumed):
    assert whole.read_bytes() == resumed.read_bytes()
    resumed.unlink()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

"""One job on many devices and processes: data split over one axis of the mesh, params over the other.

Run: python scripts/train_sharded.py [--processes 2] [--devices 2] [--model 1] [--checkpoint-dir run]

It starts so many processes on this machine, with so many virtual devices each, that talk over loopback; on a cluster,
start it once a process with --joined. Placement follows the inputs: `descend` is called as on one device. With
--model k, the matrices of the network are split over k devices, and the data over the others. Killed and started
again with the same --checkpoint-dir, it goes on where it was.
"""

import argparse
import sys

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

import gradlab as gl
from gradlab.problems import digits

WIDTH = 256


def split_matrices(params: gl.types.Params, mesh: jax.sharding.Mesh) -> gl.types.Params:
    """The hidden layer by its columns and the last by its rows, so that its sum is the one thing to be exchanged."""
    hidden, last = params
    columns, rows, whole = PartitionSpec(None, "model"), PartitionSpec("model", None), PartitionSpec()
    specs = ({"w": columns, "b": PartitionSpec("model")}, {"w": rows, "b": whole})
    put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
    return jax.tree.map(put, (hidden, last), specs)


def work(options: argparse.Namespace) -> None:
    """What each process does; all of them do the same."""
    mesh = gl.distributed.mesh({"data": -1, "model": options.model})
    train, test = digits.split()
    rows = len(train.labels) // jax.device_count() * jax.device_count()
    mine = slice(jax.process_index(), rows, jax.process_count())  # what this process would read from its own disk
    data = gl.distributed.from_local(digits.Images(train.images[mine], train.labels[mine]), mesh)
    model = gl.models.mlp((64, WIDTH, 10))
    result = gl.descend(
        digits.cross_entropy(model),
        split_matrices(model.init(jax.random.key(1)), mesh),
        data=data,
        optimizer=optax.adam(1e-2),
        steps=options.steps,
        checkpoint_dir=options.checkpoint_dir,
        checkpoint_every=max(1, options.steps // 10) if options.checkpoint_dir else None,
    )
    right = digits.accuracy(model, result.params, gl.distributed.replicate(test, mesh))
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes, mesh {dict(mesh.shape)}: {result}")
        print(f"{right:.1%} of {len(test.labels)} images right; last loss {result.losses[-1]:.9g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="virtual devices of each process")
    parser.add_argument("--model", type=int, default=1, help="devices that share the params")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint-dir")
    parser.add_argument("--joined", action="store_true", help="be one of the processes")
    options = parser.parse_args()
    if options.joined:
        gl.distributed.start()
        work(options)
    else:
        command = [sys.executable, *sys.argv, "--joined"]
        gl.distributed.launch(command, options.processes, devices=options.devices)


if __name__ == "__main__":
    main()

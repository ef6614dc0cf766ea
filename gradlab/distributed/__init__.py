"""Many devices and many processes: the few lines that JAX's own runtime needs.

A mesh names the axes of a grid of devices, arrays are placed on it, and every compiled function follows its inputs: the
same program runs on one device and on a thousand. With several processes, each runs this same program and holds the
part of every array that its own devices have.

Source: Xu et al., GSPMD: general and scalable parallelization for ML computation graphs (2021).
"""

from gradlab.distributed.joining import start
from gradlab.distributed.launching import launch
from gradlab.distributed.placement import from_local, mesh, replicate, shard

__all__ = ["from_local", "launch", "mesh", "replicate", "shard", "start"]

"""What a mode would cost, predicted from its own program: time from what its kernels do, memory from what is alive.

Nothing runs and nothing is compiled, so it works under `jit`, where the functions of a derivative have no values yet.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model, CACM 52 (2009): a kernel
takes the longer of moving its bytes and doing its arithmetic.
"""

from dataclasses import dataclass

from gradlab.jaxprs import Kernel, Work


@dataclass(frozen=True)
class Rates:
    """What a device takes, in seconds.

    Attributes:
        call: to start a compiled program.
        kernel, inner: to start a kernel, and one inside a loop.
        step: to go once around a loop.
        byte, near: for a byte moved, and for one that a cache holds.
        cache: bytes that a cache holds.
        simple, slow, gathered: for a number made by an addition, by a function such as the sine, by indexing.
        product, convolution: for an operation of a matrix product, of a convolution.
        scatter, cumulate: for a number scattered, cumulated; sort: for a comparison; fft, factor: for an operation of a
            Fourier transform, of a factorization.
    """

    call: float
    kernel: float
    inner: float
    step: float
    byte: float
    near: float
    cache: float
    simple: float
    slow: float
    gathered: float
    product: float
    convolution: float
    scatter: float
    cumulate: float
    sort: float
    fft: float
    factor: float


# Set by hand, to the nearest simple number, from times of small programs of one kind of work on two shared cores; on
# derivatives the median misfit is a factor of two to three, and single ones are off by ten. No GPU or TPU was measured.
CPU = Rates(
    call=1e-5, kernel=5e-7, inner=3e-8, step=5e-8, byte=3e-11, near=1e-11, cache=1e6, simple=2e-11, slow=7e-10,
    gathered=1e-9, product=1.2e-11, convolution=1e-9, scatter=3e-9, cumulate=1e-8, sort=5e-9, fft=3e-10, factor=1e-10,
)  # fmt: skip


def seconds(work: Work, table: Rates) -> float:
    """The predicted time of one call of a program, in seconds.

    Args:
        work: what the program does.
        table: the rates of the device.

    >>> import jax
    >>> from gradlab.jaxprs import trace, work
    >>> small, large = (work(trace(lambda x: x + 1, jax.ShapeDtypeStruct((n,), "float32"))) for n in (10, 10**7))
    >>> seconds(small, CPU) < seconds(large, CPU)
    True
    """
    return table.call + sum(kernel.count * _kernel_seconds(kernel, table) for kernel in work.kernels)


def _kernel_seconds(kernel: Kernel, table: Rates) -> float:
    moved = kernel.read + kernel.written
    moving = moved * (table.near if moved <= table.cache else table.byte)
    numbers = kernel.simple * table.simple + kernel.slow * table.slow + kernel.gathered * table.gathered
    ending = 0.0 if kernel.kind in ("map", "reduce", "loop") else kernel.flops * getattr(table, kernel.kind)
    start = table.step if kernel.kind == "loop" else table.inner if kernel.inner else table.kernel
    return start + max(moving, numbers + ending)

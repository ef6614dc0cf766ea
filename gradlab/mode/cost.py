"""What a mode would cost, predicted from its own program: time from what its kernels do, memory from what is alive.

Nothing runs and nothing is compiled, so it works under `jit`, where the functions of a derivative have no values yet.

Source: Williams, Waterman and Patterson, Roofline: an insightful visual performance model, CACM 52 (2009): a kernel
takes the longer of moving its bytes and doing its arithmetic.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import jax

from gradlab.jaxprs import Kernel, Work


@dataclass(frozen=True)
class Rates:
    """What a device takes, in seconds.

    Attributes:
        call: to start a compiled program.
        kernel, inner: to start a kernel, and one inside a loop.
        step: to go once around a loop.
        small_inner, small_step: the same two of a loop that moves few bytes, which is one kernel on a CPU.
        fresh: for a byte of memory that a program takes for results and what is between.
        byte, near: for a byte moved, and for one that a cache holds.
        cache: bytes that a cache holds.
        simple, slow, gathered: for a number made by an addition, by a function such as the sine, by indexing.
        product, convolution: for an operation of a matrix product, of a convolution.
        gemm, row, tiny: for one more product of two matrices at one call of a library, for a row of the first, and
            for an operation of a product of tiny ones.
        scatter, cumulate: for a number scattered, cumulated; strided: besides, for one scattered a page from the one
            before; sort: for a comparison; fft, factor: for an operation of a Fourier transform, of a factorization.
    """

    call: float
    kernel: float
    inner: float
    step: float
    small_inner: float
    small_step: float
    fresh: float
    byte: float
    near: float
    cache: float
    simple: float
    slow: float
    gathered: float
    product: float
    gemm: float
    row: float
    tiny: float
    convolution: float
    scatter: float
    strided: float
    cumulate: float
    sort: float
    fft: float
    factor: float


# The CPU's are set by hand, to the nearest simple number, from times of small programs of one kind of work on two
# shared cores; on derivatives the median misfit is a factor of two to three, and single ones are off by ten. No GPU and
# no TPU was measured: `byte`, `product` and `cache` are from the data sheets of an H100 SXM (3.35 TB/s, 67 TFLOP/s in
# float32, 50 MB) and a TPU v4 (1.2 TB/s, 275 TFLOP/s in bfloat16, 128 MB); all else is a guess of the order of
# magnitude. `gradlab calibrate` measures all of them.
DEFAULTS: dict[str, Rates] = {
    "cpu": Rates(
        call=1e-5, kernel=5e-7, inner=1e-7, step=3e-7, small_inner=5e-9, small_step=8e-8, fresh=5e-11, byte=3e-11,
        near=1e-11, cache=1e6, simple=2e-11, slow=7e-10, gathered=5e-10, product=1.2e-11, gemm=3e-7, row=2e-8,
        tiny=6e-10, convolution=1e-9, scatter=3e-9, strided=1.5e-8, cumulate=1e-8, sort=5e-9, fft=6e-11, factor=1e-10,
    ),
    "gpu": Rates(
        call=1e-5, kernel=3e-6, inner=3e-6, step=1e-5, small_inner=3e-6, small_step=1e-5, fresh=1e-15, byte=3e-13,
        near=1e-13, cache=5e7, simple=3e-14, slow=3e-13, gathered=1e-12, product=1.5e-14, gemm=1e-9, row=1e-15,
        tiny=1e-13, convolution=3e-14, scatter=3e-12, strided=1e-15, cumulate=1e-11, sort=1e-11, fft=1e-12,
        factor=1e-11,
    ),
    "tpu": Rates(
        call=1e-5, kernel=1e-6, inner=1e-6, step=3e-6, small_inner=1e-6, small_step=3e-6, fresh=1e-15, byte=8e-13,
        near=1e-13, cache=1.28e8, simple=3e-13, slow=1e-12, gathered=1e-10, product=4e-15, gemm=1e-9, row=1e-15,
        tiny=1e-12, convolution=1e-14, scatter=1e-9, strided=1e-15, cumulate=1e-11, sort=1e-10, fft=1e-11,
        factor=1e-10,
    ),
}  # fmt: skip
# To call a library for matrix products takes as long as so many of them. Measured for one of 8 to 64 rows of 2 to 8
# numbers, with all it does: 1.3 to 3 µs outside of a loop, 0.4 to 1 µs inside.
CALL, INNER_CALL = 5, 1
# What was not measured anywhere is said to be so beside every prediction.
UNMEASURED = ("gpu", "tpu")


def platform() -> str:
    """The platform that a program would run on, in the words of `DEFAULTS`; one that is not there counts as a CPU.

    >>> platform() in DEFAULTS
    True
    """
    name = {"cuda": "gpu", "rocm": "gpu"}.get(jax.default_backend(), jax.default_backend())
    return name if name in DEFAULTS else "cpu"


def cache_file(name: str) -> Path:
    """Where a calibration of a platform is kept: in `GRADLAB_CACHE_DIR`, or the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get("GRADLAB_CACHE_DIR") or Path(caches) / "gradlab"
    return Path(folder) / f"rates-{name}.json"


def rates() -> Rates:
    """The rates of the device at hand: those measured on this machine where it has been calibrated, else the defaults.

    >>> rates().call > 0
    True
    """
    return _rates(platform(), cache_file(platform()))


def origin() -> str:
    """Where `rates` come from: `"calibrated"`, `"built in"`, or `"built in, unmeasured"`."""
    name = platform()
    if rates() is not DEFAULTS[name]:
        return "calibrated"
    return "built in, unmeasured" if name in UNMEASURED else "built in"


@cache
def _rates(name: str, file: Path) -> Rates:
    try:
        return from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError, AttributeError):  # none there, or one that an older version wrote
        return DEFAULTS[name]


def forget() -> None:
    """Read the cache folder again at the next prediction."""
    _rates.cache_clear()


def from_dict(content: dict[str, float]) -> Rates:
    """Rates from what `to_dict` gave.

    Raises:
        ValueError: a rate is missing, or is not a positive number.
    """
    values = {field.name: float(content[field.name]) for field in fields(Rates) if field.name in content}
    if len(values) < len(fields(Rates)) or not all(0 < value < float("inf") for value in values.values()):
        raise ValueError("not a table of rates")
    return Rates(**values)


def to_dict(measured: Rates) -> dict[str, float]:
    """Rates as JSON scalars."""
    return asdict(measured)


def seconds(work: Work, table: Rates) -> float:
    """The predicted time of one call of a program.

    >>> from gradlab.jaxprs import trace, work
    >>> small, large = (work(trace(lambda x: x + 1, jax.ShapeDtypeStruct((n,), "float32"))) for n in (10, 10**7))
    >>> seconds(small, DEFAULTS["cpu"]) < seconds(large, DEFAULTS["cpu"])
    True
    """
    return (
        table.call
        + table.fresh * work.taken_bytes
        + sum(kernel.count * _kernel_seconds(kernel, table) for kernel in work.kernels)
    )


def _kernel_seconds(kernel: Kernel, table: Rates) -> float:
    moved = kernel.read + kernel.written
    moving = moved * (table.near if moved <= table.cache else table.byte)
    numbers = kernel.simple * table.simple + kernel.slow * table.slow
    numbers += (kernel.gathered + kernel.turned) * table.gathered
    numbers += kernel.strided * table.strided + kernel.tiny * table.tiny
    if kernel.calls:
        called = (INNER_CALL if kernel.inner else CALL) + kernel.calls
        numbers += called * table.gemm + kernel.rows * table.row
    ending = 0.0 if kernel.kind in ("map", "reduce", "loop") else kernel.flops * getattr(table, kernel.kind)
    return _start(kernel, table) + max(moving, numbers + ending)


def _start(kernel: Kernel, table: Rates) -> float:
    if kernel.kind == "loop":
        return table.small_step if kernel.small else table.step
    if kernel.inner:
        return table.small_inner if kernel.small else table.inner
    return table.kernel

"""One kernel, and the arithmetic of one operator, were it a kernel of its own."""

from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any, Literal

from jax.extend import core

from gradlab.jaxprs.flops import flops
from gradlab.jaxprs.reading import CUMULATES, REDUCES

Kind = Literal["map", "reduce", "product", "convolution", "scatter", "cumulate", "sort", "fft", "factor", "loop"]

# Numbers that lie a multiple of so many bytes apart share a few places of a CPU's cache and drive each other out of it:
# 18 ns each to scatter over rows of 1024 float32 numbers, 3 ns over rows of 1000.
PAGE = 4096
# A transposition that reads numbers a multiple of so many bytes apart suffers from it too: 1 to 1.7 ns for each, which
# counts as `PAGED` of the others, 0.2 to 0.6 ns.
QUARTER, PAGED = PAGE // 4, 4
# A product of fewer multiplications than this is a loop on the spot, as are many at once of no more rows and columns
# than that; for larger ones a library is called.
TINY_ONE, TINY_MANY = 32, 6
# A solve with, or a factorization of, a matrix of no more rows than this does its operations one by one.
TINY_FACTOR = 32

_FREE = frozenset(
    str.split("""reshape squeeze expand_dims broadcast_in_dim stop_gradient copy copy_p pvary optimization_barrier
    convert_element_type bitcast_convert_type iota transpose slice rev""")
)
_SLOW = frozenset(
    str.split("""
    exp exp2 expm1 log log1p sin cos tan tanh sinh cosh asin acos atan atan2 asinh acosh atanh logistic pow erf
    erfc erf_inv lgamma digamma sqrt rsqrt cbrt""")
)
_FACTORS = """cholesky lu qr geqrf eigh eig svd triangular_solve householder_product tridiagonal_solve
custom_linear_solve"""
# Additions, shifts and the like of a random word: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011):
# 20 rounds of three for two words, and the keys.
_RANDOM, _RANDOM_STEPS = ("random_bits", "threefry2x32"), 40
_KINDS: dict[str, Kind] = {
    "dot_general": "product",
    "conv_general_dilated": "convolution",
    "sort": "sort",
    "top_k": "sort",
    "fft": "fft",
    **dict.fromkeys((*REDUCES, "reduce_xor", "reduce"), "reduce"),
    **dict.fromkeys(CUMULATES, "cumulate"),
    **dict.fromkeys(_FACTORS.split(), "factor"),
}


@dataclass(frozen=True)
class Kernel:
    """What one kernel does, or several alike.

    Attributes:
        kind: what ends it.
        count: how often it runs.
        read, written: bytes, each time.
        simple, slow, gathered: numbers made by additions and the like, by functions such as the sine, by indexing.
        flops: of the operator that ends it; for a sort comparisons, for a scatter numbers written.
        strided: numbers that a scatter writes a multiple of `PAGE` from the one before.
        turned: numbers that a transposition reads across rows; a multiple of `QUARTER` apart, each counts as `PAGED`.
        calls, rows, tiny: of matrix products, how many a library takes at one call, their first operands' rows, and
            operations of those that it is not called for; of factorizations, matrices, and operations of small ones.
        inner: whether it runs inside a loop.
        small: whether that loop is so small that a compiler may make one kernel of all of it.
    """

    kind: Kind
    count: float = 1.0
    read: float = 0.0
    written: float = 0.0
    simple: float = 0.0
    slow: float = 0.0
    gathered: float = 0.0
    flops: float = 0.0
    strided: float = 0.0
    turned: float = 0.0
    calls: float = 0.0
    rows: float = 0.0
    tiny: float = 0.0
    inner: bool = False
    small: bool = False


def own(eqn: Any) -> Kernel:
    """The arithmetic of one operator."""
    name = eqn.primitive.name
    written, size = float(bytes_of(eqn.outvars)), float(sum(size_of(v) for v in eqn.outvars))
    one = Kernel("map", written=written)
    if name == "transpose":
        return replace(one, turned=_turned(eqn))
    if name in _FREE:
        return one
    if name in _SLOW:
        return replace(one, slow=size)
    if name in ("gather", "dynamic_slice"):
        return replace(one, gathered=size)
    if name.startswith("scatter") or name == "dynamic_update_slice":
        numbers = float(size_of(updates(eqn)))
        return replace(one, kind="scatter", flops=numbers, strided=numbers if _is_strided(eqn) else 0.0)
    if name in _KINDS:
        return replace(one, kind=_KINDS[name], **_arithmetic(_KINDS[name], eqn))
    return replace(one, simple=size * (_RANDOM_STEPS if name in _RANDOM else 1))


def updates(eqn: Any) -> Any:
    """What a scatter, or a `dynamic_update_slice`, writes."""
    return eqn.invars[2 if eqn.primitive.name.startswith("scatter") else 1]


def _is_strided(eqn: Any) -> bool:
    """Whether a scatter writes windows of numbers that lie a multiple of `PAGE` apart."""
    numbers = eqn.params.get("dimension_numbers")
    if not getattr(numbers, "update_window_dims", ()):
        return False
    shape = eqn.invars[0].aval.shape
    window = [d for d in range(len(shape)) if d not in (*numbers.inserted_window_dims, *numbers.operand_batching_dims)]
    strides = [prod(shape[d + 1 :]) * eqn.invars[0].aval.dtype.itemsize for d in window if shape[d] > 1]
    return bool(strides) and strides[0] % PAGE == 0


def _turned(eqn: Any) -> float:
    """The numbers that a transposition reads one row after the other, where its last axis was another one."""
    operand, axis = eqn.invars[0].aval, eqn.params["permutation"][-1]
    stride = prod(operand.shape[axis + 1 :])
    if stride == 1 or operand.shape[axis] == 1:
        return 0.0
    return float(operand.size) * (PAGED if stride * getattr(operand.dtype, "itemsize", 4) % QUARTER == 0 else 1)


def _arithmetic(kind: Kind, eqn: Any) -> dict[str, Any]:
    size = float(max((size_of(v) for v in eqn.invars), default=0))
    if kind == "reduce":
        return {"simple": size}
    if kind == "cumulate":
        return {"flops": size}
    if kind == "sort":
        return {"flops": size * log2(max(2.0, size))}
    if kind == "product":
        return _product(eqn)
    if kind == "factor":
        return _factor(eqn, float(flops(eqn) or size))
    return {"flops": flops(eqn) or size}


def _factor(eqn: Any, operations: float) -> dict[str, Any]:
    """Of many matrices each is a call; what is to be done for a small one is far from the speed of a large one."""
    shape = eqn.invars[0].aval.shape
    calls = float(prod(shape[:-2]))
    return {"tiny" if shape[-1:] and shape[-1] <= TINY_FACTOR else "flops": operations, "calls": calls}


def _product(eqn: Any) -> dict[str, Any]:
    """A product with a vector is a loop over memory; one of matrices is a call, or where they are tiny a loop."""
    contracted, batch = eqn.params["dimension_numbers"]
    shapes = [v.aval.shape for v in eqn.invars]
    length = lambda side, axes: prod(shapes[side][axis] for axis in axes)
    inside, count = length(0, contracted[0]), length(0, batch[0])
    free = [prod(shapes[side]) // max(1, inside * count) for side in (0, 1)]
    if min(free) <= 1:
        return {"flops": flops(eqn)}
    if prod(free) * inside < TINY_ONE if count == 1 else max(*free, inside) <= TINY_MANY:
        return {"tiny": flops(eqn)}
    return {"flops": flops(eqn), "calls": count, "rows": count * free[0]}


def size_of(v: Any) -> int:
    return prod(getattr(v.aval, "shape", ()))


def bytes_in(v: Any) -> int:
    return size_of(v) * getattr(getattr(v.aval, "dtype", None), "itemsize", 4)


def bytes_of(variables: list[Any]) -> int:
    return sum(bytes_in(v) for v in variables if not isinstance(v, core.Literal))

"""What a program makes a device do, read from its operators: kernels, the bytes they move, the arithmetic in them.

A compiler joins operators into kernels. Here they are joined as XLA does by and large: elementwise operators and those
that only move numbers are part of whatever reads their result; reductions, products, loops and the like end a kernel.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import log2, prod
from typing import Any, Literal

from jax.extend import core

from gradlab.jaxprs.flops import flops
from gradlab.jaxprs.loops import while_constants
from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, CUMULATES, REDUCES, called, jaxpr_of, programs, scan_counts

Kind = Literal["map", "reduce", "product", "convolution", "scatter", "cumulate", "sort", "fft", "factor", "loop"]

# A kernel of more operators than this is cut: compilers do, and the sets below stay small.
MOST_JOINED = 64
# Numbers that lie a multiple of so many bytes apart share a few places of a CPU's cache and drive each other out of it:
# 18 ns each to scatter over rows of 1024 float32 numbers, 3 ns over rows of 1000.
PAGE = 4096
# A transposition that reads numbers a multiple of so many bytes apart suffers from it too: 1 to 1.7 ns for each, which
# counts as `PAGED` of the others, 0.2 to 0.6 ns.
QUARTER, PAGED = PAGE // 4, 4
# Matrices of no more rows and columns than this are multiplied by loops on the spot, larger ones by calling a library.
TINY = 6
# A `while_loop` says nothing of its length; all derivatives of one function share it, so that any number will do.
UNKNOWN_TRIPS = 10

_FREE = frozenset(
    str.split("""reshape squeeze expand_dims broadcast_in_dim stop_gradient copy copy_p pvary optimization_barrier
    convert_element_type bitcast_convert_type iota transpose slice rev""")
)
_SLOW = frozenset(
    str.split("""
    exp exp2 expm1 log log1p sin cos tan tanh sinh cosh asin acos atan atan2 asinh acosh atanh logistic pow erf
    erfc erf_inv lgamma digamma sqrt rsqrt cbrt""")
)
# XLA counts these as cheap, and joins them to what they are broadcast to; all other slow ones it computes before.
_REMADE = ("sin", "cos", "tan")
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
        calls, tiny: of matrix products, how many a library is called for, and operations of those that it is not.
        inner: whether it runs inside a loop.
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
    tiny: float = 0.0
    inner: bool = False


@dataclass(frozen=True)
class Work:
    """The kernels of a program, and its memory.

    Attributes:
        kernels: in their order.
        peak_bytes: alive at once when most are: arguments, results and what is between.
        taken_bytes: of those, what is not arguments and constants.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: int
    taken_bytes: int


def work(program: Traced) -> Work:
    """What a program makes a device do; nothing runs.

    Args:
        program: of arrays of any shapes; sizes are counted in numbers, memory in bytes.

    >>> from gradlab.jaxprs import trace
    >>> found = work(trace(lambda x: (x * x + 1.0).sum(), 1.0))
    >>> [kernel.kind for kernel in found.kernels]
    ['reduce']
    """
    reader = _Reader(program.closed, inner=False)
    kernels = tuple(reader.run())
    given = _bytes_of(jaxpr_of(program.closed).invars) + sum(getattr(c, "nbytes", 0) for c in program.closed.consts)
    return Work(kernels, reader.peak + given, reader.peak)


@dataclass
class _Pending:
    """A value that no kernel has written: the operators that make it, and the stored values that they read."""

    operators: frozenset[int]
    sources: frozenset[Any]


class _Reader:
    """One pass over a program, in its order."""

    def __init__(self, closed: Any, inner: bool):
        self.jaxpr = jaxpr_of(closed)
        self.inner = inner
        self.pending: dict[Any, _Pending] = {}
        self.own: list[Kernel] = []  # the arithmetic of each operator, were it a kernel of its own
        self.eqns = _needed(self.jaxpr)
        self.uses = Counter(v for eqn in self.eqns for v in set(_variables(eqn.invars)))
        self.given = {*self.jaxpr.invars, *self.jaxpr.constvars}
        self.last = self._last_uses()
        self.alive, self.peak = 0, 0

    def _last_uses(self) -> dict[int, list[Any]]:
        """The variables made here that no operator reads after the i-th one."""
        last: dict[Any, int] = {}
        for i, eqn in enumerate(self.eqns):
            last.update((v, i) for v in (*_variables(eqn.invars), *eqn.outvars))
        # The arguments of the whole program stay; inside a loop, what it carries may be written over.
        for v in (*_variables(self.jaxpr.outvars), *(() if self.inner else self.given)):
            last.pop(v, None)
        ends: dict[int, list[Any]] = {}
        for v, i in last.items():
            ends.setdefault(i, []).append(v)
        return ends

    def run(self) -> Iterator[Kernel]:
        """The kernels; `peak` is known once they are exhausted."""
        for i, eqn in enumerate(self.eqns):
            yield from self._operator(i, eqn)
            for v in self.last.get(i, ()):
                self.alive -= 0 if v in self.pending or v in self.given else _bytes(v)
        for v in dict.fromkeys(_variables(self.jaxpr.outvars)):
            yield from self._stored(v)

    def _operator(self, i: int, eqn: Any) -> Iterator[Kernel]:
        own = _own(eqn)
        self.own.append(own)
        # A scatter and a linear solve hold programs too, which say how to combine numbers, not what to run next.
        if eqn.primitive.name in CALLS or (own.kind == "map" and any(True for _ in programs(eqn))):
            yield from self._program(i, eqn)
        elif own.kind == "map":
            operators, sources = self._joined(eqn.invars, frozenset([i]))
            for v in eqn.outvars:
                self.pending[v] = _Pending(operators, sources)
                if len(operators) > MOST_JOINED or (self.uses[v] > 1 and own.slow):
                    yield from self._stored(v)
        else:
            # A product reads its operands from memory; a reduction makes them on its way.
            for v in () if own.kind == "reduce" else _variables(eqn.invars):
                yield from self._stored(v)
            operators, sources = self._joined(eqn.invars, frozenset([i]))
            if own.kind == "scatter" and self._dies(eqn.invars[0], i):
                # Written where its operand lies: only the numbers that are scattered move.
                sources -= {eqn.invars[0]}
                yield self._kernel(own.kind, operators, sources, _bytes(_updates(eqn)))
                self._free(eqn.invars[0], i)
            else:
                yield self._kernel(own.kind, operators, sources, _bytes_of(eqn.outvars))
            self._keep(eqn.outvars)

    def _dies(self, v: Any, i: int) -> bool:
        """Whether nothing reads a value of this program after its i-th operator."""
        return not isinstance(v, core.Literal) and v in self.last.get(i, ())

    def _free(self, v: Any, i: int) -> None:
        """Its memory is taken by a result of the i-th operator."""
        self.alive -= _bytes(v)
        self.last[i].remove(v)

    def _joined(self, atoms: list[Any], operators: frozenset[int]) -> tuple[frozenset[int], frozenset[Any]]:
        sources: frozenset[Any] = frozenset()
        for v in _variables(atoms):
            made = self.pending.get(v)
            operators = operators | made.operators if made else operators
            sources = sources | (made.sources if made else frozenset([v]))
        return operators, sources

    def _stored(self, v: Any) -> Iterator[Kernel]:
        """The kernel that writes a value, where none has; a value that only moved another's shape needs none."""
        made = self.pending.pop(v, None)
        if made is None:
            return
        self._keep([v])
        total = self._kernel("map", made.operators, made.sources, _bytes(v))
        if total.simple + total.slow + total.gathered > 0 or _bytes(v) > sum(map(_bytes, made.sources)):
            yield total

    def _kernel(self, kind: Kind, operators: frozenset[int], sources: frozenset[Any], written: float) -> Kernel:
        parts = [self.own[i] for i in operators]
        total = lambda name: sum(getattr(p, name) for p in parts)
        slow = total("slow") + (self._remade(operators) if kind == "map" else 0.0)
        # A slice reads what it keeps; only what ends a kernel reads more than it writes.
        most = max((p.written for p in parts), default=0.0) if kind == "map" else float("inf")
        read = sum(min(float(_bytes(v)), most) for v in sources)
        counts = {name: total(name) for name in ("simple", "gathered", "flops", "strided", "calls", "tiny")}
        # Numbers that are made on the spot are made in any order.
        turned = total("turned") * min(1.0, read / max(1.0, written)) if kind == "map" else 0.0
        return Kernel(kind, 1.0, read, written, slow=slow, turned=turned, inner=self.inner, **counts)

    def _remade(self, operators: frozenset[int]) -> float:
        """How many slow numbers a kernel makes again: those that are broadcast, where XLA takes them for cheap.

        Not along the axis of the innermost loop, from which a compiler moves them out; nor behind a transposition,
        where that is another axis.
        """
        names = {i: self.eqns[i].primitive.name for i in operators}
        if "transpose" in names.values():
            return 0.0
        shapes = {i: self.eqns[i].outvars[0].aval.shape for i in operators}
        widest = max(operators, key=lambda i: self.own[i].written)
        again = lambda i: names[i] in _REMADE and self.own[i].slow and shapes[i][-1:] == shapes[widest][-1:] != ()
        extent = self.own[widest].written
        return sum(self.own[i].slow * (extent / self.own[i].written - 1) for i in operators if again(i))

    def _keep(self, variables: list[Any], extra: int = 0) -> None:
        self.alive += _bytes_of(variables)
        self.peak = max(self.peak, self.alive + extra)

    def _program(self, i: int, eqn: Any) -> Iterator[Kernel]:
        for v in _variables(eqn.invars):
            yield from self._stored(v)
        name = eqn.primitive.name
        results = _bytes_of(eqn.outvars)
        if name == "cond":
            branches = [self._inside(branch, self.inner) for branch in eqn.params["branches"]]
            kernels, peak = max(branches, key=lambda b: sum(k.read + k.written + k.flops for k in b[0]))
            peak -= results  # they are alive in there already
        elif name in CALLS:
            kernels, peak = self._inside(called(eqn), self.inner)
            peak -= results
        else:
            kernels, peak = self._loop(eqn)
        yield from kernels
        for v in filter(lambda v: self._dies(v, i), _carried(eqn)):
            self._free(v, i)
        self._keep(eqn.outvars, max(0, peak))

    def _inside(self, closed: Any, inner: bool) -> tuple[list[Kernel], int]:
        reader = _Reader(closed, inner)
        return list(reader.run()), reader.peak

    def _loop(self, eqn: Any) -> tuple[list[Kernel], int]:
        """The kernels of every iteration, and what keeps the loop itself going."""
        trips = float(eqn.params.get("length", UNKNOWN_TRIPS))
        inside: list[Kernel] = []
        peak = 0
        for body in programs(eqn):
            kernels, inner_peak = self._inside(body, True)
            inside, peak = [*inside, *kernels], max(peak, inner_peak)
        moved = 0.0  # what is scanned over is read, and what is stacked written, a part in each iteration
        if eqn.primitive.name == "scan":
            consts, carry = scan_counts(eqn)
            moved = _bytes_of([*eqn.invars[consts + carry :], *eqn.outvars[carry:]]) / max(1.0, trips)
        step = Kernel("loop", trips, moved, moved, inner=True)
        return [step, *(replace(k, count=k.count * trips) for k in inside)], peak


def _carried(eqn: Any) -> list[Any]:
    """Where a loop starts: what it carries is written over this."""
    match eqn.primitive.name:
        case "scan":
            consts, carry = scan_counts(eqn)
            return eqn.invars[consts : consts + carry]
        case "while":
            return eqn.invars[sum(while_constants(eqn)) :]
        case _:
            return []


def _needed(jaxpr: Any) -> list[Any]:
    """The operators that the results depend on; a compiler leaves the others out."""
    wanted = set(_variables(jaxpr.outvars))
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or not wanted.isdisjoint(eqn.outvars):
            kept.append(eqn)
            wanted.update(_variables(eqn.invars))
    return kept[::-1]


def _own(eqn: Any) -> Kernel:
    """The arithmetic of one operator."""
    name = eqn.primitive.name
    written, size = float(_bytes_of(eqn.outvars)), float(sum(_size(v) for v in eqn.outvars))
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
        numbers = float(_size(_updates(eqn)))
        return replace(one, kind="scatter", flops=numbers, strided=numbers if _is_strided(eqn) else 0.0)
    if name in _KINDS:
        return replace(one, kind=_KINDS[name], **_arithmetic(_KINDS[name], eqn))
    return replace(one, simple=size * (_RANDOM_STEPS if name in _RANDOM else 1))


def _updates(eqn: Any) -> Any:
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
    size = float(max((_size(v) for v in eqn.invars), default=0))
    if kind == "reduce":
        return {"simple": size}
    if kind == "cumulate":
        return {"flops": size}
    if kind == "sort":
        return {"flops": size * log2(max(2.0, size))}
    if kind == "product":
        return _product(eqn)
    return {"flops": flops(eqn) or size}


def _product(eqn: Any) -> dict[str, Any]:
    """A product with a vector is a loop over memory; one of matrices is a call, or where they are tiny a loop."""
    contracted, batch = eqn.params["dimension_numbers"]
    shapes = [v.aval.shape for v in eqn.invars]
    length = lambda side, axes: prod(shapes[side][axis] for axis in axes)
    inside, count = length(0, contracted[0]), length(0, batch[0])
    free = [prod(shapes[side]) // max(1, inside * count) for side in (0, 1)]
    if min(free) <= 1:
        return {"flops": flops(eqn)}
    return {"tiny": flops(eqn)} if max(*free, inside) <= TINY else {"flops": flops(eqn), "calls": count}


def _variables(atoms: list[Any]) -> list[Any]:
    return [v for v in atoms if not isinstance(v, core.Literal)]


def _size(v: Any) -> int:
    return prod(getattr(v.aval, "shape", ()))


def _bytes(v: Any) -> int:
    return _size(v) * getattr(getattr(v.aval, "dtype", None), "itemsize", 4)


def _bytes_of(variables: list[Any]) -> int:
    return sum(_bytes(v) for v in variables if not isinstance(v, core.Literal))

"""What a program makes a device do, read from its operators: kernels, the bytes they move, the arithmetic in them.

A compiler joins operators into kernels. Here they are joined as XLA does by and large: elementwise operators and those
that only move numbers are part of whatever reads their result; reductions, products, loops and the like end a kernel.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jax.extend import core

from gradlab.jaxprs.arithmetic import Kernel, Kind, bytes_in, bytes_of, own, size_of, updates
from gradlab.jaxprs.loops import while_constants
from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, called, jaxpr_of, programs, scan_counts

# A kernel of more operators than this is cut: compilers do, and the sets below stay small.
MOST_JOINED = 64
# A `while_loop` says nothing of its length; all derivatives of one function share it, so that any number will do.
UNKNOWN_TRIPS = 10
# A loop whose iterations read and write no more bytes than this is one kernel on a CPU. XLA's limit is 1024
# (`xla_cpu_small_while_loop_byte_threshold`), over more operators than are left here; of limits from 384 to 1024 this
# one predicted the times of 72 small loops best.
SMALL_LOOP = 640

# XLA counts these as cheap, and joins them to what they are broadcast to; all other slow ones it computes before.
_REMADE = ("sin", "cos", "tan")

# In a loop, a kernel that holds one of these makes its numbers one by one, which takes as long as to index so many.
_UNEVEN = {"broadcast_in_dim": 0.5, "pad": 0.5, "slice": 0.5, "rev": 0.5, "concatenate": 1.0}


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
    given = bytes_of(jaxpr_of(program.closed).invars) + sum(getattr(c, "nbytes", 0) for c in program.closed.consts)
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
                self.alive -= 0 if v in self.pending or v in self.given else bytes_in(v)
        for v in dict.fromkeys(_variables(self.jaxpr.outvars)):
            yield from self._stored(v)

    def _operator(self, i: int, eqn: Any) -> Iterator[Kernel]:
        alone = own(eqn)
        self.own.append(alone)
        # A scatter and a linear solve hold programs too, which say how to combine numbers, not what to run next.
        if eqn.primitive.name in CALLS or (alone.kind == "map" and any(True for _ in programs(eqn))):
            yield from self._program(i, eqn)
        elif alone.kind == "map":
            operators, sources = self._joined(eqn.invars, frozenset([i]))
            for v in eqn.outvars:
                self.pending[v] = _Pending(operators, sources)
                if len(operators) > MOST_JOINED or (self.uses[v] > 1 and alone.slow):
                    yield from self._stored(v)
        else:
            # A product reads its operands from memory; a reduction makes them on its way.
            for v in () if alone.kind == "reduce" else _variables(eqn.invars):
                yield from self._stored(v)
            operators, sources = self._joined(eqn.invars, frozenset([i]))
            if alone.kind == "scatter" and self._dies(eqn.invars[0], i):
                # Written where its operand lies: only the numbers that are scattered move.
                sources -= {eqn.invars[0]}
                yield self._kernel(alone.kind, operators, sources, bytes_in(updates(eqn)))
                self._free(eqn.invars[0], i)
            else:
                yield self._kernel(alone.kind, operators, sources, bytes_of(eqn.outvars))
            self._keep(eqn.outvars)

    def _dies(self, v: Any, i: int) -> bool:
        """Whether nothing reads a value of this program after its i-th operator."""
        return not isinstance(v, core.Literal) and v in self.last.get(i, ())

    def _free(self, v: Any, i: int) -> None:
        """Its memory is taken by a result of the i-th operator."""
        self.alive -= bytes_in(v)
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
        total = self._kernel("map", made.operators, made.sources, bytes_in(v))
        if total.simple + total.slow + total.gathered > 0 or bytes_in(v) > sum(map(bytes_in, made.sources)):
            yield total

    def _kernel(self, kind: Kind, operators: frozenset[int], sources: frozenset[Any], written: float) -> Kernel:
        parts = [self.own[i] for i in operators]
        total = lambda name: sum(getattr(p, name) for p in parts)
        slow = total("slow") + (self._remade(operators) if kind == "map" else 0.0)
        # A slice reads what it keeps; only what ends a kernel reads more than it writes.
        most = max((p.written for p in parts), default=0.0) if kind == "map" else float("inf")
        read = sum(min(float(bytes_in(v)), most) for v in sources)
        counts = {name: total(name) for name in ("simple", "gathered", "flops", "strided", "calls", "rows", "tiny")}
        counts["gathered"] += self._uneven(operators)
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

    def _uneven(self, operators: frozenset[int]) -> float:
        """Of a kernel in a loop, whose operands are not all of one shape: its numbers, as so many that are indexed."""
        if not self.inner:
            return 0.0
        weight = max(_UNEVEN.get(self.eqns[i].primitive.name, 0) * bool(self.eqns[i].invars) for i in operators)
        return float(weight * max(size_of(self.eqns[i].outvars[0]) for i in operators))

    def _keep(self, variables: list[Any], extra: int = 0) -> None:
        self.alive += bytes_of(variables)
        self.peak = max(self.peak, self.alive + extra)

    def _program(self, i: int, eqn: Any) -> Iterator[Kernel]:
        for v in _variables(eqn.invars):
            yield from self._stored(v)
        name = eqn.primitive.name
        results = bytes_of(eqn.outvars)
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
        scanned: list[Any] = []
        stacked: list[Any] = []
        if eqn.primitive.name == "scan":
            consts, carry = scan_counts(eqn)
            scanned, stacked = eqn.invars[consts + carry :], eqn.outvars[carry:]
        part = lambda variables: bytes_of(variables) / max(1.0, trips)  # of each, an iteration takes its own row
        inside = [Kernel("loop", 1.0, part(scanned), part(stacked), inner=True), *inside]
        if sum(k.count * (k.read + k.written) for k in inside) <= SMALL_LOOP:
            inside = [_on_the_spot(k) for k in inside]
        else:
            # What is stacked is copied to its place by a kernel of its own.
            inside += [Kernel("map", 1.0, part([v]), part([v]), inner=True) for v in stacked]
        return [replace(k, count=k.count * trips) for k in inside], peak


def _on_the_spot(kernel: Kernel) -> Kernel:
    """A part of a loop that is one kernel: nothing is called for a product."""
    if kernel.kind == "product" and kernel.calls:
        kernel = replace(kernel, tiny=kernel.flops, flops=0.0, calls=0.0, rows=0.0)
    return replace(kernel, small=True)


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


def _variables(atoms: list[Any]) -> list[Any]:
    return [v for v in atoms if not isinstance(v, core.Literal)]

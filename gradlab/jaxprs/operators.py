"""A program as a list of operators: calls opened, every variable a numbered slot, each operator with its pullback."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend import core

from gradlab.jaxprs.flops import flops
from gradlab.jaxprs.loops import Loop, loop_of, pullback, while_constants
from gradlab.jaxprs.program import Traced, trace
from gradlab.jaxprs.reading import CALLS, bound, called, jaxpr_of, moves
from gradlab.jaxprs.rules import backward_rule
from gradlab.jaxprs.sources import Frame, Frames, frames_of

Kind = Literal["operator", "call", "rule", "loop", "branch"]
RULES = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
# Parameters that a reader needs to know what an operator does.
_TELLING = ("y", "axes", "axis", "dimension", "new_dtype", "exponent")


@dataclass(frozen=True, eq=False)
class Pullback:
    """What takes cotangents of an operator's results to cotangents of its operands.

    Attributes:
        program: of (operands, cotangents of the results, None for integers), to cotangents of the wanted operands.
        linked: which operands' cotangents depend on what comes in; through the others, JAX passes nothing back, and not
            even a zero, which behind them could meet an infinity.
    """

    program: Traced
    linked: tuple[bool, ...]


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator of a program, in the order of execution.

    Attributes:
        name: JAX's name of it.
        label: the name of the function that it calls; "" where it calls none.
        operands, results: slots.
        shapes: of the results.
        scope: the path of `jax.named_scope`s.
        frames: the lines that led to it, the innermost first.
        flops: operations, None where they are not known.
        owner: the operator whose rule takes the place of this one's pullback, by its index; None for most.
        taken: the slots that hold the results of a custom rule whose function is listed before it.
        eqn: JAX's own record, for this package alone.
    """

    name: str
    label: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    scope: str
    frames: Frames
    flops: float | None
    owner: int | None
    taken: tuple[int, ...] | None
    eqn: Any = field(repr=False)

    @property
    def kind(self) -> Kind:
        """Whether there is a program inside, and of what kind."""
        if self.name in RULES:
            return "rule"
        if self.name in ("scan", "while"):
            return "loop"
        return "branch" if self.name == "cond" else "call" if self.name in CALLS else "operator"

    @property
    def bytes(self) -> int:
        """Of the results."""
        return sum(prod(s.shape) * getattr(s.dtype, "itemsize", 1) for s in self.shapes)

    @property
    def options(self) -> str:
        """The parameters that tell what it does, as text such as `y=2`."""
        shown = [(name, self.eqn.params[name]) for name in _TELLING if name in self.eqn.params]
        return ", ".join(f"{name}={value}" for name, value in shown)

    def run(self, operands: Sequence[Any]) -> list[Any]:
        """The results at these operands."""
        return bound(self.eqn, list(operands))

    def loop(self, operands: Sequence[Any]) -> Loop | None:
        """The loop that this is at these operands; None where it is none."""
        return loop_of(self.eqn, list(operands))

    def inner(self, operands: Sequence[Any]) -> tuple[Traced, list[int]] | None:
        """The program that a call or a branch runs at these operands, and which of them are its own."""
        if self.name in CALLS:
            return _plain(called(self.eqn)), list(range(len(operands)))
        if self.name == "cond":
            branches = self.eqn.params["branches"]
            chosen = min(max(int(operands[0]), 0), len(branches) - 1)
            return _plain(branches[chosen]), list(range(1, len(operands)))
        return None

    def test(self, operands: Sequence[Any]) -> tuple[Traced, list[int]]:
        """The condition of a `while`, and which operands are its own."""
        tested, fixed = while_constants(self.eqn)
        return _plain(self.eqn.params["cond_jaxpr"]), [*range(tested), *range(tested + fixed, len(operands))]

    @cached_property
    def key(self) -> Hashable:
        """Operators with the same one do the same to operands of the same shapes."""
        options = tuple(sorted(self.eqn.params.items()))
        try:
            hash(options)
        except TypeError:
            return (self.name, id(self.eqn))
        return (self.name, options)

    def signature(self, operands: Sequence[Any], wanted: tuple[bool, ...]) -> Hashable:
        """Operators with the same one have the same pullback at operands of these shapes."""
        kinds = tuple((jnp.shape(a), str(jnp.result_type(a)), getattr(a, "weak_type", False)) for a in operands)
        return (self.key, kinds, wanted)

    def pullback(self, operands: Sequence[Any], wanted: tuple[bool, ...]) -> Pullback:
        """The pullback to the wanted operands, traced at these."""
        loop = self.loop(operands) if self.name == "while" else None

        def pull(operands: list[Any], cotangents: list[Any]) -> list[Any]:
            if loop is None:
                return pullback(lambda *a: self.run(a), operands, cotangents, wanted)
            fixed, kept = len(operands) - len(loop.constants) - len(loop.carry), len(loop.constants)
            run = lambda *a: loop.run(list(a[fixed : fixed + kept]), list(a[fixed + kept :]), [])
            return pullback(run, operands, cotangents, wanted)

        program = trace(pull, list(operands), self._cotangents())
        if self.name.startswith("custom_vjp"):  # zeros that a rule returns are passed on
            return Pullback(program, wanted)
        found = iter(program.depending(len(operands)))
        return Pullback(program, tuple(w and next(found) for w in wanted))

    def _cotangents(self) -> list[jax.ShapeDtypeStruct | None]:
        return [s if moves(s) else None for s in self.shapes]

    def rule(self, operands: Sequence[Any], wanted: tuple[bool, ...]) -> Traced:
        """The same, with the user's own lines of a backward rule where they can be had."""
        direct = backward_rule(self.eqn)
        if direct is None:
            return self.pullback(operands, wanted).program

        def pull(operands: list[Any], cotangents: list[Any]) -> list[Any]:
            return [a if w else None for a, w in zip(direct(operands, cotangents), wanted, strict=True)]

        try:
            return trace(pull, list(operands), self._cotangents())
        except Exception:  # a rule that needs to know which cotangents are zero, or another way of calling it
            return self.pullback(operands, wanted).program


@dataclass(frozen=True, eq=False)
class Listing:
    """A program as operators.

    Attributes:
        inputs, outputs: slots.
        constants: what is known before it runs, literals included, by slot.
        named: the slots of those constants that the function closes over.
        operators: in the order of execution.
        shapes: of the inputs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    named: tuple[int, ...]
    operators: tuple[Operator, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]


def listing(program: Traced, *, open_calls: bool = True, frames: Frames = (), scope: str = "") -> Listing:
    """The operators of a program.

    Args:
        program: a traced function.
        open_calls: list what `jit`, `checkpoint` and functions with rules of their own call; a function with a rule is
            followed by an operator that stands for its rule.
        frames, scope: of the operator that holds this program.

    >>> import jax.numpy as jnp
    >>> found = listing(trace(lambda x: jax.nn.relu(x) * 2, 1.0))
    >>> [(op.name, op.label, op.operands, op.results, op.owner) for op in found.operators]
    [('max', '', (0, 1), (2,), 1), ('custom_jvp_call', 'relu', (0,), (3,), None), ('mul', '', (3, 4), (5,), None)]
    """
    made = _Lister(open_calls)
    jaxpr = jaxpr_of(program.closed)
    inputs = tuple(made.slot() for _ in jaxpr.invars)
    outputs = made.walk(program.closed, inputs, frames, scope)
    named = tuple(made.named)
    return Listing(
        inputs, outputs, made.constants, named, tuple(made.operators), tuple(_shape(v) for v in jaxpr.invars)
    )


class _Lister:
    """Numbers the variables of a program, and of the calls in it, while it walks through them."""

    def __init__(self, open_calls: bool) -> None:
        self.open_calls = open_calls
        self.count = 0
        self.constants: dict[int, Any] = {}
        self.named: list[int] = []
        self.operators: list[Operator] = []

    def slot(self) -> int:
        self.count += 1
        return self.count - 1

    def constant(self, value: Any, *, named: bool) -> int:
        slot = self.slot()
        self.constants[slot] = value
        if named:
            self.named.append(slot)
        return slot

    def walk(self, closed: Any, inputs: Sequence[int], frames: Frames, scope: str) -> tuple[int, ...]:
        """List a program's operators; return the slots of its outputs."""
        jaxpr = jaxpr_of(closed)
        slots: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        for v, c in zip(jaxpr.constvars, closed.consts, strict=True):
            slots[v] = self.constant(c, named=True)
        read = lambda atom: self.constant(atom.val, named=False) if isinstance(atom, core.Literal) else slots[atom]
        for eqn in jaxpr.eqns:
            operands = tuple(read(v) for v in eqn.invars)
            slots.update(zip(eqn.outvars, self.add(eqn, operands, frames, scope), strict=True))
        return tuple(read(v) for v in jaxpr.outvars)

    def add(self, eqn: Any, operands: tuple[int, ...], frames: Frames, scope: str) -> tuple[int, ...]:
        """List one operator, or what it calls; return the slots of its results."""
        frames, scope = (*frames_of(eqn), *frames), "/".join(s for s in (scope, str(eqn.source_info.name_stack)) if s)
        name, taken, first = eqn.primitive.name, None, len(self.operators)
        if self.open_calls and name in CALLS:
            taken = self.walk(called(eqn), operands, _through(frames, _label(eqn)), scope)
            if name not in RULES:
                return taken
            for i in range(first, len(self.operators)):
                owner = self.operators[i].owner
                self.operators[i] = replace(self.operators[i], owner=len(self.operators) if owner is None else owner)
        results = tuple(self.slot() for _ in eqn.outvars)
        shapes = tuple(_shape(v) for v in eqn.outvars)
        counted = 0.0 if taken is not None else flops(eqn)
        self.operators.append(
            Operator(name, _label(eqn), operands, results, shapes, scope, frames, counted, None, taken, eqn)
        )
        return results


def _through(frames: Frames, function: str) -> Frames:
    """Frames of what a call holds: the line that called knows by which function, where no frame between says so."""
    if not frames:
        return (Frame("", 0, "", function.lstrip("_")),)
    if frames[0].via:
        return frames
    return (frames[0]._replace(via=function.lstrip("_")), *frames[1:])


def _plain(closed: Any) -> Traced:
    closed = closed if hasattr(closed, "consts") else core.ClosedJaxpr(closed, [])
    return Traced(closed, [_shape(v) for v in jaxpr_of(closed).outvars])


def body_of(loop: Loop) -> Traced:
    """One iteration of a loop as a function of its operands."""
    return _plain(loop.body)


def _shape(atom: Any) -> jax.ShapeDtypeStruct:
    aval = atom.aval
    return jax.ShapeDtypeStruct(getattr(aval, "shape", ()), getattr(aval, "dtype", jax.dtypes.float0))


def _label(eqn: Any) -> str:
    """The name of the function that an operator calls; of a rule, that of its function."""
    if eqn.primitive.name not in CALLS:
        return ""
    name = eqn.params.get("name")
    if name is None:
        inner = jaxpr_of(called(eqn))
        name = getattr(getattr(inner, "debug_info", None), "func_name", "")
    return "" if str(name).startswith("<") else str(name)

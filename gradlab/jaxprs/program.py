"""Functions as JAX sees them: traced once, replayed, compared, and rid of the constants that they close over."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gradlab.errors import UnsupportedModeError
from gradlab.jaxprs.reading import CALLS, bound, called, host, jaxpr_of, programs, scan_counts
from gradlab.types import PyTree

# Below this many numbers a constant costs the compiler nothing, and as an argument it would cost a transfer.
SMALL = 64


@dataclass(frozen=True)
class Traced:
    """A function as JAX sees it at arguments of these shapes; calling it replays the operators, with their rules.

    Attributes:
        closed: JAX's intermediate representation, for this module alone.
        shape: the output, a pytree of `jax.ShapeDtypeStruct`.
    """

    closed: Any
    shape: PyTree

    def __call__(self, *args: PyTree) -> PyTree:
        return self._rebuilt(core.jaxpr_as_fun(self.closed)(*jax.tree.leaves(args)))

    @property
    def text(self) -> str:
        """The program as JAX writes it."""
        return str(jaxpr_of(self.closed))

    @cached_property
    def operators(self) -> frozenset[str]:
        """The names of all operators, those of inner programs included."""
        return frozenset(_operators(self.closed))

    @cached_property
    def has_pieces(self) -> bool:
        """Whether an operator chooses or rounds on purpose, so that flat pieces of the output may be meant."""
        return bool(_CHOOSING & self.operators)

    @cached_property
    def rounding(self) -> float:
        """The largest relative rounding of a floating dtype that the arguments pass through."""
        return max(_roundings(self.closed, [True] * len(jaxpr_of(self.closed).invars)), default=0.0)

    def depending(self, first: int) -> tuple[bool, ...]:
        """For each output, whether it depends on an input, of those from the `first` one on in the flat order."""
        jaxpr = jaxpr_of(self.closed)
        moved = set(jaxpr.invars[first:])
        read = lambda v: not isinstance(v, core.Literal) and v in moved
        for eqn in jaxpr.eqns:
            if any(map(read, eqn.invars)):
                moved.update(eqn.outvars)
        return tuple(map(read, jaxpr.outvars))

    def same_as(self, other: "Traced") -> bool:
        """Whether both have the same operators and the same constants: a function that draws on its own has not."""
        pairs = zip_longest(_marks(self.closed), _marks(other.closed))
        return all(type(a) is type(b) and np.array_equal(a, b, equal_nan=_holds_floats(a)) for a, b in pairs)

    def from_base(self, base: PyTree, *args: PyTree) -> PyTree:
        """The output at args, with what `stop_gradient` passes on held at its value for the arguments `base`.

        The derivative of this by args, at base, is the one that JAX takes.

        Raises:
            UnsupportedModeError: a `stop_gradient` inside a `while_loop` or a `cond`.
        """
        return self._rebuilt(_from_base(self.closed, jax.tree.leaves(base), jax.tree.leaves(args))[1])

    def hoisted(self) -> tuple[Callable[..., PyTree], list[Any]]:
        """The same as a program of its large constants and its arguments; see `hoist`."""
        found: dict[int, Any] = {id(c): c for c in _constants(self.closed) if _large(c)}

        def program(constants: list[Any], *args: PyTree) -> PyTree:
            traced = dict(zip(found, constants, strict=True))
            return self._rebuilt(_evaluate(self.closed, jax.tree.leaves(args), traced))

        return program, list(found.values())

    def _rebuilt(self, leaves: list[Any]) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(self.shape), leaves)


def trace(f: Callable[..., PyTree], *args: PyTree) -> Traced:
    """f as a `Traced` at these arguments, or at their shapes; what it closes over is constant.

    >>> program = trace(lambda x: {"y": x * jax.numpy.sin(x)}, 1.0)
    >>> sorted(program.operators), program.shape["y"].shape
    (['mul', 'sin'], ())
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    return Traced(closed, shape)


# Operators that make pieces: they round, or take one of several values.
_CHOOSING = {"floor", "ceil", "round", "sign", "abs", "max", "min", "clamp", "select_n", "sort", "top_k", "argmax"}
_CHOOSING |= {"argmin", "approx_top_k", "reduce_max", "reduce_min", "cummax", "cummin", "cond", "while"}


def hoist(f: Callable[..., PyTree], *args: PyTree) -> tuple[Callable[..., PyTree], list[Any]]:
    """f as a program of its closed-over arrays and its arguments, so that compiling does not fold the arrays.

    XLA evaluates at compile time whatever depends on constants alone; for a closed-over 1024 × 1024 matrix that took
    twenty seconds. Arrays that f closes over, also inside `jit`, `checkpoint` and custom rules, become arguments.
    Those of a function that is compiled on its own inside a loop's body stay where they are.

    Args:
        f: any function of pytrees, derivatives already taken.
        args: arguments, or their shapes.

    Returns:
        `(program, constants)` with `program(constants, *args)` equal to `f(*args)`.

    >>> table = jax.numpy.arange(100.0)
    >>> program, constants = hoist(lambda x: x + table, 1.0)
    >>> [c.shape for c in constants], float(program(constants, 1.0)[99])
    ([(100,)], 100.0)
    """
    return trace(f, *args).hoisted()


def lacks_forward_rule(program: Traced) -> bool:
    """Whether a program takes a forward-mode derivative of a function that has a rule for reverse mode only.

    Run eagerly, JAX refuses such a derivative; traced, it leaves an operator behind that only fails when the program is
    lowered, far from the mistake.

    >>> rule = jax.custom_vjp(lambda x: x)
    >>> rule.defvjp(lambda x: (x, None), lambda _, w: (w,))
    >>> push = trace(lambda x: jax.jvp(rule, (x,), (x,)), 1.0)
    >>> lacks_forward_rule(push), lacks_forward_rule(trace(jax.grad(rule), 1.0))
    (True, False)
    """
    return "custom_lin" in program.operators


def draws(program: Traced) -> bool:
    """Whether a program draws random numbers: in another precision it may draw others.

    >>> draws(trace(lambda key: jax.random.normal(key), jax.random.key(0))), draws(trace(jax.numpy.sin, 1.0))
    (True, False)
    """
    return any(name.startswith(("random_", "threefry", "rng_")) for name in program.operators)


def _operators(program: Any) -> Iterator[str]:
    """The name of every operator, those of inner programs included."""
    for eqn in jaxpr_of(program).eqns:
        yield eqn.primitive.name
        for inner in programs(eqn):
            yield from _operators(inner)


def _roundings(closed: Any, moves: list[bool]) -> Iterator[float]:
    """The rounding of every floating number that depends on an input that moves."""
    jaxpr = jaxpr_of(closed)
    moving = {v for v, moved in zip(jaxpr.invars, moves, strict=True) if moved}
    for eqn in jaxpr.eqns:
        operands = [not isinstance(v, core.Literal) and v in moving for v in eqn.invars]
        if not any(operands):
            continue
        moving.update(eqn.outvars)
        for v in eqn.outvars:
            dtype = getattr(v.aval, "dtype", None)
            if dtype is not None and jax.numpy.issubdtype(dtype, np.inexact):
                yield float(jax.numpy.finfo(dtype).eps)
        for inner in programs(eqn):
            count = len(jaxpr_of(inner).invars)
            yield from _roundings(inner, operands if count == len(operands) else [True] * count)


def _marks(program: Any) -> Iterator[Any]:
    """Operators and constants in their order: two programs with the same compute the same."""
    yield from (host(c) for c in getattr(program, "consts", ()))
    for eqn in jaxpr_of(program).eqns:
        yield eqn.primitive.name
        yield from (host(v.val) for v in eqn.invars if isinstance(v, core.Literal))
        for inner in programs(eqn):
            yield from _marks(inner)


def _holds_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fc"


def _from_base(closed: Any, base: list[Any], moved: list[Any]) -> tuple[list[Any], list[Any]]:
    """Run a program at two points at once, the second with what `stop_gradient` passes on taken from the first."""
    jaxpr = jaxpr_of(closed)
    values: dict[Any, tuple[Any, Any]] = {}
    values.update(zip(jaxpr.constvars, ((c, c) for c in closed.consts), strict=True))
    values.update(zip(jaxpr.invars, zip(base, moved, strict=True), strict=True))
    read = lambda atom: (atom.val, atom.val) if isinstance(atom, core.Literal) else values[atom]
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        results = _from_base_operator(eqn, [b for b, _ in operands], [m for _, m in operands])
        values.update(zip(eqn.outvars, zip(*results, strict=True), strict=True))
    return [read(v)[0] for v in jaxpr.outvars], [read(v)[1] for v in jaxpr.outvars]


def _from_base_operator(eqn: Any, base: list[Any], moved: list[Any]) -> tuple[list[Any], list[Any]]:
    name = eqn.primitive.name
    if name == "stop_gradient":
        return base, base
    if "stop_gradient" not in {inner for program in programs(eqn) for inner in _operators(program)}:
        return bound(eqn, base), bound(eqn, moved)
    if name in CALLS:
        return _from_base(called(eqn), base, moved)
    if name == "scan":
        return _from_base_scan(eqn, base, moved)
    raise UnsupportedModeError(
        f"allow_stop_gradient=True cannot hold the values of a stop_gradient inside {name}; move it out of there."
    )


def _from_base_scan(eqn: Any, base: list[Any], moved: list[Any]) -> tuple[list[Any], list[Any]]:
    consts, carry = scan_counts(eqn)
    split = lambda values: (values[:consts], values[consts : consts + carry], values[consts + carry :])
    (fixed_base, start_base, xs_base), (fixed, start, xs) = split(base), split(moved)

    def body(state: Any, x: Any) -> Any:
        one, two = _from_base(eqn.params["jaxpr"], [*fixed_base, *state[0], *x[0]], [*fixed, *state[1], *x[1]])
        return (one[:carry], two[:carry]), (one[carry:], two[carry:])

    options = {name: eqn.params[name] for name in ("length", "reverse")}
    last, ys = jax.lax.scan(body, (start_base, start), (xs_base, xs), **options)
    return [*last[0], *ys[0]], [*last[1], *ys[1]]


def _large(constant: Any) -> bool:
    return np.size(constant) >= SMALL


def _constants(closed: Any) -> Iterator[Any]:
    """Every constant of a program and of the calls in it that can be opened."""
    yield from closed.consts
    for eqn in jaxpr_of(closed).eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, core.Literal))
        if eqn.primitive.name in CALLS:
            yield from _constants(called(eqn))


def _evaluate(closed: Any, args: list[Any], traced: dict[int, Any]) -> list[Any]:
    """Run a program operator by operator, with the constants in `traced` replaced."""
    jaxpr = jaxpr_of(closed)
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return traced.get(id(atom.val), atom.val)
        return values[atom]

    values.update(zip(jaxpr.constvars, (traced.get(id(c), c) for c in closed.consts), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if eqn.primitive.name in CALLS and any(id(c) in traced for c in _constants(called(eqn))):
            results = _evaluate(called(eqn), operands, traced)
        else:
            results = bound(eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]

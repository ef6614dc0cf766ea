"""The only file that reads JAX's intermediate representation, which differs between JAX 0.10, 0.11 and 0.12."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gradlab.types import PyTree

# Below this many numbers a constant costs the compiler nothing, and as an argument it would cost a transfer.
SMALL = 64

# Operators that call one program with their own operands, by the parameter that holds it. Opening them changes nothing
# once every derivative has been taken. (`pjit` is `jit` and `remat2` is `checkpoint` in some versions.)
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


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
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    found: dict[int, Any] = {id(c): c for c in _constants(closed) if _large(c)}
    structure = jax.tree.structure(shape)

    def program(constants: list[Any], *args: PyTree) -> PyTree:
        traced = dict(zip(found, constants, strict=True))
        return jax.tree.unflatten(structure, _evaluate(closed, jax.tree.leaves(args), traced))

    return program, list(found.values())


def lacks_forward_rule(f: Callable[..., PyTree], *args: PyTree) -> bool:
    """Whether f takes a forward-mode derivative of a function that has a rule for reverse mode only.

    Run eagerly, JAX refuses such a derivative; traced, it leaves an operator behind that only fails when the program is
    lowered, far from the mistake.

    Args:
        f: a function that takes a derivative; it must be traceable.
        args: its arguments, or their shapes.

    >>> rule = jax.custom_vjp(lambda x: x)
    >>> rule.defvjp(lambda x: (x, None), lambda _, w: (w,))
    >>> lacks_forward_rule(lambda x: jax.jvp(rule, (x,), (x,)), 1.0), lacks_forward_rule(jax.grad(rule), 1.0)
    (True, False)
    """
    return any(name == "custom_lin" for name in _operators(jax.make_jaxpr(f)(*args)))


def _operators(program: Any) -> Iterator[str]:
    """The name of every operator, those of inner programs included."""
    for eqn in _inner(program).eqns:
        yield eqn.primitive.name
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(_inner(inner), "eqns"):
                    yield from _operators(inner)


def _large(constant: Any) -> bool:
    return np.size(constant) >= SMALL


def _constants(closed: Any) -> Iterator[Any]:
    """Every constant of a program and of the calls in it that can be opened."""
    yield from closed.consts
    for eqn in _inner(closed).eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, core.Literal))
        if eqn.primitive.name in _CALLS:
            yield from _constants(_called(eqn))


def _inner(closed: Any) -> Any:
    """The program without its constants; from 0.11 on the two are one class."""
    return getattr(closed, "jaxpr", closed)


def _called(eqn: Any) -> Any:
    called = eqn.params[_CALLS[eqn.primitive.name]]
    return called if hasattr(called, "consts") else core.ClosedJaxpr(called, [])


def _evaluate(closed: Any, args: list[Any], traced: dict[int, Any]) -> list[Any]:
    """Run a program operator by operator, with the constants in `traced` replaced."""
    jaxpr = _inner(closed)
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return traced.get(id(atom.val), atom.val)
        return values[atom]

    values.update(zip(jaxpr.constvars, (traced.get(id(c), c) for c in closed.consts), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(v) for v in eqn.invars]
        if eqn.primitive.name in _CALLS and any(id(c) in traced for c in _constants(_called(eqn))):
            results = _evaluate(_called(eqn), operands, traced)
        else:
            bound = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = bound if eqn.primitive.multiple_results else [bound]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]

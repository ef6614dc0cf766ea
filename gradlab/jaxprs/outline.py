"""A derivative program cut down to what its direction passes through: what a reader of sparsity patterns needs."""

import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gradlab.jaxprs.indices import KINDS, computed, kind
from gradlab.jaxprs.loops import while_constants
from gradlab.jaxprs.program import Traced
from gradlab.jaxprs.reading import CALLS, bound, called, host, jaxpr_of, programs, scan_counts
from gradlab.types import PyTree

# A value is a concrete array where it is known, a `ShapeDtypeStruct` where it is unknown and does not move with the
# direction, and a tracer where it moves.
Values = list[Any]
# They hand on what they are given.
_COPIES = ("copy", "copy_p", "optimization_barrier")


def outline(program: Traced, direction: PyTree) -> Callable[[PyTree, jax.Array], PyTree]:
    """A program in its first argument alone, with as little of everything else as its dependence needs.

    What does not depend on the direction is computed here where it is known, so that index arrays and masks stay exact,
    and is any number of its shape where it is not: the other arguments, and arrays that an outer trace holds. Calls are
    opened, and loops and branches made anew, which keeps three mistakes of asdex 0.5 away: it takes the constants of a
    `while_loop`'s condition for those of its body, remembers the constants of a branch or a call in the next one that
    shares its program, and does not move a slice that starts outside of its array back into it.

    Args:
        program: of (direction, other arguments).
        direction: what moves, or its shapes.

    Returns:
        `(direction, unknown) -> output`, to be traced and never run; unknown is one floating number.

    >>> from gradlab.jaxprs.program import trace
    >>> push = trace(lambda v, x: jax.numpy.sin(x)[jax.numpy.array([2, 0])] * v, np.ones(2), np.ones(3))
    >>> sorted(trace(outline(push, np.ones(2)), np.ones(2), np.float32(0)).operators)
    ['broadcast_in_dim', 'mul']
    """
    count = len(jax.tree.leaves(direction))
    others = [_shape(v) for v in jaxpr_of(program.closed).invars[count:]]

    def reduced(v: PyTree, unknown: jax.Array) -> PyTree:
        results = _run(program.closed, [*jax.tree.leaves(v), *others], unknown)
        return jax.tree.unflatten(jax.tree.structure(program.shape), _filled(results, unknown))

    return reduced


def digest(program: Traced) -> bytes:
    """A name for what a program computes: equal programs with equal constants have equal digests.

    Of a constant that an outer trace holds, its shape and dtype count; of any other, all bytes.

    >>> from gradlab.jaxprs.program import trace
    >>> named = lambda table: digest(trace(lambda x: x * table, np.ones(3)))
    >>> named(np.arange(3.0)) == named(np.arange(3.0)), named(np.arange(3.0)) == named(np.ones(3))
    (True, False)
    """
    # Where a function lies in memory says nothing of what it computes.
    state = blake2b(re.sub(r"0x[0-9a-f]+", "", program.text).encode(), digest_size=16)
    for constant in _constants(program.closed):
        state.update(f"{np.shape(constant)}{getattr(constant, 'dtype', type(constant))}".encode())
        if not isinstance(constant, jax.core.Tracer):
            state.update(np.ascontiguousarray(host(constant)).tobytes())
    return state.digest()


def _constants(closed: Any) -> Iterator[Any]:
    yield from getattr(closed, "consts", ())
    for eqn in jaxpr_of(closed).eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, core.Literal))
        for inner in programs(eqn):
            yield from _constants(inner)


def _shape(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def _moving(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def _known(value: Any) -> bool:
    return not _moving(value) and not isinstance(value, jax.ShapeDtypeStruct)


def _fixed(constant: Any) -> Any:
    """A constant, or its shape where it is another trace's."""
    return jax.ShapeDtypeStruct(constant.shape, constant.dtype) if _moving(constant) else constant


def _filled(values: Values, unknown: jax.Array) -> Values:
    """Values of which every unknown one depends, for all that a reader can see, on `unknown` alone."""
    make = lambda s: jax.lax.broadcast(jax.lax.convert_element_type(unknown, s.dtype), s.shape)
    return [make(a) if isinstance(a, jax.ShapeDtypeStruct) else a for a in values]


def _run(closed: Any, args: Values, unknown: jax.Array) -> Values:
    jaxpr = jaxpr_of(closed)
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, map(_fixed, getattr(closed, "consts", ())), strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    read = lambda atom: _fixed(atom.val) if isinstance(atom, core.Literal) else values[atom]
    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, _operator(eqn, [read(v) for v in eqn.invars], unknown), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _operator(eqn: Any, operands: Values, unknown: jax.Array) -> Values:
    name = eqn.primitive.name
    if name in CALLS:
        return _run(called(eqn), operands, unknown)
    if name in _COPIES:
        return operands
    if not any(map(_moving, operands)):
        if eqn.effects or not all(map(_known, operands)):
            return [_shape(v) for v in eqn.outvars]
        return _constant(eqn, operands)
    match name:
        case "cond":
            return _branch(eqn, operands, unknown)
        case "scan":
            return _scan(eqn, operands, unknown)
        case "while":
            return _while(eqn, operands, unknown)
        case "dynamic_slice" | "dynamic_update_slice":
            operands = _inside(eqn, operands)
        case _ if name.startswith("scatter"):
            operands = _scattered(eqn, operands)
    return bound(eqn, _filled(operands, unknown))


def _constant(eqn: Any, operands: Values) -> Values:
    """The results of an operator of known values: by NumPy where it can, which compiles nothing."""
    found = computed(eqn, [np.asarray(a) if kind(a) in KINDS else None for a in operands])
    if found is not None:
        return [found]
    with jax.ensure_compile_time_eval():
        return bound(eqn, operands)


def _branch(eqn: Any, operands: Values, unknown: jax.Array) -> Values:
    index, *given = operands
    branches = eqn.params["branches"]
    if _known(index):
        return _run(branches[min(max(int(index), 0), len(branches) - 1)], given, unknown)
    places = [i for i, a in enumerate(given) if _moving(a)]

    def made(branch: Any) -> Callable[..., Values]:
        def run(*moved: Any) -> Values:
            full = dict(enumerate(given)) | dict(zip(places, moved, strict=True))
            return _filled(_run(branch, list(full.values()), unknown), unknown)

        return run

    [which] = _filled([index], unknown)
    return list(jax.lax.switch(which, [made(branch) for branch in branches], *(given[i] for i in places)))


def _scan(eqn: Any, operands: Values, unknown: jax.Array) -> Values:
    fixed, carried = scan_counts(eqn)
    constants, carry = operands[:fixed], _filled(operands[fixed : fixed + carried], unknown)

    def body(carry: Values, x: Values) -> tuple[Values, Values]:
        results = _filled(_run(eqn.params["jaxpr"], [*constants, *carry, *x], unknown), unknown)
        return results[:carried], results[carried:]

    options = {name: eqn.params[name] for name in ("length", "reverse")}
    last, ys = jax.lax.scan(body, carry, _filled(operands[fixed + carried :], unknown), **options)
    return [*last, *ys]


def _while(eqn: Any, operands: Values, unknown: jax.Array) -> Values:
    tests, bodies = while_constants(eqn)
    constants, carry = operands[tests : tests + bodies], operands[tests + bodies :]

    def body(carry: Values) -> Values:
        return _filled(_run(eqn.params["body_jaxpr"], [*constants, *carry], unknown), unknown)

    # How often the body runs is not known, so nothing depends on the condition.
    last: Values = jax.lax.while_loop(lambda _: np.True_, body, _filled(carry, unknown))
    return last


def _inside(eqn: Any, operands: Values) -> Values:
    """The operands of a slice, whose known starts are moved so that it lies in the array, as JAX does."""
    first = 1 if eqn.primitive.name == "dynamic_slice" else 2
    window = eqn.params["slice_sizes"] if first == 1 else np.shape(operands[1])
    ends = [size - part for size, part in zip(eqn.invars[0].aval.shape, window, strict=True)]
    starts = zip(operands[first:], ends, strict=True)
    return [*operands[:first], *(np.clip(a, 0, end) if _known(a) else a for a, end in starts)]


def _scattered(eqn: Any, operands: Values) -> Values:
    """The operands of a scatter, whose places become unknown where one would be left out or moved."""
    array, places, updates = operands
    if not _known(places):
        return operands
    outside = (np.asarray(places) < 0) | (np.asarray(places) > _scatter_ends(eqn))
    return [array, _shape(eqn.invars[1]), updates] if np.any(outside) else operands


def _scatter_ends(eqn: Any) -> np.ndarray:
    """The last place at which each index of a scatter may start, so that its window lies in the array."""
    numbers = eqn.params["dimension_numbers"]
    shape, updates = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    batched = getattr(numbers, "operand_batching_dims", ())
    windowed = [d for d in range(len(shape)) if d not in numbers.inserted_window_dims and d not in batched]
    window = dict(zip(windowed, (updates[d] for d in numbers.update_window_dims), strict=True))
    return np.asarray([shape[d] - window.get(d, 1) for d in numbers.scatter_dims_to_operand_dims])

"""Numbers of a program that are known before it runs, and where the windows start that its gathers and scatters move.

Indices made of constants and of each other are computed by NumPy, so that nothing is compiled for them. What hangs on
anything else is not known: random starts stand for it, the same ones wherever one variable says where.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import numpy as np
from jax.extend import core

from gradlab.jaxprs.reading import host, jaxpr_of

Move = Callable[[np.ndarray, Any], np.ndarray]
Values = list[np.ndarray | None]  # None: not known

LARGEST = 10_000_000  # a longer array is not looked into
KINDS = ("i", "u", "b", "f")  # of the numbers that NumPy computes as XLA does


def _broadcast(array: np.ndarray, eqn: Any) -> np.ndarray:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    expanded = [1] * len(shape)
    for place, length in zip(places, array.shape, strict=True):
        expanded[place] = length
    return np.broadcast_to(array.reshape(expanded), shape)


def _slice(array: np.ndarray, eqn: Any) -> np.ndarray:
    p = eqn.params
    strides = p["strides"] or (1,) * array.ndim
    return array[tuple(slice(a, b, s) for a, b, s in zip(p["start_indices"], p["limit_indices"], strides, strict=True))]


def _reshape(array: np.ndarray, eqn: Any) -> np.ndarray:
    return array.reshape(eqn.outvars[0].aval.shape)


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """XLA's division of integers goes towards zero."""
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.maximum(np.abs(b), 1))


# Operators that only move the numbers of their operand.
MOVES: dict[str, Move] = {
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "transpose": lambda a, eqn: a.transpose(eqn.params["permutation"]),
    "rev": lambda a, eqn: np.flip(a, eqn.params["dimensions"]),
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "tile": lambda a, eqn: np.tile(a, eqn.params["reps"]),
    "copy": lambda a, eqn: a,
}
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "sign": np.sign,
    "max": np.maximum,
    "min": np.minimum,
    "rem": np.fmod,
    "div": lambda a, b: np.divide(a, b) if a.dtype.kind == "f" else _quotient(a, b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "clamp": lambda low, a, high: np.clip(a, low, high),
    "select_n": lambda which, *cases: np.choose(which, cases),
}

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": np.sum,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_and": np.all,
    "reduce_or": np.any,
}


def kind(array: Any) -> str:
    """NumPy's letter for the kind of its numbers; nothing for what has none, such as a random key."""
    return getattr(getattr(array, "dtype", None), "kind", "")


def known(constant: Any) -> np.ndarray | None:
    """A constant's integers or bools; None for other numbers, and for what has no values yet."""
    if isinstance(constant, int):  # a literal, of a class of JAX's own or of Python's
        return np.asarray(bool(constant) if isinstance(constant, bool) else int(constant))
    if isinstance(constant, jax.core.Tracer) or kind(constant) not in ("i", "u", "b"):
        return None
    return host(constant) if np.size(constant) <= LARGEST else None


def computed(eqn: Any, operands: Values) -> np.ndarray | None:
    """The numbers that an operator without programs makes of known ones; None where they are not known."""
    aval = eqn.outvars[0].aval
    arrays = [a for a in operands if a is not None]
    if kind(aval) not in KINDS or len(arrays) < len(operands) or prod(aval.shape) > LARGEST:
        return None
    name, p = eqn.primitive.name, eqn.params
    if name in MOVES:
        found = MOVES[name](arrays[0], eqn)
    elif name in _ARITHMETIC:
        with np.errstate(all="ignore"):
            found = _ARITHMETIC[name](*arrays)
    elif name in _REDUCTIONS and arrays[0].size:
        found = _REDUCTIONS[name](arrays[0], axis=tuple(p["axes"]))
    elif name == "convert_element_type":
        found = arrays[0]
    elif name == "concatenate":
        found = np.concatenate(arrays, axis=p["dimension"])
    elif name == "stack":
        found = np.stack(arrays, axis=p["axis"])
    elif name == "iota":
        along = [-1 if axis == p["dimension"] else 1 for axis in range(len(aval.shape))]
        found = np.broadcast_to(np.arange(aval.shape[p["dimension"]]).reshape(along), aval.shape)
    else:
        return None
    return found.astype(aval.dtype)


class Indices:
    """What is known of the integers of one program, and where its windows start.

    Args:
        closed: the program.
        given: the values of its arguments, None for those that are not known.
        random: draws the starts that are not known.
    """

    def __init__(self, closed: Any, given: Values, random: np.random.Generator) -> None:
        jaxpr = jaxpr_of(closed)
        self.values: dict[Any, np.ndarray | None] = dict(zip(jaxpr.invars, given, strict=True))
        self.values.update(zip(jaxpr.constvars, map(known, getattr(closed, "consts", ())), strict=False))
        self.random = random
        self.drawn: dict[Any, dict[int, np.ndarray]] = {}

    def read(self, v: Any) -> np.ndarray | None:
        """The integers that a variable stands for, where they are known."""
        return known(v.val) if isinstance(v, core.Literal) else self.values.get(v)

    def starts(self, eqn: Any, limits: dict[int, int], count: int) -> dict[int, np.ndarray]:
        """Where `count` windows start: for each of these axes of the operand the first of their places.

        Args:
            eqn: a gather, a scatter, a `dynamic_slice` or a `dynamic_update_slice`.
            limits: for each axis along which a window may lie here or there, the last place where it may start.
            count: how many windows there are.
        """
        said = {d: place for d, place in _said(eqn).items() if d in limits}
        found: dict[int, np.ndarray] = {}
        for d, (atom, column) in said.items():
            values = self.read(atom)
            if values is not None:
                found[d] = np.clip(values.reshape(count, -1)[:, column].astype(int), 0, limits[d])
        free = {d: limits[d] for d in said if d not in found}
        key = (*(id(said[d][0]) for d in free), *free.items(), count)
        if key not in self.drawn:
            self.drawn[key] = self._draw(free, count)
        return found | self.drawn[key]

    def _draw(self, limits: dict[int, int], count: int) -> dict[int, np.ndarray]:
        """Each place once where there are as many as windows, else places at random."""
        extents = tuple(limit + 1 for limit in limits.values())
        flat = np.arange(count) if count == prod(extents) else self.random.integers(0, prod(extents), count)
        return dict(zip(limits, np.unravel_index(flat, extents), strict=True)) if extents else {}


def _said(eqn: Any) -> dict[int, tuple[Any, int]]:
    """For each axis of what is read or written, the operand that says where windows start, and which column of it."""
    match eqn.primitive.name:
        case "dynamic_slice":
            return {d: (v, 0) for d, v in enumerate(eqn.invars[1:])}
        case "dynamic_update_slice":
            return {d: (v, 0) for d, v in enumerate(eqn.invars[2:])}
        case "gather":
            axes = eqn.params["dimension_numbers"].start_index_map
        case _:
            axes = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
    return {d: (eqn.invars[1], column) for column, d in enumerate(axes)}

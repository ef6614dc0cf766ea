"""What an optimizer is made of, read from its functions: to know it again, and to say its name.

`optax.adam(1e-3)` makes new functions in every call, which close over their numbers. Two optimizers are the same where
the code and the numbers are; a function that is not optax's own, such as a schedule, is the same only as itself, for
what it reads beyond what it closes over cannot be seen.
"""

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from types import CellType, FunctionType
from typing import Any

import jax
import numpy as np

from gradlab.types import Optimizer

# Arrays up to this size are told apart by their numbers, larger ones as objects.
FEW = 64


@dataclass(frozen=True)
class Known:
    """An optimizer that is equal to another one that does the same.

    >>> import optax
    >>> Known(optax.adam(1e-3)) == Known(optax.adam(1e-3)), Known(optax.sgd(0.1)) == Known(optax.sgd(0.2))
    (True, False)
    """

    optimizer: Optimizer = field(compare=False)
    identity: Hashable = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", _identity(self.optimizer, ()))


def _identity(value: Any, within: tuple[int, ...]) -> Hashable:
    if id(value) in within:  # a function that closes over itself
        return "itself", within.index(id(value))
    inner = lambda parts: tuple(_identity(part, (*within, id(value))) for part in parts)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value).__name__, repr(value)
    if isinstance(value, FunctionType) and _is_optax(value):
        defaults = (value.__defaults__, value.__kwdefaults__)
        return value.__code__, inner(_closure(value).items()), inner(defaults)
    if isinstance(value, functools.partial):
        return "partial", inner((value.func, *value.args)), inner(sorted(value.keywords.items()))
    if isinstance(value, (tuple, list)):
        return type(value), inner(value)
    if isinstance(value, Mapping):
        return type(value), inner(value.items())
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and np.size(value) <= FEW:
        return str(value.dtype), np.shape(value), np.asarray(plain(value)).tobytes()
    return value if _has_hash(value) else _Same(value)


def plain(leaf: Any) -> Any:
    """A random key as the integers that it is made of, anything else as it is."""
    return jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class _Same:
    """An object that cannot be hashed, equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:  # also of a record that may be hashed and holds what may not
        return False
    return True


def _is_optax(f: FunctionType) -> bool:
    return (f.__module__ or "").split(".")[0] == "optax"


def _closure(f: FunctionType) -> dict[str, Any]:
    """What a function closes over, by name."""
    return {name: _content(cell) for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)}


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def describe(optimizer: Optimizer) -> str:
    """An optimizer in words: its parts, with the numbers that they close over.

    >>> import optax
    >>> describe(optax.sgd(0.5, momentum=0.9))
    'chain(trace(decay=0.9, nesterov=False), scale(step_size=-0.5))'
    """
    return _describe(optimizer.update, ())


def _describe(value: Any, within: tuple[int, ...]) -> str:
    if isinstance(value, (tuple, list)):
        # Of a pair of init and update, the second says all.
        parts = value[1:] if hasattr(value, "update") else value
        return ", ".join(_describe(part, within) for part in parts)
    if not isinstance(value, FunctionType):
        return repr(value) if isinstance(value, (bool, int, float, complex, str)) else type(value).__name__
    if not _is_optax(value):
        return f"{value.__module__}.{value.__qualname__}"
    name = value.__qualname__.split(".")[0]
    inner = {n: v for n, v in _closure(value).items() if v is not None and id(v) not in within}
    told = {n: _describe(v, (*within, id(value))) for n, v in inner.items()}
    if list(inner) == ["tx"]:  # takes any number of extra arguments, and is the same otherwise
        return told["tx"]
    whole = (text if isinstance(inner[n], (tuple, FunctionType)) else f"{n}={text}" for n, text in told.items())
    return f"{name}({', '.join(whole)})"

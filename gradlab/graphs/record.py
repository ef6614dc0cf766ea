"""What a graph is made of: operators as nodes, with what they gave forward and what came back."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Numbers about an array that is too large to be shown.

    Attributes:
        min, max: of the finite numbers; of their absolute values where they are complex. NaN where there is none.
        rms: the root of their mean square.
        nonfinite: how many are infinite or NaN.
        size: how many there are.
    """

    min: float
    max: float
    rms: float
    nonfinite: int
    size: int

    def __str__(self) -> str:
        known = [f"{self.min:.3g} … {self.max:.3g}, rms {self.rms:.3g}"] if self.nonfinite < self.size else []
        bad = [f"{self.nonfinite} of {self.size} not finite"] if self.nonfinite else []
        return ", ".join(known + bad)


Shown = np.ndarray | Statistics


def statistics(array: np.ndarray) -> Statistics:
    """Numbers about an array.

    >>> print(statistics(np.array([3.0, 4.0, np.inf])))
    3 … 4, rms 3.54, 1 of 3 not finite
    """
    numbers = np.abs(array) if array.dtype.kind == "c" else array
    finite = np.isfinite(numbers)
    nonfinite = int(numbers.size - np.count_nonzero(finite))
    kept = numbers[finite] if nonfinite else numbers
    if not kept.size:
        return Statistics(np.nan, np.nan, np.nan if numbers.size else 0.0, nonfinite, int(numbers.size))
    least, largest = float(kept.min()), float(kept.max())
    unit = max(abs(least), abs(largest)) or 1.0
    rms = unit * float(np.sqrt(np.mean(np.square(kept / unit, dtype=np.float64))))
    return Statistics(least, largest, rms, nonfinite, int(numbers.size))


@dataclass(frozen=True)
class Node:
    """One operator, with its value forward and its adjoint backward.

    Attributes:
        id: its place in `Graph.nodes`; operators are in the order of execution.
        operator: JAX's name of it, or `input`, or `constant`.
        label: the path of an input, or the function that it calls; "" for most.
        inputs: the nodes that it reads, by id.
        expression: the same with literal numbers, such as `mul(%0, 2.0)`.
        shape, dtype: of the result; tuples where there are several.
        scope: the path of `jax.named_scope`s.
        source: the user's line, as `file:line`; "" where none is known.
        value: the result: an array of up to 1024 numbers, or else `Statistics`; a tuple where there are several.
        adjoint: ∂f/∂node, alike; None where there is none: integers, forward passes, and inside a custom rule.
        flops: operations forward, None where that is not known.
        owner: the node whose rule takes the place of this one's pullback; None for most.
        note: why there is no adjoint, where an operator has no pullback.
    """

    id: int
    operator: str
    label: str
    inputs: tuple[int, ...]
    expression: str
    shape: tuple
    dtype: Any
    scope: str
    source: str
    value: Any = field(repr=False)
    adjoint: Any = field(repr=False)
    flops: float | None = None
    owner: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Blame:
    """What made an input's derivative NaN, infinite, or zero wherever it is looked at.

    Attributes:
        kind: `nan`, `inf` or `zero`.
        where: the input, by argument and path.
        node: the operator, as a node of the graph, or of the program inside an operator that was opened to find it.
        source: the user's line, as `file:line`.
        message: what happened there, at which values, and the usual cure.
    """

    kind: Literal["nan", "inf", "zero"]
    where: str
    node: Node = field(repr=False)
    source: str
    message: str

    def __str__(self) -> str:
        born = f", born at {self.source}" if self.source else ""
        return f"{self.kind} in the derivative by {self.where}{born}: {self.message}"

"""Who made an input's derivative NaN, infinite or zero: the walk from the input back to the operator and its line."""

from typing import Any, Literal

import numpy as np

from gradlab.graphs import cures, cutting, nonfinite
from gradlab.graphs.build import Made, made
from gradlab.graphs.record import Blame
from gradlab.jaxprs import Traced, place, user_frame


def blame_of(whole: Made, only: int | None = None) -> Blame | None:
    """The gravest fault of one input, or of all: the first that is not finite, or else the first that is zero.

    Args:
        whole: a graph with adjoints.
        only: which input, None for all.
    """
    chosen = range(len(whole.names)) if only is None else (only,)
    kinds = {j: kind for j in chosen if (kind := _kind(whole, j))}
    for j in sorted(kinds, key=lambda j: kinds[j] == "zero"):
        if blame := _blame(whole, j, kinds[j]):
            return blame
    return None


def blame_of_part(program: Traced, point: Any, cotangent: Any, part: np.ndarray | None = None) -> Blame | None:
    """The fault of a program of one array, or what cuts off a part of it.

    Args:
        program, point: a traced function of one array to one array, and where.
        cotangent: of its output.
        part: numbers whose derivative is zero, as a mask; None where the derivative is not finite.
    """
    whole = made(program, [point], [cotangent], ("args",))
    if part is not None:
        cut = cutting.cut_of(whole, 0, part)
        return None if cut is None else _named(whole, "zero", "args", cut.made, cut.operator, cures.zero(cut))
    kind = _kind(whole, 0)
    return _blame(whole, 0, kind) if kind in ("nan", "inf") else None


def blame_of_results(program: Traced, point: Any) -> Blame | None:
    """The fault behind results of a program of one array that are not finite."""
    whole = made(program, [point], [], ("args",))
    fault = nonfinite.fault_of_results(whole)
    return None if fault is None else _named(whole, "nan", "args", fault.made, fault.operator, cures.nonfinite(fault))


def _kind(whole: Made, j: int) -> Literal["nan", "inf", "zero"] | None:
    reading = whole.passes.adjoints.get(whole.listing.inputs[j])
    if reading is None or not reading.statistics.size:
        return None
    if not reading.finite:
        return "nan" if np.isnan(np.asarray(reading.shown)).any() else "inf"
    return "zero" if reading.zero else None


def _blame(whole: Made, j: int, kind: Literal["nan", "inf", "zero"]) -> Blame | None:
    slot, name = whole.listing.inputs[j], whole.names[j]
    if kind != "zero":
        fault = nonfinite.fault_of(whole, [slot])
        return _named(whole, kind, name, fault.made, fault.operator, cures.nonfinite(fault))
    cut = cutting.cut_of(whole, j)
    return None if cut is None else _named(whole, kind, name, cut.made, cut.operator, cures.zero(cut))


def _named(
    whole: Made, kind: Literal["nan", "inf", "zero"], where: str, made: Made, operator: int | None, message: str
) -> Blame:
    if operator is None:
        return Blame(kind, where, whole.nodes[whole.names.index(where)], "", message)
    source = place(user_frame(made.listing.operators[operator].frames))
    return Blame(kind, where, made.node(operator), source, message)

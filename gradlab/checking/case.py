"""What is judged: a function along directions, what its values tell, and what its derivative gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradlab.checking.flat import Array, Flat
from gradlab.checking.probes import COTANGENTS, Directions, Measured, Probes
from gradlab.checking.result import NAN, Finding, Kind
from gradlab.finite import Slopes, slopes
from gradlab.graphs.record import Blame

# The rounding of J v, in roundings of the size of f and of its slopes.
ROUNDED = 100.0
# Values that jump about by more roundings than this are noisy.
JUMPY = 1e3


@dataclass(frozen=True)
class Case:
    """What is judged, how it is measured, and along what.

    Attributes:
        flat, probes: the function and its compiled programs.
        directions: along which.
        random: for the cotangents.
        order: 1, or 2 where f is itself a first derivative.
        least: the least relative error that counts.
    """

    flat: Flat
    probes: Probes
    directions: Directions
    random: np.random.Generator
    order: int
    least: float

    @cached_property
    def v(self) -> Array:
        """The directions in float64, `[D, n]`."""
        return np.asarray(self.directions.v, np.float64)

    def finding(
        self,
        kind: Kind,
        where: str,
        mode: str,
        message: str,
        error: float = NAN,
        doubt: float = NAN,
        blame: Blame | None = None,
    ) -> Finding:
        """A finding of this case's order, with who is to blame; what is `wrong` at order 2 is called `second`."""
        kind = "second" if kind == "wrong" and self.order == 2 else kind
        source = blame.source if blame else ""
        if blame:
            message += f" Born at {source}: {blame.message}" if source else f" Behind it: {blame.message}"
        return Finding(kind, where, self.order, mode, float(error), float(doubt), source, message)

    @cached_property
    def z(self) -> Array:
        """Random numbers for the cotangents, `[P, m]`."""
        return self.random.normal(size=(COTANGENTS, self.flat.m))

    @cached_property
    def first(self) -> Measured:
        """What the probes give for the directions, with cotangents for every output."""
        return self.probes.run(self.directions.v, self.z, np.ones(self.flat.m))

    @cached_property
    def slopes(self) -> Slopes:
        """What the values tell, arrays of shape `[D, m]`."""
        return self.told_by(self.first.values)

    @cached_property
    def kinks(self) -> Array:
        """Where the slope bends, `[D, m]`."""
        return self.bent(self.slopes)

    @cached_property
    def clear(self) -> Array:
        """Where the slope is known and does not bend, `[D, m]`."""
        return np.isfinite(self.slopes.best.uncertainty) & ~self.kinks

    @cached_property
    def told(self) -> Array:
        """The outputs whose slopes are clear along every direction of own steps, `[m]`."""
        return self.clear[self.directions.own].all(0)

    @cached_property
    def rows(self) -> Array:
        """The directions along which the slopes of all these outputs are clear, `[D]`."""
        return (self.clear | ~self.told).all(1)

    @cached_property
    def scale(self) -> Array:
        """The largest slope of each output over all directions, `[m]`."""
        known = self.told & self.clear
        return np.where(known, np.abs(self.slopes.best.value), 0.0).max(0, initial=0.0)

    @cached_property
    def usual(self) -> Array:
        """The largest slope of each output over the directions that move the same leaf, or all of them, `[D, m]`."""
        sizes = np.where(self.told & self.clear, np.abs(self.slopes.best.value), 0.0)
        usual = np.broadcast_to(self.scale, sizes.shape).copy()
        for span, group in zip(self.directions.spans, self.directions.groups, strict=True):
            outside = np.delete(self.v, np.arange(span.start, span.stop), axis=1)
            usual[~outside.any(1)] = sizes[list(group)].max(0)
        return usual

    @cached_property
    def rounding(self) -> Array:
        """What J v may round by along any probe, for each output, `[m]`: it passes through terms of f's own size."""
        return ROUNDED * self.flat.eps * self.size

    @cached_property
    def slack(self) -> Array:
        """What a right rule may round J v by at worst, for each output, `[m]`."""
        return self.flat.eps**0.75 * self.size

    @cached_property
    def size(self) -> Array:
        """The size of each output and of its slopes, `[m]`."""
        return np.abs(self.first.values[0, 0]) + self.scale

    @cached_property
    def noise(self) -> Array:
        """How much the values jump about along each direction, where that is not their rounding, `[D, m]`."""
        values = np.abs(self.first.values)
        largest = np.where(np.isfinite(values), values, 0.0).max(axis=1)
        return np.where(self.slopes.noise > JUMPY * self.flat.eps * largest, self.slopes.noise, 0.0)

    @cached_property
    def measured(self) -> Measured:
        """What the probes give, with cotangents for the outputs that are told."""
        return self.first if self.told.all() else self.probes.run(self.directions.v, self.z, self.told)

    def told_by(self, values: Array) -> Slopes:
        """The slopes that values `[D, 1 + 2 steps, m]` tell, arrays of shape `[D, m]`."""
        count, points, m = values.shape
        flat = values.transpose(1, 0, 2).reshape(points, count * m)
        return slopes(flat, self.flat.eps, pieces=self.flat.f.has_pieces).reshaped((count, m))

    def along(self, v: Array) -> tuple[Slopes, Array | None]:
        """What the values tell along other directions, as many as the first ones, and J v; arrays of shape `[D, m]`."""
        other = self.probes.run(v, self.z, self.told)
        return self.told_by(other.values), other.forward

    def alone(self, place: "Place") -> tuple[Slopes, Array | None]:
        """The same along what a fault needs, arrays of shape `[1, m]`; by one unit of a single number."""
        v = np.zeros_like(self.directions.v)
        v[0] = place.v
        found, pushed = self.along(v)
        return found.rows(slice(1)).scaled(1 / place.step), None if pushed is None else pushed[:1] / place.step

    def bent(self, found: Slopes) -> Array:
        """Where the one-sided slopes differ by more than their uncertainties and rounding, `[D, m]`."""
        gap = np.abs(found.right.value - found.left.value)
        size = np.maximum(np.abs(found.right.value), np.abs(found.left.value))
        return found.kink & (gap > self.least * size)

    def culprit(self, faulty: Callable[..., Any], row: int) -> "Place":
        """Where in the input a fault along one direction comes from, by halving what the direction moves.

        Args:
            faulty: slopes, J v and v along other directions, to booleans `[D]`.
            row: the direction that shows the fault.
        """
        v = self.directions.v[row]
        inside = np.flatnonzero(v)
        while inside.size > 1:
            parts = np.array_split(inside, min(max(len(self.directions.v), 2), inside.size))
            shown = next((part for part in self._shown(faulty, v, parts)), None)
            if shown is None:
                break
            inside = shown
        kept = np.zeros_like(v)
        kept[inside] = np.abs(v[inside]) if inside.size == 1 else v[inside]
        if inside.size == 1:
            return Place(self.flat.input_name(int(inside[0])), kept, float(kept[inside[0]]), True)
        return Place(self.flat.path(inside), kept, 1.0, False)

    def _shown(self, faulty: Callable[..., Any], v: Array, parts: list[Array]) -> Iterator[Array]:
        """The parts of a direction that show a fault alone, as many tried at once as there are directions."""
        count = len(self.directions.v)
        for start in range(0, len(parts), count):
            some, trial = parts[start : start + count], np.zeros((count, v.size), v.dtype)
            for i, part in enumerate(some):
                trial[i, part] = v[part]
            shows = np.asarray(faulty(*self.along(trial), np.asarray(trial, np.float64)))
            yield from (part for part, one in zip(some, shows, strict=False) if one)


@dataclass(frozen=True)
class Place:
    """What of the input a fault needs to show.

    Attributes:
        name: the path of one number; of a leaf, or "args", where only several numbers together show the fault.
        v: the direction that moves this alone, `[n]`.
        step: the step of a single number, forward; else 1.
        single: whether it is one number.
    """

    name: str
    v: Array
    step: float
    single: bool

    @property
    def phrase(self) -> str:
        """How a slope here is called."""
        return f"by {self.name}" if self.single else "along a probe"

"""Where to cut a program, and in which order to multiply: what `gradlab.mode.waist` plans with.

Source: Griewank and Naumann, Accumulating Jacobians as chained sparse matrix products, Mathematical Programming 95
(2003); Naumann, The Art of Differentiating Computer Programs (2012), section 3.3.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf
from typing import Any, NamedTuple, TypeAlias, assert_never

import jax

from gradlab.jaxprs.segments import Flow, Schedule, Step
from gradlab.mode.dense import DIRECTIONS, Direction
from gradlab.mode.support import obstacle

# Stretches between steps that lack a rule: the work of planning grows with their cube.
_STRETCHES = 12
# A maximal flow in more steps than this is given up: each step walks through the whole program.
_AUGMENTATIONS = 16
# Operators with rules for both modes, whatever their parameters; all others are tried.
_SMOOTH = """
abs add add_any broadcast_in_dim concatenate conv_general_dilated convert_element_type copy cos cosh cumsum div
dot_general dynamic_slice dynamic_update_slice erf exp exp2 expand_dims expm1 gather integer_pow log log1p logistic max
min mul neg pad pow reduce_max reduce_min reduce_sum reshape rev rsqrt select_n sign sin sinh slice split sqrt square
squeeze stack stop_gradient sub tan tanh transpose"""


class Part(NamedTuple):
    """The Jacobian between two places, by one pass for each number that crosses the first, or the last."""

    start: int
    stop: int
    direction: Direction


# A segment, or the product of what lies before a cut and what lies behind it.
Route: TypeAlias = "Part | tuple[Route, Route]"


def parts_of(route: Route) -> list[Part]:
    """The segments of a route, in the order of execution."""
    return [route] if isinstance(route, Part) else [*parts_of(route[0]), *parts_of(route[1])]


@dataclass(frozen=True, eq=False)
class Chain:
    """The dynamic programme over the places of one schedule that may be worth a cut.

    Attributes:
        schedule: the program in one order.
        lacking: the steps that have no rule for a direction; see `lacking_rules`.
    """

    schedule: Schedule
    lacking: dict[Direction, frozenset[Step]]

    @cached_property
    def best(self) -> tuple[float, Route]:
        """The least work, and the route that takes it; infinite work where no route can run.

        With wₖ numbers at place k and cᵢⱼ the work of the segment between i and j,
        cost(i, j) = min(wᵢ cᵢⱼ, wⱼ cᵢⱼ, minₖ cost(i, k) + cost(k, j) + 2 wᵢ wₖ wⱼ).
        """
        places, widths = self._places(), self.schedule.widths
        best: dict[tuple[int, int], tuple[float, Route]]
        best = {(i, j): self.segment(i, j) for i in places for j in places if i < j}
        for length in range(2, len(places)):
            for i, j in zip(places, places[length:], strict=False):
                for k in (k for k in places if i < k < j):
                    (before, left), (after, right) = best[i, k], best[k, j]
                    cost = before + after + 2 * widths[i] * widths[k] * widths[j]
                    if cost < best[i, j][0]:
                        best[i, j] = cost, (left, right)
        return best.get((0, places[-1]), (inf, Part(0, 0, "forward")))

    @cached_property
    def narrowest(self) -> tuple[float, int] | None:
        """The least width between two steps, and the first place that has it; None for a single step."""
        return min(
            ((w, k) for k, w in enumerate(self.schedule.widths) if 0 < k < len(self.schedule.steps)), default=None
        )

    def passes(self, part: Part) -> int:
        """How often the segment is passed through."""
        match part.direction:
            case "forward":
                return int(self.schedule.widths[part.start])
            case "reverse":
                return int(self.schedule.widths[part.stop])
            case _:
                assert_never(part.direction)

    def segment(self, i: int, j: int) -> tuple[float, Part]:
        """The work of a segment that is not cut, in its better mode."""
        work = self.schedule.works[j] - self.schedule.works[i]
        runs = [Part(i, j, d) for d in DIRECTIONS if self._lacks[d][i] == self._lacks[d][j]]
        costs = [(self.passes(part) * work, part) for part in runs]
        return min(costs, default=(inf, Part(i, j, "forward")))

    @cached_property
    def _lacks(self) -> dict[Direction, list[int]]:
        """How many steps before each place have no rule for a direction."""
        steps = self.schedule.steps
        return {d: [0, *accumulate(int(step in self.lacking[d]) for step in steps)] for d in DIRECTIONS}

    def _places(self) -> list[int]:
        """Both ends of the program, and of each stretch of steps with both rules its ends and its narrowest place.

        Where all steps have both rules no other cuts take less work: with w numbers at the narrowest place, w passes go
        through every step, and any other cuts take at least as many, and as large a last product. Only a step with one
        rule may need a cut beside it.
        """
        widths, end = self.schedule.widths, len(self.schedule.steps)
        kinds = [(i, d) for i, step in enumerate(self.schedule.steps) for d in DIRECTIONS if step in self.lacking[d]]
        stretches = []
        for (i, before), (j, after) in pairwise([(-1, None), *kinds, (end, None)]):
            if i < j:
                narrowest = min(range(i + 1, j + 1), key=lambda k: widths[k])
                same_rules = before == after or None in (before, after)
                stretches.append((same_rules, widths[narrowest], {i + 1, narrowest, j}))
        # A cut must lie where the rules change.
        found = {0, end}.union(*(places for *_, places in sorted(stretches, key=lambda s: s[:2])[:_STRETCHES]))
        return sorted(k for k in found if k in (0, end) or widths[k] < inf)


def lacking_rules(flow: Flow) -> dict[Direction, frozenset[Step]]:
    """The steps that a derivative goes through and that have no rule for a direction, found by tracing them alone."""
    smooth = _SMOOTH.split()
    kinds: dict[Any, list[Step]] = {}
    for step in flow.middle:
        if step.name not in smooth and flow.carries(step):
            shapes = tuple((flow.shapes[s].shape, str(flow.shapes[s].dtype), s in flow.moving) for s in step.operands)
            kinds.setdefault((step.key, shapes), []).append(step)
    return {d: frozenset(s for kind in _refused(flow, list(kinds.values()), d) for s in kind) for d in DIRECTIONS}


def _refused(flow: Flow, kinds: list[list[Step]], direction: Direction) -> list[list[Step]]:
    """The kinds of step that have no rule, by halves: where all of them have one, a single trace says so."""
    derivatives = [_derivative(flow, kind[0], direction) for kind in kinds]
    operands = [[flow.shapes[s] for s in kind[0].operands] for kind in kinds]
    together = lambda operands: [take(a) for take, a in zip(derivatives, operands, strict=True)]
    if not kinds or obstacle(together, operands) is None:
        return []
    if len(kinds) == 1:
        return kinds
    half = len(kinds) // 2
    return [*_refused(flow, kinds[:half], direction), *_refused(flow, kinds[half:], direction)]


def _derivative(flow: Flow, step: Step, direction: Direction) -> Callable[[list[Any]], Any]:
    """The derivative of one step along what moves, as a function of its operands."""
    places = [i for i, s in enumerate(step.operands) if s in flow.moving]
    results = [i for i, s in enumerate(step.results) if s in flow.moving]

    def derivative(operands: list[Any]) -> Any:
        def g(*moved: Any) -> list[Any]:
            full = list(operands)
            for i, a in zip(places, moved, strict=True):
                full[i] = a
            outputs = step.run(full)
            return [outputs[i] for i in results]

        moved = [operands[i] for i in places]
        match direction:
            case "forward":
                return jax.jvp(g, moved, moved)[1]
            case "reverse":
                y, pull = jax.vjp(g, *moved)
                return pull(y)
            case _:
                assert_never(direction)

    return derivative


def narrow_order(flow: Flow, limit: float) -> tuple[int, ...] | None:
    """An order of the middle in which the narrowest place that there can be lies between two steps.

    The order in which a program was written is one of many. The fewest numbers that cross in any of them are a minimal
    cut, among sets of steps that hold whatever their members need.

    Args:
        flow: the program.
        limit: a width that is too large to matter.

    Returns:
        The order; None where the written one has such a place already, where no place is narrower than the limit, or
        where it takes too long to find.

    Source: Ford and Fulkerson (1956); Edmonds and Karp, Journal of the ACM 19 (1972), for the shortest paths.
    """
    residual, width = _network(flow), 0.0
    for _ in range(_AUGMENTATIONS):
        path, reached = _shortest(residual)
        if not path:
            before = [i for i in range(len(flow.middle)) if ("step", i) in reached]
            after = [i for i in range(len(flow.middle)) if ("step", i) not in reached]
            return (*before, *after) if before and after and before[-1] > after[0] else None
        room = min(residual[a][b] for a, b in path)
        for a, b in path:
            residual[a][b] -= room
            residual[b][a] = residual[b].get(a, 0.0) + room
        width += room
        if width >= limit:
            return None
    return None


Node = tuple[str, int]
Network = dict[Node, dict[Node, float]]
_SOURCE, _SINK = ("source", 0), ("sink", 0)


def _network(flow: Flow) -> Network:
    """Moving slots as edges of their sizes; edges without an end of room keep a step with what it needs and makes."""
    network: Network = {_SOURCE: {}, _SINK: {}}

    def edge(a: Node, b: Node, room: float = inf) -> None:
        network.setdefault(a, {})[b] = room
        network.setdefault(b, {})

    for s in flow.moving:
        edge(("made", s), ("used", s), float(flow.size(s)))
    for s in flow.moving.intersection(flow.inputs):
        edge(_SOURCE, ("made", s))
    for s in flow.moving.intersection(flow.targets):
        edge(("used", s), _SINK)
    made = {s for step in flow.middle for s in step.results}.union(flow.inputs)
    for i, step in enumerate(flow.middle):
        for s in made.intersection(step.operands):
            edge(("step", i), ("made", s))
            if s in flow.moving and flow.carries(step):
                edge(("used", s), ("step", i))
        for s in step.results:
            edge(("step", i), ("made", s))
            edge(("made", s), ("step", i))
    return network


def _shortest(residual: Network) -> tuple[list[tuple[Node, Node]], dict[Node, Node]]:
    """The edges of a shortest path from the source to the sink, none where there is no path, and what was reached."""
    came, queue = {_SOURCE: _SOURCE}, deque([_SOURCE])
    while queue and _SINK not in came:
        a = queue.popleft()
        for b, room in residual[a].items():
            if room > 0 and b not in came:
                came[b] = a
                queue.append(b)
    path, b = [], _SINK
    while b in came and b != _SOURCE:
        path.append((came[b], b))
        b = came[b]
    return path, came

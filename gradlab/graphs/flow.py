"""How large values and adjoints are from layer to layer: where gradients vanish, and where they explode."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import inf, nan, sqrt
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gradlab.errors import OptionError
from gradlab.graphs.record import Node, Statistics, statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Layer:
    """One step of a flow.

    Attributes:
        name: a depth, or a scope.
        value: root mean square of the values there; infinite where one is infinite or NaN.
        adjoint: of the adjoints; NaN where there are none.
        ratio: the adjoints' size over that of the layer after it: what the gradient shrinks or grows by on its way back
            through that layer. NaN for the last one.
    """

    name: str
    value: float
    adjoint: float
    ratio: float


@dataclass(frozen=True)
class Flow:
    """Sizes of values and adjoints, from the inputs to the output.

    Attributes:
        layers: in the order of execution.
        by: `depth` or `scope`.
        name: f's name.
    """

    layers: tuple[Layer, ...]
    by: Literal["depth", "scope"]
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON scalars, lists and dicts."""
        return {"name": self.name, "by": self.by, "layers": [asdict(layer) for layer in self.layers]}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw both sizes over the layers, on a logarithmic scale."""
        from gradlab import plots

        return plots.flow([self], ax)

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [len(self.by)])
        head = f"{self.by:{width}}  {'value':>9}  {'adjoint':>9}  {'ratio':>9}"
        rows = [f"{x.name:{width}}  {x.value:9.3g}  {x.adjoint:9.3g}  {x.ratio:9.3g}" for x in self.layers]
        return "\n".join([f"flow of {self.name}", head, *rows])

    def __repr__(self) -> str:
        return f"Flow({self.name}: {len(self.layers)} layers by {self.by})"


def flow_of(nodes: Sequence[Node], by: str | None, name: str) -> Flow:
    """The flow through the operators that depend on an input. See `Graph.flow`."""
    moved = _dependent(nodes)
    scoped = any(node.scope for node in moved)
    if by not in (None, "depth", "scope"):
        raise OptionError(f"by must be 'depth', 'scope' or None, but got {by!r}.")
    if by == "scope" and not scoped:
        raise OptionError("by='scope' needs scopes: put each layer into `with jax.named_scope('layer1'):`.")
    if by == "depth" or not scoped:
        return Flow(_layers(_by_depth(nodes, moved)), "depth", name)
    return Flow(_layers(_by_scope(moved)), "scope", name)


def _dependent(nodes: Sequence[Node]) -> list[Node]:
    """Operators with an adjoint or values that depend on an input; those inside of a custom rule left out."""
    reached = {node.id for node in nodes if node.operator == "input"}
    found = []
    for node in nodes:
        if node.owner is None and reached.intersection(node.inputs) and _inexact(node):
            reached.add(node.id)
            found.append(node)
    return found


def _inexact(node: Node) -> bool:
    dtypes = node.dtype if isinstance(node.dtype, tuple) else (node.dtype,)
    return any(np.dtype(d).kind in "fcV" for d in dtypes if d is not None and not _is_key(d))


def _is_key(dtype: Any) -> bool:
    return not isinstance(dtype, np.dtype)


def _by_depth(nodes: Sequence[Node], moved: Sequence[Node]) -> dict[str, list[Node]]:
    """Nodes by the longest way from an input, counted in operators."""
    depth = {node.id: 0 for node in nodes}
    found: dict[str, list[Node]] = {}
    for node in moved:
        depth[node.id] = 1 + max(depth[i] for i in node.inputs)
    for node in sorted(moved, key=lambda node: depth[node.id]):
        found.setdefault(str(depth[node.id]), []).append(node)
    return found


def _by_scope(moved: Sequence[Node]) -> dict[str, list[Node]]:
    """For each scope the nodes that are read outside of it: what leaves a layer."""
    scope = {node.id: node.scope for node in moved}
    leaves = {i for node in moved for i in node.inputs if i in scope and scope[i] != node.scope}
    leaves |= {node.id for node in moved} - {i for node in moved for i in node.inputs}
    found: dict[str, list[Node]] = {}
    for node in moved:
        if node.scope and node.id in leaves:
            found.setdefault(node.scope, []).append(node)
    return found


def _layers(groups: dict[str, list[Node]]) -> tuple[Layer, ...]:
    names = list(groups)
    values = [_rms(node.value for node in groups[name]) for name in names]
    adjoints = [_rms(node.adjoint for node in groups[name]) for name in names]
    ratios = [a / b if b else nan for a, b in itertools.pairwise(adjoints)] + [nan]
    return tuple(Layer(*row) for row in zip(names, values, adjoints, ratios[: len(names)], strict=True))


def _rms(shown: Iterable[Any]) -> float:
    """Root mean square of everything shown; NaN for nothing, infinite where a number is not finite."""
    found = [one for many in shown for one in (many if isinstance(many, tuple) else (many,)) if one is not None]
    numbers = [one if isinstance(one, Statistics) else statistics(one) for one in found]
    size = sum(one.size for one in numbers)
    if any(one.nonfinite for one in numbers):
        return inf
    largest = max((one.rms for one in numbers), default=0.0)
    if not size or not largest > 0:
        return 0.0 if size else nan
    return largest * sqrt(sum(one.size * (one.rms / largest) ** 2 for one in numbers) / size)

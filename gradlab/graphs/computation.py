"""The computation graph of a function at a point: operators, values forward, adjoints backward."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gradlab.errors import NotScalarError, OptionError
from gradlab.graphs.blaming import blame_of
from gradlab.graphs.build import Made, made_of, opened
from gradlab.graphs.flow import Flow, flow_of
from gradlab.graphs.record import Blame, Node
from gradlab.types import Fn, PyTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Graph:
    """Operators in the order of execution, each with its value forward and its adjoint backward.

    Attributes:
        nodes: the inputs, what f closes over, and the operators; a node's `id` is its place here.
        name: f's name.
    """

    nodes: tuple[Node, ...]
    name: str
    _made: Made = field(repr=False)

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes of the differentiable inputs; their adjoints are the gradient."""
        return self.nodes[: len(self._made.names)]

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The nodes that hold f's outputs."""
        return tuple(self.nodes[self._made.node_of[slot]] for slot in self._made.listing.outputs)

    def open(self, node: int | Node, iteration: int | None = None) -> "Graph":
        """The graph inside an operator: of a loop at one iteration, of the branch that a `cond` took, of a closed call.

        Args:
            node: a node or its id.
            iteration: of a loop, counted from 0 in the order of execution; the last where None.

        Raises:
            OptionError: there is no such node, no such iteration, or no program inside.
        """
        i = (node.id if isinstance(node, Node) else node) - len(self._made.held)
        if not 0 <= i < len(self._made.listing.operators):
            raise OptionError(f"node must be an operator, of id {len(self._made.held)} … {len(self.nodes) - 1}.")
        at = "" if iteration is None else f" at iteration {iteration}"
        return _graph(opened(self._made, i, iteration), f"{self._made.listing.operators[i].name}{at} in {self.name}")

    def blame(self, where: str | None = None) -> Blame | None:
        """Why the derivative by an input is NaN, infinite or identically zero: which operator, line, values, and cure.

        Args:
            where: the path of one input, such as `args[0]['w']`; None for all inputs: the first whose derivative is not
                finite, or else the first where it is zero.

        Returns:
            The blame, or None where nothing is wrong. A derivative that is zero at a stationary point, or by a factor
            that happens to be zero, is right: it moves when the inputs do.

        Raises:
            NotScalarError: the graph has no adjoints.
            OptionError: there is no such input.
        """
        self._require_adjoints("blame")
        known = [node.label for node in self.inputs]
        if where is not None and where not in known:
            raise OptionError(f"where must be one of {', '.join(known)}, but got {where!r}.")
        return blame_of(self._made, None if where is None else known.index(where))

    def flow(self, by: Literal["depth", "scope"] | None = None) -> Flow:
        """How large values and adjoints are from layer to layer: vanishing and exploding gradients.

        Args:
            by: `depth`, the longest way from an input, or `scope`, the path of named scopes; None for scopes where the
                function has some.

        Returns:
            The layers, from input to output. Their adjoints are NaN where f has several outputs and the graph was made
            without a cotangent.

        Raises:
            OptionError: by is something else, or the function has no scopes.
        """
        return flow_of(self.nodes, by, self.name)

    def to_dot(self) -> str:
        """The graph in the language of Graphviz, forward edges solid, operators by scope."""
        from gradlab.graphs.dot import dot

        return dot(self.nodes, self.name)

    def to_html(self) -> str:
        """One self-contained page: hover over an operator, or choose it, to see its forward and its backward."""
        from gradlab.graphs.page import page

        return page(self.nodes, self.name, self._made.pullback_texts())

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the graph in layers, with values and adjoints where there are few nodes."""
        from gradlab import plots

        return plots.graph(self.nodes, self.name, ax)

    def _repr_html_(self) -> str:
        from gradlab.graphs.table import html

        return html(self.nodes)

    def __str__(self) -> str:
        from gradlab.graphs.table import text

        return text(self.nodes, self.name)

    def __repr__(self) -> str:
        return f"Graph({self.name}: {len(self.nodes)} nodes)"

    def _require_adjoints(self, wanted: str) -> None:
        if not self._made.runner.seeds:
            shapes = ", ".join(str(node.shape) for node in self.outputs)
            raise NotScalarError(
                f"{wanted} needs adjoints, but f returns {shapes or 'nothing'} and no cotangent was given. "
                "Reduce the output to a real scalar, or pass cotangent= with the output's structure."
            )


def graph(
    f: Fn,
    *args: PyTree,
    cotangent: PyTree = None,
    has_aux: bool = False,
    open_calls: bool = True,
    keep_values: bool = False,
) -> Graph:
    """The computation graph of f at args: every operator with its value forward and its adjoint ∂f/∂node backward.

    f is traced, and then run operator by operator; the cotangent is pulled back operator by operator, by each one's own
    rule. Floating leaves of args are inputs; all else is held fixed. `scan`, `while_loop` and `cond` are one operator
    each; `Graph.open` looks inside. A `while_loop` is pulled back too, since its number of iterations is known here.

    Arrays of up to 1024 numbers, and those of the inputs, are shown whole, others as statistics. Up to 512 MB of values
    stay from forward to backward; beyond that they are computed anew, from about √n snapshots of n blocks of operators.

    Args:
        f: a function of pytrees.
        args: where.
        cotangent: of f's output, with its structure; 1 for a real scalar. Without one, other outputs have no adjoints.
        has_aux: f returns a pair, and only its first part is differentiated.
        open_calls: list what `jit`, `checkpoint` and functions with rules of their own call; else each is one operator.
        keep_values: show arrays of any size whole.

    Raises:
        ArgumentError: f is no function, or cannot be traced.
        StructureError, ShapeError, DtypeError: the cotangent does not fit the output.

    Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), section 3.2.

    >>> worked = graph(lambda theta: (2.0 * theta - 9.0) ** 2, 5.0)
    >>> [(node.operator, float(node.value), float(node.adjoint)) for node in worked.nodes]
    [('input', 5.0, 4.0), ('mul', 10.0, 2.0), ('sub', 1.0, 2.0), ('integer_pow', 1.0, 1.0)]
    """
    whole = made_of(f, args, cotangent=cotangent, has_aux=has_aux, open_calls=open_calls, keep=keep_values)
    return _graph(whole, getattr(f, "__name__", type(f).__name__))


def _graph(whole: Made, name: str) -> Graph:
    return Graph(whole.nodes, name, whole)

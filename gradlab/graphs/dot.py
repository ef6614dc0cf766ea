"""A graph in the language of Graphviz."""

from collections.abc import Sequence

from gradlab.graphs.layout import edges
from gradlab.graphs.record import Node
from gradlab.graphs.table import shown, size

_SHAPES = {"input": "box", "constant": "box"}


def dot(nodes: Sequence[Node], name: str) -> str:
    """The graph: operators as ellipses, inputs as boxes, those whose rule is another's dashed, scopes as clusters."""
    lines = [f'digraph "{_text(name)}" {{', "  rankdir=TB; node [fontname=sans, fontsize=10];"]
    scopes: dict[str, list[Node]] = {}
    for node in nodes:
        scopes.setdefault(node.scope, []).append(node)
    for i, (scope, inside) in enumerate(scopes.items()):
        drawn = [f"  {_node(node)}" for node in inside]
        lines += [f'  subgraph cluster_{i} {{ label="{_text(scope)}";', *drawn, "  }"] if scope else drawn
    lines += [f"  n{i} -> n{j}{'' if read else ' [style=dashed]'};" for i, j, read in edges(nodes)]
    return "\n".join([*lines, "}", ""])


def _node(node: Node) -> str:
    lines = [node.expression, size(node), f"value {shown(node.value)}"]
    lines += [f"adjoint {text}"] if (text := shown(node.adjoint)) else []
    style = ', style="dashed"' if node.owner is not None else ""
    shape = _SHAPES.get(node.operator, "ellipse")
    label = "\\n".join(_text(line) for line in lines)
    return f'n{node.id} [shape={shape}, label="{label}", tooltip="{_text(node.source)}"{style}];'


def _text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")

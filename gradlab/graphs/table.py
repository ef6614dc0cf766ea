"""A graph as a table: in the terminal, and in a notebook."""

from collections.abc import Sequence
from html import escape
from io import StringIO
from typing import Any

import numpy as np

from gradlab.graphs.record import Node, Statistics, statistics

HEADERS = ("id", "operator", "shape", "value", "adjoint", "line")
# Beyond so many rows, the middle of a table is left out.
LONGEST = 80


def shown(a: Any) -> str:
    """A value or an adjoint in a few characters: a number, a short array, or its statistics.

    >>> shown(np.float32(2.5)), shown(np.arange(3.0)), shown(None)
    ('2.5', '[0 1 2]', '')
    """
    if a is None:
        return ""
    if isinstance(a, tuple):
        return "; ".join(text for one in a if (text := shown(one)))
    if isinstance(a, Statistics):
        return str(a)
    a = np.asarray(a)
    if a.size > 4 and a.dtype.kind in "fciub":
        return str(statistics(a.astype(np.float64) if a.dtype.kind == "b" else a))
    return np.array2string(a, formatter={"float_kind": lambda x: f"{x:.4g}"}, separator=" ").replace("\n", "")


def brief(a: Any) -> str:
    """The same in fewer characters, for a box in a drawing.

    >>> brief(np.arange(9.0)), brief(np.array([0.0, 1.0, np.nan, np.inf, 2.0]))
    ('rms 4.76', '2 of 5 not finite')
    """
    if isinstance(a, tuple):
        return "; ".join(text for one in a if (text := brief(one)))
    if a is None or (isinstance(a, np.ndarray) and a.size <= 4):
        return shown(a)
    numbers = a if isinstance(a, Statistics) else statistics(np.asarray(a))
    return f"{numbers.nonfinite} of {numbers.size} not finite" if numbers.nonfinite else f"rms {numbers.rms:.3g}"


def size(node: Node) -> str:
    """Shape and dtype, as JAX writes them.

    >>> size(Node(0, "sin", "", (), "sin(%0)", (2, 3), np.dtype("float32"), "", "", None, None))
    'float32[2,3]'
    """
    pairs = zip(node.shape, node.dtype, strict=True) if isinstance(node.dtype, tuple) else [(node.shape, node.dtype)]
    return " ".join(f"{dtype}[{','.join(map(str, shape))}]" for shape, dtype in pairs)


def rows(nodes: Sequence[Node]) -> list[tuple[str, ...]]:
    """The texts of a table, in the order of `HEADERS`."""
    inside = lambda node: "  " if node.owner is not None else ""
    return [
        (str(n.id), inside(n) + n.expression, size(n), shown(n.value), shown(n.adjoint), n.source or n.scope)
        for n in nodes
    ]


def text(nodes: Sequence[Node], name: str) -> str:
    """The graph as plain text: one row a node, the middle left out where there are many."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="dim")
    for i, header in enumerate(HEADERS):
        grid.add_column(header, justify="right" if i == 0 else "left", overflow="fold")
    every = rows(nodes)
    cut = len(every) > LONGEST
    for row in every[: LONGEST // 2] if cut else every:
        grid.add_row(*map(_plain, row))
    if cut:
        grid.add_row("", f"… {len(every) - LONGEST // 2 * 2} more …")
        for row in every[-(LONGEST // 2) :]:
            grid.add_row(*map(_plain, row))
    written = StringIO()
    console = Console(file=written, width=160, color_system=None)
    console.print(f"graph of {name}: {summary(nodes)}", markup=False, highlight=False)
    console.print(grid)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _plain(cell: str) -> Any:
    from rich.text import Text

    return Text(cell)


def summary(nodes: Sequence[Node]) -> str:
    """One line: how many operators, how many operations, and where there is no adjoint.

    >>> summary([Node(0, "input", "x", (), "x", (), np.dtype("float32"), "", "", None, None, 0.0)])
    '0 operators, 0 flops forward'
    """
    operators = [node for node in nodes if node.operator not in ("input", "constant")]
    known = sum(node.flops for node in operators if node.flops is not None)
    more = " and more" if any(node.flops is None for node in operators) else ""
    notes = "".join(f"; {node.operator} has no pullback here ({node.note})" for node in operators if node.note)
    return f"{len(operators)} operators, {known:,.0f} flops forward{more}{notes}"


def html(nodes: Sequence[Node]) -> str:
    """The graph as an escaped HTML table."""
    head = "".join(f"<th>{h}</th>" for h in HEADERS)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows(nodes))
    return f"<table><tr>{head}</tr>{body}</table>"

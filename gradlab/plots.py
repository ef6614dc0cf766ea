"""The pictures, drawn with matplotlib and never shown: every function returns axes, and leaves global state alone."""

import itertools
from collections.abc import Sequence
from io import BytesIO, StringIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.comparison import Comparison
from gradlab.graphs.flow import Flow
from gradlab.graphs.record import Node
from gradlab.report import write_atomically

if TYPE_CHECKING:  # they would load optax and the operators
    from gradlab.curvature import Spectrum
    from gradlab.descent.result import Descent

COLORS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")


def figure(width: float, height: float) -> Figure:
    """A fresh figure, outside pyplot: nothing to close.

    Args:
        width, height: inches.

    >>> figure(12.0, 4.0).subplots(1, 2).shape
    (2,)
    """
    return Figure(figsize=(width, height), layout="constrained")


def axes(width: float = 6.4, height: float = 4.0) -> Axes:
    """Fresh axes of their own figure, outside pyplot: nothing to close.

    Args:
        width, height: inches.

    >>> axes().figure.get_size_inches().tolist()
    [6.4, 4.0]
    """
    ax = figure(width, height).add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def comparison(result: Comparison, ax: Axes | None = None) -> Axes:
    """Time against peak memory, one point a mode, both logarithmic; hollow where the mode is wrong.

    Args:
        result: what `compare` returned.
        ax: where to draw; fresh axes where None.
    """
    ax = axes() if ax is None else ax
    drawn = [(row, row.seconds) for row in result.rows if row.seconds is not None]
    for i, (row, seconds) in enumerate(drawn):
        color = COLORS[i % len(COLORS)]
        face = color if row.status == "ok" else "none"
        label = row.mode if row.status == "ok" else f"{row.mode} ({row.status})"
        ax.scatter(row.peak_bytes or 1, seconds, s=70, edgecolors=color, facecolors=face, label=label, zorder=3)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("peak memory [bytes]")
    ax.set_ylabel("time of one call [s]")
    ax.set_title(f"{result.of} of {result.name}", loc="left")
    ax.grid(alpha=0.25, which="both")
    ax.margins(0.25)
    if drawn:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def sheet(results: Sequence[Comparison]) -> Figure:
    """One figure with the picture of every comparison, up to three in a row."""
    columns = min(3, max(1, len(results)))
    rows = -(-len(results) // columns)
    whole = figure(6.4 * columns, 4.0 * rows)
    grid = whole.subplots(rows, columns, squeeze=False)
    for ax, result in zip(grid.flat, results, strict=False):
        comparison(result, ax)
    for ax in list(grid.flat)[len(results) :]:
        ax.set_axis_off()
    return whole


# More nodes than this are drawn without their numbers.
LABELLED = 60


def graph(nodes: Sequence[Node], name: str = "", ax: Axes | None = None) -> Axes:
    """A computation graph in layers: forward from top to bottom, with values and adjoints where there are few nodes.

    Args:
        nodes: those of a `Graph`.
        name: the title.
        ax: where to draw; fresh axes of a fitting size where None.
    """
    from gradlab.graphs.layout import edges, layout
    from gradlab.graphs.table import brief

    places = layout(nodes)
    columns, depth = ([p[k] for p in places.values()] or [0.0] for k in (0, 1))
    few = len(nodes) <= LABELLED
    if ax is None:
        wide = 2.3 if few else 0.5
        ax = axes(max(4.0, wide * (max(columns) - min(columns) + 1)), max(2.5, wide * 0.4 * (max(depth) + 1.5)))
    for i, j, read in edges(nodes):
        (x0, y0), (x1, y1) = places[i], places[j]
        style = {"arrowstyle": "-|>", "color": "#8c96a0", "linestyle": "-" if read else "--"}
        gap = 16 if few else 3
        ax.annotate("", (x1, -y1), (x0, -y0), arrowprops={**style, "shrinkA": gap, "shrinkB": gap}, zorder=1)
    for node in nodes if few else ():
        lines = [node.expression, brief(node.value), brief(node.adjoint)]
        _labelled(ax, places[node.id], lines, firm=node.operator in ("input", "constant"))
    if not few:
        ax.scatter(columns, [-y for y in depth], s=14, color=COLORS[0], zorder=2)
    ax.set(xlim=(min(columns) - 0.6, max(columns) + 0.6), ylim=(-max(depth) - 0.6, 0.6))
    ax.set_axis_off()
    ax.set_title(f"{name}: values forward (blue), adjoints backward (orange)" if few else name, loc="left", fontsize=9)
    return ax


def _labelled(ax: Axes, place: tuple[float, float], lines: Sequence[str], *, firm: bool) -> None:
    """A box around lines of text, each in its color."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "linespacing": 1.3}
    box = {"boxstyle": "round,pad=0.45", "facecolor": "#f3f6f9", "edgecolor": "#1b1f24" if firm else "#8c96a0"}
    ax.text(place[0], -place[1], "\n".join(lines), color="none", bbox=box, zorder=2, **style)
    for k, (line, color) in enumerate(zip(lines, ("#1b1f24", *COLORS), strict=False)):
        apart = "\n".join(line if i == k else " " for i in range(len(lines)))
        ax.text(place[0], -place[1], apart, color=color, zorder=3, **style)


def flow(flows: Sequence[Flow], ax: Axes | None = None) -> Axes:
    """The size of values (dashed) and adjoints over the layers, on a logarithmic scale; one color a flow.

    Args:
        flows: what `Graph.flow` returned, several to compare.
        ax: where to draw; fresh axes where None.
    """
    ax = axes() if ax is None else ax
    for one, color in zip(flows, itertools.cycle(COLORS), strict=False):
        names = range(1, len(one.layers) + 1)
        ax.plot(names, [layer.adjoint for layer in one.layers], "o-", ms=3, color=color, label=f"{one.name}: adjoints")
        ax.plot(names, [layer.value for layer in one.layers], "--", lw=1, color=color, label=f"{one.name}: values")
    ax.set_yscale("log")
    ax.set_xlabel("layer" if flows and flows[0].by == "scope" else "depth")
    ax.set_ylabel("root mean square")
    ax.grid(alpha=0.25)
    if flows:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def descent(result: "Descent", ax: Axes | None = None, *, name: str = "") -> Axes:
    """Losses (left axis) and gradient norms (right axis, dashed) over the steps, both logarithmic where they can be.

    Args:
        result: what `descend` returned.
        ax: where to draw; fresh axes where None.
        name: the title; what the descent came to where it is empty.
    """
    ax = axes() if ax is None else ax
    beside = ax.twinx()
    steps = range(1, result.steps + 1)
    ax.plot(steps, result.losses, color=COLORS[0])
    beside.plot(steps, result.gradient_norms, "--", lw=1, color=COLORS[1])
    for one, values, color, label in (
        (ax, result.losses, COLORS[0], "loss"),
        (beside, result.gradient_norms, COLORS[1], "norm of the gradient"),
    ):
        one.set_yscale("log" if len(values) and (values[np.isfinite(values)] > 0).all() else "linear")
        one.set_ylabel(label, color=color)
        one.spines["top"].set_visible(False)
    ax.set_xlabel("step")
    ax.set_title(name or f"{result.status} after {result.steps} steps", loc="left")
    ax.grid(alpha=0.25)
    return ax


def spectrum(result: "Spectrum", ax: Axes | None = None, *, name: str = "") -> Axes:
    """The density of eigenvalues on a logarithmic scale, with a band of one standard error; one color a spectrum.

    The scale goes down to a tenth of what one eigenvalue alone would be.

    Args:
        result: what `spectral_density` returned.
        ax: where to draw, beside spectra that are there already; fresh axes where None.
        name: what it is called in the legend; without one there is none.
    """
    ax = axes() if ax is None else ax
    color, alone = COLORS[len(ax.lines) % len(COLORS)], not ax.lines
    dashes = "-" if alone else "--"  # what lies beneath stays visible
    low, high = float(np.min(result.nodes)), float(np.max(result.nodes))
    wide = float(result.resolved(200))
    grid = np.linspace(low - 6 * wide, high + 6 * wide, 2000)
    found = result.density(grid, width=wide)
    value, error = np.asarray(found.value), np.asarray(found.standard_error)
    floor, top = 0.1 / (result.size * wide * np.sqrt(2 * np.pi)), 3 * float(np.max(value))
    ax.plot(grid, value, dashes, color=color, label=name)
    ax.fill_between(grid, np.maximum(value - error, floor / 10), value + error, color=color, alpha=0.25, lw=0)
    ax.set_yscale("log")
    ax.set_ylim((floor, top) if alone else (min(floor, ax.get_ylim()[0]), max(top, ax.get_ylim()[1])))
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("share of eigenvalues per unit")
    ax.grid(alpha=0.25)
    if name:
        ax.legend(frameon=False)
    return ax


def svg(result: Comparison) -> str:
    """The picture of a comparison as an inline SVG element."""
    text = StringIO()
    sheet([result]).savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def image(drawn: Figure, kind: str) -> bytes:
    """A figure as the bytes of an image file: `"png"`, `"svg"` or `"pdf"`. The same figure gives the same bytes."""
    buffer = BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with rc_context({"svg.hashsalt": "gradlab"}):
        drawn.savefig(buffer, format=kind, dpi=150, metadata=undated)
    return buffer.getvalue()


def save(drawn: Axes | Figure, path: str | PathLike[str]) -> Path:
    """Write the figure of some axes to a file, whole or not at all, and return its path.

    Args:
        drawn: axes, or a figure.
        path: ends in `.png`, `.svg` or `.pdf`; its folder is made.

    >>> import tempfile
    >>> save(axes(), Path(tempfile.mkdtemp()) / "empty.svg").name
    'empty.svg'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    write_atomically(path, image(cast(Figure, whole), path.suffix[1:]))
    return path

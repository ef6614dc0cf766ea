"""The pictures, drawn with matplotlib and never shown: every function returns axes, and leaves global state alone."""

from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.comparison import Comparison

COLORS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")


def axes(width: float = 6.4, height: float = 4.0) -> Axes:
    """Fresh axes of their own figure, outside pyplot: nothing to close.

    Args:
        width, height: inches.

    >>> axes().figure.get_size_inches().tolist()
    [6.4, 4.0]
    """
    ax = Figure(figsize=(width, height), layout="constrained").add_subplot()
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
        ax.legend(frameon=False)
    return ax


def sheet(results: Sequence[Comparison]) -> Figure:
    """One figure with the picture of every comparison, up to three in a row."""
    columns = min(3, max(1, len(results)))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for ax, result in zip(grid.flat, results, strict=False):
        comparison(result, ax)
    for ax in list(grid.flat)[len(results) :]:
        ax.set_axis_off()
    return figure


def svg(result: Comparison) -> str:
    """The picture of a comparison as an inline SVG element."""
    text = StringIO()
    sheet([result]).savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def image(figure: Any, kind: str) -> bytes:
    """A figure as the bytes of an image file: `"png"`, `"svg"` or `"pdf"`."""
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=150)
    return buffer.getvalue()

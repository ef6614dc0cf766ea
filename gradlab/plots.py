"""The pictures, drawn with matplotlib and never shown: every function returns axes, and leaves global state alone."""

from collections.abc import Sequence
from io import BytesIO, StringIO
from os import PathLike
from pathlib import Path
from typing import cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.comparison import Comparison
from gradlab.report import write_atomically

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


def svg(result: Comparison) -> str:
    """The picture of a comparison as an inline SVG element."""
    text = StringIO()
    sheet([result]).savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def image(drawn: Figure, kind: str) -> bytes:
    """A figure as the bytes of an image file: `"png"`, `"svg"` or `"pdf"`."""
    buffer = BytesIO()
    drawn.savefig(buffer, format=kind, dpi=150)
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

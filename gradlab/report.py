"""What people read: tables in the terminal, one self-contained HTML page, files replaced whole or not at all."""

import json
import os
import tempfile
from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from gradlab.comparison import Comparison, Row
from gradlab.prediction import Prediction

HEADERS = ("mode", "status", "time", "± spread", "predicted", "× f", "compile", "flops", "peak memory", "error")
PREDICTED = ("mode", "status", "predicted time", "predicted memory")
STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;margin:.5rem 0 1rem}
td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #d8dee4}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2),td.reason{text-align:left}tr.best{background:#e6f4ea}
tr.wrong{background:#fdeaea}.muted{color:#656d76}figure{margin:0}svg{max-width:100%;height:auto}"""


def seconds(value: float | None) -> str:
    """A time with three digits and its unit.

    >>> seconds(0.00123), seconds(None)
    ('1.23 ms', '')
    """
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def count(value: float | None, unit: str = "") -> str:
    """A number with three digits and a decimal prefix.

    >>> count(12_345_678, "B"), count(532), count(None)
    ('12.3 MB', '532', '')
    """
    if value is None:
        return ""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def cells(row: Row) -> tuple[str, ...]:
    """A row as the texts of its table, in the order of `HEADERS`."""
    return (
        row.mode,
        row.status,
        seconds(row.seconds),
        "" if row.spread is None else f"{row.spread:.0%}",
        seconds(row.predicted_seconds),
        "" if row.relative_cost is None else f"{row.relative_cost:.3g}",
        seconds(row.compile_seconds),
        count(row.flops),
        count(row.peak_bytes, "B"),
        "" if row.error is None else f"{row.error:.1e}",
    )


def heading(comparison: Comparison) -> str:
    """One line: what was compared, which mode won, what auto would have cost."""
    best, regret = comparison.best, comparison.regret
    won = "no mode is right" if best is None else f"best {best.mode}"
    auto = f", auto {comparison.auto}" + ("" if regret is None else f" ({regret:.2f} × the best)")
    return f"{comparison.of} of {comparison.name}: {won}{auto}; f takes {seconds(comparison.value_seconds)}"


def table(comparison: Comparison) -> Group:
    """The comparison for a rich console: a table, and the reasons below it."""
    grid = Table(header_style="dim")
    for i, header in enumerate(HEADERS):
        grid.add_column(header, justify="left" if i < 2 else "right", no_wrap=True)
    best = comparison.best
    for row in comparison.rows:
        style = "green" if best and row.mode == best.mode else "red" if row.status in ("wrong", "failed") else None
        grid.add_row(*cells(row), style=style)
    reasons = [Text(f"  {row.mode}: {row.reason}", style="dim") for row in comparison.rows if row.reason]
    return Group(Text(heading(comparison), style="bold"), grid, *reasons)


def text(comparison: Comparison, width: int = 120) -> str:
    """The comparison as plain text, without colors."""
    return _printed(table(comparison), width)


def _printed(content: Any, width: int) -> str:
    file = StringIO()
    Console(file=file, width=width, color_system=None).print(content)
    return file.getvalue().rstrip()


def html_table(comparison: Comparison) -> str:
    """The comparison as an escaped HTML table."""
    head = "".join(f"<th>{escape(h)}</th>" for h in (*HEADERS, "reason"))
    body = []
    for row in comparison.rows:
        kind = "best" if comparison.best is row else row.status
        tds = "".join(f"<td>{escape(c)}</td>" for c in cells(row))
        body.append(f'<tr class="{kind}">{tds}<td class="reason">{escape(row.reason)}</td></tr>')
    return f"<table><caption>{escape(heading(comparison))}</caption><tr>{head}</tr>{''.join(body)}</table>"


def prediction_cells(prediction: Prediction) -> list[tuple[str, ...]]:
    """The rows of a prediction as the texts of its table, in the order of `PREDICTED`."""
    return [(row.mode, row.status, seconds(row.seconds), count(row.bytes, "B")) for row in prediction.rows]


def prediction_heading(prediction: Prediction) -> str:
    """One line: what auto takes, and why."""
    what = f"{prediction.of} of {prediction.name}"
    return f"{what}: auto takes {prediction.choice}, {prediction.reason} (rates {prediction.rates})"


def prediction_text(prediction: Prediction, width: int = 120) -> str:
    """The prediction as plain text, without colors."""
    grid = Table(header_style="dim")
    for i, header in enumerate(PREDICTED):
        grid.add_column(header, justify="left" if i < 2 else "right", no_wrap=True)
    for cells_ in prediction_cells(prediction):
        grid.add_row(*cells_)
    reasons = [Text(f"  {row.mode}: {row.reason}", style="dim") for row in prediction.rows if row.reason]
    return _printed(Group(Text(prediction_heading(prediction)), grid, *reasons), width)


def prediction_html(prediction: Prediction) -> str:
    """The prediction as an escaped HTML table."""
    head = "".join(f"<th>{escape(h)}</th>" for h in (*PREDICTED, "reason"))
    lines = [(*cells_, row.reason) for cells_, row in zip(prediction_cells(prediction), prediction.rows, strict=True)]
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return f"<table><caption>{escape(prediction_heading(prediction))}</caption><tr>{head}</tr>{body}</table>"


def page(title: str, comparisons: Sequence[Comparison]) -> str:
    """One self-contained HTML page of several comparisons: no script, no font, no address is loaded."""
    from gradlab import plots

    parts = []
    for one in comparisons:
        heading_ = escape(f"{one.of} of {one.name}")
        parts.append(f"<h2>{heading_}</h2>{html_table(one)}<figure>{plots.svg(one)}</figure>")
    notes = "".join(f"<p>{escape(line)}</p>" for line in summary(comparisons)) if len(comparisons) > 1 else ""
    device = escape(comparisons[0].device) if comparisons else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<h1>{escape(title)}</h1><p class="muted">{device}</p>{notes}{"".join(parts)}</html>\n'
    )


# What a person gets who does not choose: jax.jacobian is reverse mode, jax.hessian forward over reverse.
DEFAULTS = {"jacobian": ("jax.jacobian", "reverse"), "hessian": ("jax.hessian", "forward_over_reverse")}


def summary(comparisons: Sequence[Comparison]) -> list[str]:
    """Which mode won where, and how much the default choices would have lost."""
    lines = []
    for of in dict.fromkeys(one.of for one in comparisons):
        group = [one for one in comparisons if one.of == of]
        wins: dict[str, list[str]] = {}
        for one in group:
            wins.setdefault(one.best.mode if one.best else "none", []).append(one.name)
        won = "; ".join(f"{mode} {len(names)} ({', '.join(names)})" for mode, names in wins.items())
        lines.append(f"{of}: fastest right mode on {len(group)} problems: {won}.")
        if of in DEFAULTS:
            lines.append(_default_loss(*DEFAULTS[of], group))
    return lines


def _default_loss(name: str, mode: str, group: Sequence[Comparison]) -> str:
    losses = {one.name: one.ratio(mode) for one in group}
    known = {problem: loss for problem, loss in losses.items() if loss is not None}
    cannot = [problem for problem, loss in losses.items() if loss is None]
    told = f"Mode {mode}, that of {name},"
    if not known:
        return f"{told} was not timed, or was wrong, on all."
    worst = max(known, key=lambda problem: known[problem])
    middle = median(known.values())
    lost = f"{told} took {middle:.2f} × the best (median), {known[worst]:.1f} × at worst ({worst})."
    return lost + (f" It was not timed, or was wrong, on {', '.join(cannot)}." if cannot else "")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace a file whole: readers see the old content or the new, and an interruption leaves the old.

    Args:
        path: the file; its folder must exist.
        content: what to write, text as UTF-8.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=target.parent or ".", prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def to_json(content: Any) -> str:
    """JSON text for a file, strict: infinities and NaN become null.

    >>> print(to_json({"a": float("nan"), "b": 1}), end="")
    {
      "a": null,
      "b": 1
    }
    """
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not -float("inf") < content < float("inf"):
        return None
    return content

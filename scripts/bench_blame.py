"""Who names the line that made a derivative NaN, infinite or zero: gradlab's blame, and JAX's own jax_debug_nans.

Run: python scripts/bench_blame.py [--json scripts/results/blame.json] [--only WORD ...]

The functions are those of tests/faults.py. JAX is asked with jax_debug_nans, and jax_debug_infs where the fault is an
infinity, once eagerly and once under jit; it names the innermost line of that file in the traceback, and in that of the
forward operation that JAX adds: either counts. Compile time counts.
"""

import argparse
import datetime
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab.cli import facts
from gradlab.report import to_json, write_atomically

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import faults

Case = tuple[Callable, tuple, str, str | None]
Says = Callable[[Case], set[int] | None]


def blame_says(case: Case) -> set[int] | None:
    """The line; none where the input is not used at all, None where nothing is wrong."""
    f, args, _, where = case
    blame = gl.graph(f, *args).blame(where)
    if blame is None:
        return None
    return {int(blame.source.rpartition(":")[2])} if blame.source else set()


def debug_nans(wrap: Callable) -> Says:
    def says(case: Case) -> set[int] | None:
        f, args, kind, _ = case
        moving = [i for i, a in enumerate(args) if all(map(_moves, jax.tree.leaves(a)))]

        def of_moving(moved: list[Any]) -> Any:
            full = dict(zip(moving, moved, strict=True))
            return f(*(full.get(i, a) for i, a in enumerate(args)))

        with jax.debug_nans(True), jax.debug_infs(kind == "inf"):
            try:
                jax.block_until_ready(wrap(jax.grad(of_moving))([args[i] for i in moving]))
            except FloatingPointError as error:
                return {line for line in (_innermost(error), _innermost(error.__cause__)) if line}
        return None

    return says


def _innermost(error: BaseException | None) -> int | None:
    frames = traceback.extract_tb(error.__traceback__) if error else ()
    return next((frame.lineno for frame in reversed(frames) if frame.filename == faults.__file__), None)


def _moves(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


TOOLS: dict[str, Says] = {
    "gradlab blame": blame_says,
    "jax_debug_nans, eager": debug_nans(lambda g: g),
    "jax_debug_nans, jit": debug_nans(jax.jit),
}


def asked(says: Says, case: Case, wanted: int | None) -> tuple[str, float]:
    """`right` line, `wrong` line, `silent`, or `failed` for another error; and the seconds it took."""
    start = time.perf_counter()
    try:
        lines = says(case)
        right = lines is not None and (wanted in lines if wanted else not lines)
        answer = "silent" if lines is None else "right" if right else "wrong"
    except Exception as error:
        answer = f"failed ({re.sub('[^A-Za-z]', '', type(error).__name__)})"
    return answer, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="scripts/results/blame.json")
    parser.add_argument("--only", nargs="*", default=[], help="functions whose names hold one of these words")
    options = parser.parse_args()
    chosen = lambda name: not options.only or any(word in name for word in options.only)
    lines = faults.lines()
    jax.block_until_ready(jax.jit(jnp.sin)(1.0))  # the first compilation of a process is nobody's
    rows: dict[str, dict[str, Any]] = {}
    cases: dict[str, Case] = {**faults.FAULTS}
    cases |= {name: (f, args, "healthy", None) for name, (f, args) in faults.HEALTHY.items()}
    for name, case in cases.items():
        if chosen(name):
            rows[name] = {"kind": case[2]} | {t: asked(s, case, lines.get(name)) for t, s in TOOLS.items()}
    grid = Table("function", "kind", *TOOLS)
    for name, row in rows.items():
        grid.add_row(name, row["kind"], *(row[tool][0] for tool in TOOLS))
    Console(width=120).print(grid)
    summary = {tool: counted(tool, rows) for tool in TOOLS}
    for tool, counts in summary.items():
        print(f"{tool}: {counts}")
    content = {"date": datetime.date.today().isoformat(), "info": facts(), "tools": summary}
    answers = {name: {"kind": row["kind"]} | {tool: row[tool][0] for tool in TOOLS} for name, row in rows.items()}
    write_atomically(options.json, to_json(content | {"functions": answers}))
    print("written:", options.json)


def counted(tool: str, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many lines were right, by kind, how often a healthy function was accused, and the median time."""
    kinds = {"not finite": ("nan", "inf"), "zero": ("zero",)}
    found: dict[str, Any] = {}
    for title, members in kinds.items():
        answers = [row[tool][0] for row in rows.values() if row["kind"] in members]
        found[title] = f"{answers.count('right')} of {len(answers)}"
    healthy = [row[tool][0] for row in rows.values() if row["kind"] == "healthy"]
    found["healthy accused"] = f"{healthy.count('wrong')} of {len(healthy)}"
    found["median seconds"] = round(median(row[tool][1] for row in rows.values()), 3)
    return found


if __name__ == "__main__":
    main()

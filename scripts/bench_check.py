"""Checkers of derivatives on right functions and on planted defects: who cries wolf, and who misses one.

Run: python scripts/bench_check.py [--json scripts/results/check.json] [--only WORD ...]

The functions are those of tests/defects.py. Each is given to `gradlab.check`, to `jax.test_util.check_grads` in every
mode and order with its own tolerances, and to numdifftools (with its own error estimate, in float64, against
`jax.jacobian`), one after another in one process; compile time counts. An alarm is an assertion that failed; where a
tool raised something else, or has no way to be asked, it could not say.
"""

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab.cli import facts
from gradlab.report import to_json, write_atomically

ROOT = Path(__file__).parent.parent
# numdifftools evaluates f some twenty times for each number of the input, and keeps every output of each.
MOST_NUMBERS, MOST_OUTPUTS = 64, 1000
Case = tuple[str, Callable, tuple, str]


def corpus() -> list[Case]:
    """Name, function, arguments and the verdict that it deserves."""
    sys.path.insert(0, str(ROOT / "tests"))
    import defects

    right = [(name, f, args, "ok") for name, (f, args) in defects.RIGHT.items()]
    wrong = [(name, f, args, verdict) for name, (f, args, verdict) in defects.WRONG.items()]
    return right + wrong + [(name, f, (defects.X,), "second") for name, f in defects.SECOND.items()]


def gradlab_says(f: Callable, args: tuple, order: int) -> str:
    return gl.check(f, *args, order=order).verdict


def with_check_grads(modes: tuple[str, ...], order: int) -> Callable[[Callable, tuple, int], str]:
    def says(f: Callable, args: tuple, _: int) -> str:
        check_grads(f, args, order=order, modes=modes)
        return "ok"

    return says


def numdifftools_says(f: Callable, args: tuple, _: int) -> str:
    """The Jacobian by all floating leaves at once, against differences with their own error estimate."""
    import numdifftools

    leaves, structure = jax.tree.flatten(args)
    moves = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    with jax.enable_x64(True):
        point, back = ravel_pytree([jnp.asarray(leaves[i], jnp.float64) for i in moves])
        if point.size > MOST_NUMBERS:
            raise NotImplementedError("too many numbers")

        def flat(u: jax.Array) -> jax.Array:
            full = list(leaves)
            for i, leaf in zip(moves, back(u), strict=True):
                full[i] = leaf
            return ravel_pytree(f(*jax.tree.unflatten(structure, full)))[0]

        if jax.eval_shape(flat, point).size > MOST_OUTPUTS:
            raise NotImplementedError("too many outputs")
        compiled = jax.jit(flat)
        found = numdifftools.Jacobian(lambda u: np.asarray(compiled(u)), full_output=True)(np.asarray(point))
        numeric = np.asarray(found.estimate)
        exact = np.asarray(jax.jacobian(flat)(point)).reshape(numeric.shape)
    allowed = 10 * np.reshape(found.error_estimate, numeric.shape) + 1e-6 * np.abs(exact).max()
    if not np.all(np.abs(numeric - exact) <= allowed):
        raise AssertionError("differences and derivative differ")
    return "ok"


def tools() -> dict[str, Callable[[Callable, tuple, int], str]]:
    found: dict[str, Callable[[Callable, tuple, int], str]] = {"gradlab.check": gradlab_says}
    for order in (1, 2):
        for modes in (("fwd",), ("rev",), ("fwd", "rev")):
            found[f"check_grads {'+'.join(modes)}, order {order}"] = with_check_grads(modes, order)
    if find_spec("numdifftools"):
        found["numdifftools"] = numdifftools_says
    return found


def asked(says: Callable[[Callable, tuple, int], str], case: Case) -> tuple[str, float]:
    """What a tool says, `alarm` for an assertion, `cannot` for any other error; and the seconds it took."""
    _, f, args, wanted = case
    start = time.perf_counter()
    try:
        answer = says(f, args, 2 if wanted == "second" else 1)
    except AssertionError:
        answer = "alarm"
    except Exception:
        answer = "cannot"
    return answer, time.perf_counter() - start


def summed(cases: list[Case], answers: list[tuple[str, float]]) -> dict[str, Any]:
    """Counts over right functions and defects. A defect of any kind is found by any answer but `ok`."""
    pairs = [(wanted, answer) for (*_, wanted), (answer, _) in zip(cases, answers, strict=True)]
    right = [answer for wanted, answer in pairs if wanted == "ok"]
    wrong = [(wanted, answer) for wanted, answer in pairs if wanted != "ok"]
    return {
        "right": len(right),
        "false_alarms": sum(answer not in ("ok", "cannot") for answer in right),
        "right_cannot": right.count("cannot"),
        "defects": len(wrong),
        "missed": sum(answer == "ok" for _, answer in wrong),
        "defects_cannot": sum(answer == "cannot" for _, answer in wrong),
        "named": sum(wanted == answer for wanted, answer in wrong),
        "median_seconds": median(seconds for _, seconds in answers),
        "largest_seconds": max(seconds for _, seconds in answers),
    }


def million() -> float:
    start = time.perf_counter()
    assert gl.check(lambda x: jnp.sum(jnp.sin(x) ** 2), np.linspace(0.1, 3, 1_000_000, dtype=np.float32)).ok
    return time.perf_counter() - start


def table(rows: dict[str, dict[str, Any]]) -> Table:
    grid = Table("tool", "false alarms", "cannot", "missed", "cannot", "kind named", "median", "largest")
    for name, row in rows.items():
        grid.add_row(
            name,
            f"{row['false_alarms']} of {row['right']}",
            str(row["right_cannot"]),
            f"{row['missed']} of {row['defects']}",
            str(row["defects_cannot"]),
            f"{row['named']} of {row['defects']}",
            f"{row['median_seconds']:.2f} s",
            f"{row['largest_seconds']:.2f} s",
        )
    return grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="scripts/results/check.json")
    parser.add_argument("--only", nargs="*", default=[], help="functions whose names hold one of these words")
    options = parser.parse_args()
    cases = [case for case in corpus() if not options.only or any(word in case[0] for word in options.only)]
    jax.block_until_ready(jax.jit(jnp.sin)(1.0))  # the first compilation of a process is not a checker's
    chosen = tools()
    answers: dict[str, list[tuple[str, float]]] = {name: [] for name in chosen}
    for i, case in enumerate(cases, 1):
        print(f"{i:3} of {len(cases)}: {case[0]}", file=sys.stderr)
        for name, says in chosen.items():
            answers[name].append(asked(says, case))
    rows = {name: summed(cases, answers[name]) for name in chosen}
    Console(width=120).print(table(rows))
    seconds = million()
    print(f"a million inputs: {seconds:.2f} s")
    each = {
        case[0]: {"deserves": case[3]} | {name: answers[name][i][0] for name in chosen} for i, case in enumerate(cases)
    }
    content = {
        "date": datetime.date.today().isoformat(),
        "info": facts(),
        "tools": rows,
        "million_inputs_seconds": seconds,
    }
    write_atomically(options.json, to_json(content | {"functions": each}))
    print("written:", options.json)


if __name__ == "__main__":
    main()

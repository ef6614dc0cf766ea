"""How long a computation graph takes, and how much memory: real models, ten thousand operators, gigabytes of values.

Run: python scripts/bench_graph.py [--json scripts/results/graph.json]

Each case runs in a process of its own; compile time counts. `jax.grad` is the first call of the compiled gradient, in
the same process, for scale. Memory is the largest that the process had, less what it had before.
"""

import argparse
import datetime
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab import problems
from gradlab.cli import facts
from gradlab.report import to_json, write_atomically


def chain(length: int, size: int) -> tuple[Callable, tuple]:
    """A chain of three operators a link, in a loop that Python unrolls."""

    def f(x: Any) -> Any:
        for _ in range(length):
            x = 0.9 * jnp.sin(x) + x
        return jnp.sum(x)

    return f, (jnp.linspace(0.1, 1.0, size),)


CASES: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    "digits_attention": lambda: problems.get("digits_attention").build(),
    "digits_mlp": lambda: problems.get("digits_mlp").build(),
    "gmm": lambda: problems.get("gmm").build(),
    "lstm": lambda: problems.get("lstm").build(),
    "10,000 operators": lambda: chain(3333, 100),
    "300 operators, 2 GB of values": lambda: chain(100, 1_700_000),
}


def measured(name: str) -> dict[str, Any]:
    f, args = CASES[name]()
    jax.block_until_ready(jax.jit(jnp.sin)(1.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    graph = gl.graph(f, *args)
    made = time.perf_counter()
    blame = graph.blame()
    blamed = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gradient_start = time.perf_counter()
    jax.block_until_ready(jax.jit(jax.grad(f))(*args))
    gradient = time.perf_counter() - gradient_start
    return {
        "nodes": len(graph.nodes),
        "graph_seconds": made - start,
        "blame_seconds": blamed - made,
        "blame": None if blame is None else blame.kind,
        "gradient_seconds": gradient,
        "megabytes": (peak - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="scripts/results/graph.json")
    parser.add_argument("--only", help="one case, printed as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only)))
        return
    grid = Table("function", "nodes", "graph", "blame", "jax.grad, first call", "memory")
    rows = {}
    for name in CASES:
        done = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True, check=True)
        row = rows[name] = json.loads(done.stdout)
        times = [f"{row[key]:.2f} s" for key in ("graph_seconds", "blame_seconds", "gradient_seconds")]
        grid.add_row(name, str(row["nodes"]), *times, f"{row['megabytes']:.0f} MB")
    Console(width=120).print(grid)
    content = {"date": datetime.date.today().isoformat(), "info": facts(), "cases": rows}
    write_atomically(options.json, to_json(content))
    print("written:", options.json)


if __name__ == "__main__":
    main()

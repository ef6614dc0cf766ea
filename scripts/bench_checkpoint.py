"""What recomputing buys: memory and time of a gradient by each policy of mode="checkpoint", against the plain gradient.

Run: python scripts/bench_checkpoint.py [--only NAME ...] [--rounds 7] [--json scripts/results/checkpoint.json]

`time` and `memory` are ratios to the plain gradient, compiled: the median over rounds of interleaved runs, with the
middle half of those ratios, and the temporary memory that the compiler plans. `error` is the largest difference from
the plain gradient, relative to its largest entry, leaf by leaf.
"""

import argparse
import datetime
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab.cli import facts
from gradlab.report import to_json, write_atomically
from gradlab.timing import compiled, interleaved, temporary_bytes
from gradlab.types import CheckpointPolicy

POLICIES: tuple[CheckpointPolicy, ...] = ("dots", "everything", "segments")
# What "segments" must reach where the loop is long.
MOST_MEMORY, MOST_TIME = 1 / 5, 1.6


def oscillators(steps: int = 4000, count: int = 300) -> tuple[Callable, Any]:
    """Coupled pendulums, 4,000 steps: a carry of 600 numbers and a dozen elementwise operators a step."""

    def loss(p: dict) -> jax.Array:
        def step(state: dict, force: jax.Array) -> tuple[dict, jax.Array]:
            pull = jnp.roll(state["q"], 1) - state["q"]
            v = state["v"] + 0.01 * (p["k"] * pull - jnp.sin(state["q"]) - p["friction"] * state["v"] + force)
            return {"q": state["q"] + 0.01 * v, "v": v}, jnp.vdot(v, v)

        start = {"q": p["q"], "v": p["v"]}
        last, energies = jax.lax.scan(step, start, jnp.sin(0.1 * jnp.arange(steps)))
        return jnp.sum(last["q"] ** 2) + jnp.mean(energies)

    a = jnp.linspace(0.1, 1.0, count)
    return loss, {"q": a, "v": jnp.cos(a), "k": 1 + a, "friction": 0.1 * a}


def recurrent(steps: int = 1009, width: int = 96, batch: int = 8) -> tuple[Callable, Any]:
    """A gated recurrent network over 1,009 inputs, a prime number: matrix products, and a segment left over."""

    def loss(p: dict) -> jax.Array:
        def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            z = jax.nn.sigmoid(h @ p["gate"] + p["bias"] + x[:, None])
            return (1 - z) * h + z * jnp.tanh(h @ p["hidden"] + x[:, None]), None

        h, _ = jax.lax.scan(
            step, jnp.zeros((batch, width)), jnp.sin(0.1 * jnp.arange(steps * batch)).reshape(steps, -1)
        )
        return jnp.mean(h**2)

    gate, hidden = jax.random.normal(jax.random.key(0), (2, width, width)) / np.sqrt(width)
    return loss, {"gate": gate, "hidden": hidden, "bias": jnp.zeros(width)}


CASES: dict[str, Callable[[], tuple[Callable, Any]]] = {"oscillators": oscillators, "recurrent": recurrent}


def difference(given: Any, expected: Any) -> float:
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def measured(loss: Callable, params: Any, rounds: int) -> dict[str, dict[str, float]]:
    """One row a policy; every round runs all of them in turn."""
    derivatives = {"plain": gl.gradient(loss)}
    derivatives |= {policy: gl.gradient(loss, mode="checkpoint", policy=policy) for policy in POLICIES}
    programs = {name: compiled(derivative, params) for name, derivative in derivatives.items()}
    expected, memory = programs["plain"](params), temporary_bytes(programs["plain"])
    runs = [partial(program, params) for program in programs.values()]
    seconds = np.array([[sample.seconds for sample in interleaved(runs, repeats=5)] for _ in range(rounds)])
    rows = {}
    for (name, program), column in zip(programs.items(), (seconds / seconds[:, :1]).T, strict=True):
        low, middle, high = (float(q) for q in np.percentile(column, [25, 50, 75]))
        needed = temporary_bytes(program)
        ratio = {"time": middle, "low": low, "high": high, "memory": needed / memory, "bytes": needed}
        rows[name] = {**ratio, "error": difference(program(params), expected), "compile": program.compile_seconds}
    return rows


def shown(name: str, rows: dict[str, dict[str, float]]) -> Table:
    columns = ("policy", "time / plain", "middle half", "memory / plain", "memory", "error", "compile")
    table = Table(*columns, title=name, width=100)
    for policy, row in rows.items():
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        cells = (f"{row['time']:.2f}", spread, f"{row['memory']:.3f}", f"{row['bytes'] / 1024:,.0f} KiB")
        table.add_row(policy, *cells, f"{row['error']:.0e}", f"{row['compile']:.1f} s")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", default="scripts/results/checkpoint.json")
    options = parser.parse_args()
    cases = {name: measured(*CASES[name](), options.rounds) for name in options.only}
    for name, rows in cases.items():
        Console(width=104).print(shown(name, rows))
        row = rows["segments"]
        met = row["memory"] <= MOST_MEMORY and row["time"] <= MOST_TIME
        print(f"segments: {'within' if met else 'NOT within'} 1/5 of the memory and {MOST_TIME} times the time\n")
    content = {"date": datetime.date.today().isoformat(), "info": facts(), "cases": cases}
    write_atomically(options.json, to_json(content))
    print("written:", options.json)


if __name__ == "__main__":
    main()

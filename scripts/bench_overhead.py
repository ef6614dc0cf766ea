"""What gradlab costs over JAX: each operator against JAX's own, compiled, interleaved in one run, as ratios.

Run: python scripts/bench_overhead.py [--rounds 400] [--json scripts/results/overhead.json]

Two ratios a row. `time`: the median over rounds of gradlab's time over JAX's, the two run one after the other in each
round, with the middle half of those ratios. `program`: whether the compiler gave both one program, which settles the
question beyond what a clock can.
"""

import argparse
import datetime
import re
import time
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

COMPILATIONS = 8
FAR = jax.jacfwd
REAR = jax.jacrev


def hvp(f: Callable) -> Callable:
    return lambda x, v: jax.jvp(jax.grad(f), (x,), (v,))[1]


def pull(f: Callable) -> Callable:
    def run(x: jax.Array, w: jax.Array) -> tuple:
        y, back = jax.vjp(f, x)
        return y, back(w)[0]

    return run


def cases() -> list[tuple[str, Callable, Callable, tuple]]:
    """Name, gradlab's derivative, JAX's own, arguments."""
    field = lambda x: jnp.tanh(jnp.cumsum(jnp.sin(x) * x))
    scalar = lambda x: jnp.sum(jnp.sin(jnp.cumsum(x)) ** 2)
    x, v = jnp.linspace(0.1, 1.0, 256), jnp.cos(jnp.arange(256.0))
    loss, (params, *data) = gl.problems.get("digits_mlp").build()
    net = lambda p: loss(p, *data)
    return [
        ("jacobian forward", gl.jacobian(field, mode="forward"), FAR(field), (x,)),
        ("jacobian reverse", gl.jacobian(field, mode="reverse"), REAR(field), (x,)),
        ("hessian forward_over_reverse", gl.hessian(scalar, mode="forward_over_reverse"), FAR(REAR(scalar)), (x,)),
        ("hessian reverse_over_forward", gl.hessian(scalar, mode="reverse_over_forward"), REAR(FAR(scalar)), (x,)),
        ("hessian reverse_over_reverse", gl.hessian(scalar, mode="reverse_over_reverse"), REAR(REAR(scalar)), (x,)),
        ("hessian forward_over_forward", gl.hessian(scalar, mode="forward_over_forward"), FAR(FAR(scalar)), (x,)),
        ("gradient reverse", gl.gradient(net), jax.grad(net), (params,)),
        ("gradient forward", gl.gradient(scalar, mode="forward"), FAR(scalar), (x,)),
        ("value_and_gradient", gl.value_and_gradient(net), jax.value_and_grad(net), (params,)),
        ("hvp auto", gl.hvp(scalar), hvp(scalar), (x, v)),
        ("pushforward", gl.pushforward(field), lambda x, v: jax.jvp(field, (x,), (v,)), (x, v)),
        ("pullback", gl.pullback(field), pull(field), (x, v)),
        ("jacobian auto", gl.jacobian(field), FAR(field), (x,)),
        ("hessian auto", gl.hessian(scalar), jax.hessian(scalar), (x,)),
    ]


def program_text(executable: Any) -> str:
    """The compiled program without names and source lines."""
    text = re.sub(r", metadata=\{[^}]*\}", "", executable.as_text())
    text = re.sub(r"(HloModule )\S+", r"\1", text)
    return re.sub(r"(?m)^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.*\n)*?\n", "", text)


def seconds(run: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def measured(ours: Callable, theirs: Callable, args: tuple, rounds: int) -> dict[str, Any]:
    """Ratios over several compilations of each: where a program lands in memory can cost it a few per cent."""
    ratios, same = [], True
    for _ in range(COMPILATIONS):
        programs = [jax.jit(f).lower(*args).compile() for f in (ours, theirs)]
        same &= program_text(programs[0]) == program_text(programs[1])
        runs = [partial(program, *args) for program in programs]
        once = min(seconds(runs[1], 1) for _ in range(5))
        count = max(1, int(2e-3 / once))
        for i in range(rounds // COMPILATIONS):
            order = (0, 1) if i % 2 else (1, 0)
            taken = {which: seconds(runs[which], count) for which in order}
            ratios.append(taken[0] / taken[1])
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {"ratio": float(middle), "low": float(low), "high": float(high), "rounds": len(ratios), "same_program": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", default="scripts/results/overhead.json")
    options = parser.parse_args()
    rows = {name: measured(ours, theirs, args, options.rounds) for name, ours, theirs, args in cases()}
    table = Table("operator", "time, gradlab / JAX", "middle half", "program", title="Overhead of gradlab", width=100)
    for name, row in rows.items():
        spread = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(name, f"{row['ratio']:.3f}", spread, "the same" if row["same_program"] else "another")
    Console(width=104).print(table)
    content = {"date": datetime.date.today().isoformat(), "info": facts(), "rows": rows}
    write_atomically(options.json, to_json(content))
    print("written:", options.json)


if __name__ == "__main__":
    main()

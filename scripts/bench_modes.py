"""What choosing the mode is worth: gradlab's `auto` and measured choice beside JAX, PyTorch, asdex and folx.

Run: python scripts/bench_modes.py [--only WORD ...] [--rounds 30] [--json FILE] [--plot FILE]

Every derivative of every problem is computed by each contender in turn, round after round in one process, each result
waited for; whatever disagrees with what most of them say is left out as wrong. Contenders that compile to the same
program are timed once; what is quick to time is timed in more rounds, for five seconds. A ratio is the median, over
rounds, of two times taken in the same round, with the middle half of those ratios; `regret` is a time over that of the
fastest right contender, whoever that is. Then: how the sparse modes grow from 10² to 10⁶ variables, as the slope of log
time, and of log memory, in log n.
"""

import argparse
import datetime
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab import plots, trees
from gradlab.cli import facts
from gradlab.report import to_json, write_atomically
from gradlab.timing import Sample, compiled, interleaved, interleaved_once
from gradlab.types import Quantity

Run = Callable[[], Any]
DERIVATIVES: tuple[Quantity, ...] = ("jacobian", "hessian", "hvp", "laplacian")
JAX = {"jacobian": jax.jacobian, "hessian": jax.hessian}
# What a person takes where jax.jacobian fails (a while_loop has no reverse mode) or is wrong.
STAND_IN = "jax.jacfwd"
TORCH = {"jacobian": ("jacrev", "jacfwd"), "hessian": ("hessian",)}
# A contender whose one call takes longer is not the fastest, and would take most of the run.
PATIENCE = 1.0
# A derivative that is quick to time is timed in more rounds, for about so many seconds: of contenders that are nearly
# one program, the fastest in a few rounds is the luckiest.
SECONDS = 5.0
# Nobody would color a fuller matrix by hand, and it would take minutes.
FULL = 0.25


def tasks(words: list[str]) -> Iterator[tuple[str, Quantity, Callable, tuple]]:
    """Name, derivative, function and arguments: every derivative that a problem is meant for."""
    for problem in gl.problems.TABLE:
        for of in problem.of:
            if of in DERIVATIVES and (not words or any(word in f"{problem.name} {of}" for word in words)):
                yield (problem.name, of, *problem.build())


def jax_own(of: str, g: Callable) -> Callable:
    """What a person would write with JAX alone."""
    if of == "hvp":
        return lambda x, v: jax.jvp(jax.grad(g), (x,), (v,))[1]
    if of == "laplacian":
        return lambda x: jnp.trace(jax.hessian(lambda u: g(trees.ravel(x)[1](u)))(trees.ravel(x)[0]))
    return JAX[of](g)


def asdex_own(of: str, g: Callable, x: Any) -> Callable:
    """asdex alone, with dense output, its pattern and coloring found beforehand."""
    import asdex

    pattern = getattr(asdex, f"{of}_sparsity")(g, x)
    if pattern.nnz > FULL * pattern.m * pattern.n:
        raise ValueError("the pattern is dense")
    coloring = getattr(asdex, f"{of}_coloring_from_sparsity")(pattern)
    return getattr(asdex, f"{of}_from_coloring")(g, coloring, output_format="dense")


def folx_own(g: Callable) -> Callable:
    import folx

    def laplacian(x: Any) -> Any:
        flat, back = trees.ravel(x)
        return folx.forward_laplacian(lambda u: g(back(u)))(flat).laplacian

    return laplacian


def contenders(name: str, of: str, f: Callable, args: tuple, picked: gl.Comparison) -> dict[str, Run]:
    """Calls without arguments, by name: `auto`, gradlab's modes, then the peers that can do this."""
    x, *data = args
    g = lambda x: f(x, *data)
    given = (x, trees.random_like(0, x)) if of == "hvp" else (x,)
    makers: dict[str, Callable[[], Callable]] = {"auto": lambda: getattr(gl, of)(g), "jax": lambda: jax_own(of, g)}
    makers |= {f"gradlab {mode}": partial(getattr(gl, of), g, mode=mode) for mode in picked.functions}
    if of == "jacobian":
        makers[STAND_IN] = lambda: jax.jacfwd(g)
    if of in JAX:
        makers["asdex"] = lambda: asdex_own(of, g, x)
    if of == "laplacian":
        makers["folx"] = lambda: folx_own(g)
    runs = {who: started(who, partial(_compiled, make, given)) for who, make in makers.items()}
    runs |= {who: started(who, make) for who, make in torch_own(name, of, args).items()}
    return {who: run for who, run in runs.items() if run}


def _compiled(make: Callable[[], Callable], given: tuple) -> Run:
    return partial(compiled(make(), *given), *given)


def torch_own(name: str, of: str, args: tuple) -> dict[str, Callable[[], Run]]:
    try:
        import torch
        from torch_twins import TWINS, to_torch
    except ImportError:
        return {}
    if name not in TWINS or of not in TORCH:
        return {}
    tensors = to_torch(args)
    make = lambda kind: partial(getattr(torch.func, kind)(TWINS[name]), *tensors)
    return {f"torch {kind}": partial(make, kind) for kind in TORCH[of]}


def started(who: str, make: Callable[[], Run]) -> Run | None:
    """The contender, where it can run at all and is not hopeless."""
    try:
        run = make()
        jax.block_until_ready(run())
        return run if interleaved([run], repeats=1)[0].seconds < PATIENCE else None
    except Exception as error:  # whatever one cannot do must not take the others away
        print(f"    {who}: {type(error).__name__}: {str(error)[:90]}".replace("\n", " "), file=sys.stderr)
        return None


def agreeing(runs: dict[str, Run]) -> dict[str, Run]:
    """The contenders whose result is the one that most of them have."""
    flat = lambda run: np.concatenate([np.ravel(np.asarray(a)) for a in jax.tree.leaves(run())])
    results = {who: flat(run) for who, run in runs.items()}
    near = lambda a, b: a.shape == b.shape and np.allclose(a, b, rtol=0, atol=2e-3 * max(1e-30, np.abs(b).max()))
    votes = {who: sum(near(a, b) for b in results.values()) for who, a in results.items()}
    winner = max(votes, key=lambda who: votes[who])
    return {who: run for who, run in runs.items() if near(results[who], results[winner])}


def ratio(one: Sample, other: Sample) -> dict[str, float]:
    """Quartiles, over rounds, of the first's time over the second's."""
    low, middle, high = np.percentile(np.array(one.rounds) / np.array(other.rounds), [25, 50, 75])
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def measured(name: str, of: Quantity, f: Callable, args: tuple, rounds: int) -> dict[str, Any]:
    picked = gl.compare(f, *args, of=of)
    every = contenders(name, of, f, args, picked)
    runs = agreeing(every)
    samples = interleaved_once(runs, budget=SECONDS, least=rounds)
    best = min(samples, key=lambda who: samples[who].seconds)
    chosen = f"gradlab {picked.best.mode}" if picked.best else ""
    row: dict[str, Any] = {
        "seconds": {who: sample.seconds for who, sample in samples.items()},
        "spread": {who: sample.spread for who, sample in samples.items()},
        "wrong": sorted(set(every) - set(runs)),
        "best": best,
        "auto": picked.auto,
        "auto_regret": ratio(samples["auto"], samples[best]) if "auto" in samples else None,
        "measured_regret": ratio(samples[chosen], samples[best]) if chosen in samples else None,
    }
    for who in ("jax", STAND_IN, "asdex", "folx", "torch jacrev", "torch jacfwd", "torch hessian"):
        if who in samples and "auto" in samples:
            row[f"{who} / auto"] = ratio(samples[who], samples["auto"])
    return row


def best_jax(row: dict[str, Any]) -> dict[str, float] | None:
    """JAX's default over auto; where it does not run or is wrong, jax.jacfwd."""
    return row.get("jax / auto") or row.get(f"{STAND_IN} / auto")


def growth(rounds: int) -> dict[str, Any]:
    """Times and memory of the sparse modes over n, and the slopes of their logarithms from n = 10⁴ on."""
    sizes = [10**k for k in range(2, 7)]
    chain = lambda x: jnp.sin(x[1:] * x[:-1]) + x[1:] ** 2
    valley = gl.problems.get("rosenbrock").build(size=4)[0]
    found = {}
    for title, of, f in (("a bidiagonal Jacobian", "jacobian", chain), ("Rosenbrock's Hessian", "hessian", valley)):
        seconds, peaks = [], []
        for n in sizes:
            x = jnp.linspace(0.1, 1.0, n)
            program = compiled(getattr(gl, of)(f, mode="sparse", output="bcoo"), x)
            seconds.append(interleaved([partial(program, x)], repeats=rounds)[0].seconds)
            peaks.append(program.peak_bytes)
        slope = lambda values: float(np.polyfit(np.log(sizes[2:]), np.log(values[2:]), 1)[0])
        found[title] = {"n": sizes, "seconds": seconds, "bytes": peaks, "time": slope(seconds), "memory": slope(peaks)}
    return found


def best_torch(row: dict[str, Any]) -> dict[str, float] | None:
    """The better of PyTorch's modes over auto."""
    return min((row[key] for key in row if key.startswith("torch")), key=lambda r: r["ratio"], default=None)


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Geometric means over all derivatives, and the worst cases."""
    mean = lambda ratios: float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")
    collected = lambda key, of=DERIVATIVES: [
        row[key]["ratio"] for name, row in rows.items() if row.get(key) and name.split()[1] in of
    ]
    torch = [r["ratio"] for r in map(best_torch, rows.values()) if r]
    slower = [name for name, row in rows.items() if row.get("jax / auto") and row["jax / auto"]["high"] < 1]
    with_stand_in = [r["ratio"] for name, row in rows.items() if name.split()[1] in JAX and (r := best_jax(row))]
    return {
        "regret of auto, geometric mean": mean(collected("auto_regret")),
        "regret of auto, worst": max(collected("auto_regret"), default=float("nan")),
        "regret of the measured choice, geometric mean": mean(collected("measured_regret")),
        "jax.jacobian or jax.hessian over auto, geometric mean": mean(collected("jax / auto", tuple(JAX))),
        f"the same, and {STAND_IN} where jax.jacobian fails or is wrong": mean(with_stand_in),
        "the better of torch.func's over auto, geometric mean": mean(torch),
        "derivatives on which JAX is faster beyond the spread": float(len(slower)),
    }


def table(rows: dict[str, dict[str, Any]]) -> Table:
    columns = ("auto", "fastest", "auto / fastest", "JAX / auto", "torch.func / auto", "asdex / auto")
    made = Table("derivative", *columns, title="Modes", header_style="dim")
    text = lambda r: "" if r is None else f"{r['ratio']:.3g} ({r['low']:.3g} to {r['high']:.3g})"
    for name, row in rows.items():
        ratios = (row["auto_regret"], best_jax(row), best_torch(row), row.get("asdex / auto"))
        made.add_row(name, row["auto"], row["best"].removeprefix("gradlab "), *map(text, ratios))
    return made


def picture(rows: dict[str, dict[str, Any]]) -> Any:
    """JAX's and PyTorch's time over auto's, one line a derivative."""
    shown = {name: (jax_ratio, best_torch(row)) for name, row in rows.items() if (jax_ratio := best_jax(row))}
    named = sorted(shown.items(), key=lambda item: item[1][0]["ratio"])
    ax = plots.axes(7.2, 0.9 + 0.2 * len(named))
    for i, (_, ratios) in enumerate(named):
        for r, color, marker in zip(ratios, plots.COLORS, "os", strict=False):
            if r:
                ax.plot([r["low"], r["high"]], [i, i], color=color, lw=1)
                ax.plot(r["ratio"], i, marker, color=color, ms=5, zorder=3)
    ax.plot([], [], "o", color=plots.COLORS[0], label="JAX's own")
    ax.plot([], [], "s", color=plots.COLORS[1], label="torch.func, the better mode")
    ax.axvline(1, color="0.6", lw=1)
    ax.set(xscale="log", yticks=range(len(named)), xlabel="time over that of gradlab's auto; middle half of the rounds")
    ax.set_yticklabels([name for name, _ in named], fontsize=7)
    ax.legend(frameon=False, loc="lower right")
    return ax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", default=f"scripts/results/modes-{jax.default_backend()}.json")
    parser.add_argument("--plot", default=None, help="beside the JSON where left out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parent))
    rows = {}
    for name, of, f, args in tasks(options.only):
        rows[f"{name} {of}"] = measured(name, of, f, args, options.rounds)
        print(f"{name} {of}: {rows[f'{name} {of}']['best']}", file=sys.stderr)
    Console(width=150).print(table(rows))
    found = {"summary": summary(rows), "growth": {} if options.only else growth(options.rounds)}
    for line, value in found["summary"].items():
        print(f"{line}: {value:.3g}")
    for title, grown in found["growth"].items():
        ends = f"{grown['seconds'][-1]:.3g} s and {grown['bytes'][-1] / 1e6:.3g} MB at n = 10^6"
        print(f"{title}: slope {grown['time']:.2f} in time, {grown['memory']:.2f} in memory; {ends}")
    content = {"date": datetime.date.today().isoformat(), "info": facts(), "rows": rows, **found}
    write_atomically(options.json, to_json(content))
    print("written:", options.json)
    print("written:", plots.save(picture(rows), options.plot or Path(options.json).with_suffix(".svg")))


if __name__ == "__main__":
    main()

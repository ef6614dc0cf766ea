"""Self-attention as one operator, as a few and as many (equation 7.3): the same gradient at other costs.

Run: python scripts/granularity.py    draws out/granularity.png

What is between its four linear maps is written three times. `operators` counts a rule as one; `lines` are those of
the function, and of its rule's forward and backward with their helpers. `kept` is what the forward holds for the
backward, and `memory` all that the compiled gradient needs; `apart` is how far the gradient is from that of the
single primitives.
"""

import ast
import inspect
from collections.abc import Callable
from functools import partial
from math import nan

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from gradlab import fused, plots
from gradlab.timing import compiled, interleaved

BATCH, HEADS, WIDTH, LENGTHS, MIB = 2, 4, 64, (64, 128, 256, 512), 2**20
Array = jax.Array


def coarse(q: Array, k: Array, v: Array) -> Array:
    return fused.attention(q, k, v)


def middle(q: Array, k: Array, v: Array) -> Array:
    return fused.softmax(q @ k.mT / q.shape[-1] ** 0.5) @ v


def fine(q: Array, k: Array, v: Array) -> Array:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights / jnp.sum(weights, axis=-1, keepdims=True) @ v


NAMES = {coarse: "one operator", middle: "two products, a softmax", fine: "single primitives"}
RULES = {coarse: "_attention", middle: "_softmax", fine: None}


def loss(mix: Callable, maps: Array, x: Array) -> Array:
    """Attention of several heads between four linear maps, and a number of what it gives."""
    split = lambda h: h.reshape(*h.shape[:-1], HEADS, -1).swapaxes(-2, -3)
    mixed = mix(*(split(x @ w) for w in maps[:3])).swapaxes(-2, -3).reshape(x.shape)
    return jnp.mean(jnp.square(mixed @ maps[3]))


def lines(mix: Callable) -> str:
    """In the body of the function, and in those of its rule's forward and backward with what they call beside them."""
    beside = {node.name: node for node in ast.parse(inspect.getsource(fused)).body if isinstance(node, ast.FunctionDef)}
    found: set[str] = set()
    named = {f"{RULES[mix]}_forward", f"{RULES[mix]}_backward"} & beside.keys()
    while named - found:
        found |= named
        inside = [part for name in found for part in ast.walk(beside[name]) if isinstance(part, ast.Name)]
        named = {part.id for part in inside} & beside.keys()
    behind = sum(ast.unparse(beside[name]).count("\n") for name in found)
    return f"{inspect.getsource(mix).strip().count(chr(10))} + {behind}"


def measured(length: int) -> dict[str, dict[Callable, float]]:
    """What the gradients cost at this length, timed in turn."""
    maps = jax.random.normal(jax.random.key(0), (4, WIDTH, WIDTH)) / WIDTH**0.5
    args = maps, jax.random.normal(jax.random.key(1), (BATCH, length, WIDTH))
    programs = {mix: compiled(jax.grad(partial(loss, mix)), *args) for mix in NAMES}
    samples = interleaved([partial(program, *args) for program in programs.values()])
    held = {mix: jax.tree.leaves(jax.eval_shape(partial(jax.vjp, partial(loss, mix)), *args)[1]) for mix in NAMES}
    slopes = {mix: program(*args) for mix, program in programs.items()}
    apart = lambda a, b: float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
    return {
        "kept for the backward [MiB]": {mix: sum(a.size * a.dtype.itemsize for a in held[mix]) / MIB for mix in NAMES},
        "memory of the gradient [MiB]": {mix: (programs[mix].peak_bytes or nan) / MIB for mix in NAMES},
        "time of the gradient [ms]": {mix: 1e3 * one.seconds for mix, one in zip(NAMES, samples, strict=True)},
        "apart": {mix: apart(slopes[mix], slopes[fine]) for mix in NAMES},
    }


def main() -> None:
    found = {length: measured(length) for length in LENGTHS}
    kept, memory, time, apart = found[LENGTHS[-1]].values()
    columns = ("between the maps", "operators", "lines", "kept", "memory", "time", "apart")
    table = Table(*columns, title=f"the gradient of attention over {LENGTHS[-1]} tokens")
    head = jax.ShapeDtypeStruct((BATCH, HEADS, LENGTHS[-1], WIDTH // HEADS), jnp.float32)
    for mix, name in NAMES.items():
        operators = len(jax.make_jaxpr(mix)(head, head, head).eqns)
        costs = f"{kept[mix]:.1f} MiB", f"{memory[mix]:.1f} MiB", f"{time[mix]:.1f} ms", f"{apart[mix]:.0e}"
        table.add_row(name, str(operators), lines(mix), *costs)
    Console(width=100).print(table)

    figure = plots.figure(13.0, 4.0)
    panels = figure.subplots(1, 3)
    for ax, title in zip(panels, found[LENGTHS[0]], strict=False):
        for (mix, name), color, marker in zip(NAMES.items(), plots.COLORS, "os^", strict=False):
            values = [found[length][title][mix] for length in LENGTHS]
            ax.loglog(LENGTHS, values, f"{marker}-", color=color, label=name)
        ax.set(title=title, xlabel="tokens")
        ax.set_xticks(LENGTHS, LENGTHS, minor=False)
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        ax.grid(alpha=0.25)
    panels[0].legend(frameon=False)
    print("drawn:", plots.save(figure, "out/granularity.png"))


if __name__ == "__main__":
    main()

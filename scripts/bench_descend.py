"""Steps a second: `descent_loop` and `descend` beside the loops that people write, and other libraries.

Run: python scripts/bench_descend.py [--rounds 15] [--only tiny small digits] [--without torch.compile]
         [--json scripts/results/descend-cpu.json]

All run the same Adam steps on the same data, compiled beforehand, one after the other in each round; a ratio is the
median over rounds of a contender's time over the hand-written scan's in the same round, with the middle half of those
ratios. The hand-written scan records losses and gradient norms, as `descent_loop` does. `--scaling` measures instead
what a descent takes on 1, 2, 4 and 8 virtual devices of this machine's cores: of one problem (strong), and of one that
grows with the devices (weak).
"""

import argparse
import datetime
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab.cli import facts
from gradlab.problems import digits
from gradlab.report import to_json, write_atomically
from gradlab.timing import interleaved

Run = Callable[[], Any]
RATE = 3e-3


def tiny() -> tuple[Any, Any, Any, int]:
    """A line through 32 examples of 4 features: some milliseconds in all, so that every call of the host shows."""
    model = gl.models.linear_regression(4)
    x = jax.random.normal(jax.random.key(0), (32, 4))
    loss = lambda params, batch: jnp.mean((model.apply(params, batch[0]) - batch[1]) ** 2)
    return loss, model.init(jax.random.key(1)), (x, jnp.sum(jnp.sin(x), axis=1)), 500


def small() -> tuple[Any, Any, Any, int]:
    """A network of 4, 16 and 1 units on 32 examples: some microseconds a step."""
    model = gl.models.mlp((4, 16, 1), activation=jnp.tanh)
    x = jax.random.normal(jax.random.key(0), (32, 4))
    data = (x, jnp.sum(jnp.sin(x), axis=1))
    loss = lambda params, batch: jnp.mean((model.apply(params, batch[0])[:, 0] - batch[1]) ** 2)
    return loss, model.init(jax.random.key(1)), data, 500


def digits_sized() -> tuple[Any, Any, Any, int]:
    """The network of `gradlab train` on all of 512 images."""
    model = digits.classifier("mlp")
    train, _ = digits.split()
    data = jax.tree.map(lambda leaf: leaf[:512], train)
    return digits.cross_entropy(model), model.init(jax.random.key(1)), data, 200


CASES = {"tiny": tiny, "small": small, "digits": digits_sized}


def scan(loss: Any, params: Any, data: Any, steps: int) -> Run:
    """What a careful person writes."""
    optimizer = optax.adam(RATE)

    @jax.jit
    def run(params: Any, data: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, data)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), (value, optax.global_norm(gradient))

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)

    return lambda: run(params, data)


def bare(loss: Any, params: Any, data: Any, steps: int) -> Run:
    """The same scan without a record of anything, as optimistix and the loops of PyTorch go."""
    optimizer = optax.adam(RATE)

    @jax.jit
    def run(params: Any, data: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, data), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)

    return lambda: run(params, data)


def loop(loss: Any, params: Any, data: Any, steps: int) -> Run:
    run = jax.jit(gl.descent_loop(loss, optax.adam(RATE), steps=steps))
    return lambda: run(params, data)


def descend(loss: Any, params: Any, data: Any, steps: int) -> Run:
    return lambda: gl.descend(loss, params, data=data, optimizer=optax.adam(RATE), steps=steps).params


def python(loss: Any, params: Any, data: Any, steps: int) -> Run:
    """A jitted step in a Python loop."""
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(params: Any, state: Any, data: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, data)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    def run() -> Any:
        now, state = params, optimizer.init(params)
        for _ in range(steps):
            now, state, _ = step(now, state, data)
        return now

    return run


def optimistix(loss: Any, params: Any, data: Any, steps: int) -> Run:
    import optimistix as optx

    # No tolerance is met, so that it takes all steps.
    solver: Any = optx.OptaxMinimiser(optax.adam(RATE), rtol=0.0, atol=0.0)
    solve = lambda p, d: optx.minimise(loss, solver, p, args=d, max_steps=steps, throw=False).value
    run = jax.jit(solve)
    return lambda: run(params, data)


def torch_eager(loss: Any, params: Any, data: Any, steps: int) -> Run:
    """The same network by PyTorch's own layers and optimizer."""
    return _torch(params, data, steps, lambda step: step)


def torch_compile(loss: Any, params: Any, data: Any, steps: int) -> Run:
    import torch

    return _torch(params, data, steps, torch.compile)


def _torch(params: Any, data: Any, steps: int, prepare: Callable) -> Run:
    import torch

    regression = data[1].dtype == jnp.float32
    params = params if isinstance(params, tuple) else ({"w": params["w"][:, None], "b": params["b"][None]},)
    layers = [torch.nn.Linear(*layer["w"].shape) for layer in params]
    active = torch.nn.Tanh() if regression else torch.nn.ReLU()
    net = torch.nn.Sequential(*([layers[0], active, layers[1]] if len(layers) > 1 else layers))
    x = torch.tensor(np.asarray(data[0]))
    y = torch.tensor(np.asarray(data[1]), dtype=torch.float32 if regression else torch.long)
    cost = torch.nn.functional.mse_loss if regression else torch.nn.functional.cross_entropy
    forward = prepare(lambda: cost(net(x)[:, 0] if regression else net(x), y))

    def run() -> Any:
        with torch.no_grad():
            for layer, start in zip(layers, params, strict=True):
                layer.weight.copy_(torch.tensor(np.asarray(start["w"]).T))
                layer.bias.copy_(torch.tensor(np.asarray(start["b"])))
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            forward().backward()
            optimizer.step()

    return run


CONTENDERS: dict[str, tuple[Callable[..., Run], str]] = {
    "hand-written scan": (scan, ""),
    "scan without records": (bare, ""),
    "gradlab.descent_loop": (loop, ""),
    "gradlab.descend": (descend, ""),
    "jitted Python loop": (python, ""),
    "optimistix": (optimistix, "optimistix"),
    "PyTorch": (torch_eager, "torch"),
    "torch.compile": (torch_compile, "torch"),
}


def measure(case: str, rounds: int, without: list[str], console: Console) -> dict[str, Any]:
    *job, steps = CASES[case]()
    runs: dict[str, Run] = {}
    for name, (make, needs) in CONTENDERS.items():
        if name in without:
            continue
        if needs and importlib.util.find_spec(needs) is None:
            console.print(f"{name}: not installed, left out")
            continue
        try:
            run = make(*job, steps)
            jax.block_until_ready([run() for _ in range(3)])
            runs[name] = run
        except Exception as error:  # such as a compiler that torch.compile does not find
            console.print(f"{name}: cannot run here ({type(error).__name__})")
    samples = dict(zip(runs, interleaved(list(runs.values()), repeats=rounds), strict=True))
    base = np.array(samples["hand-written scan"].rounds)
    found = {}
    for name, sample in samples.items():
        ratios = np.array(sample.rounds) / base
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        found[name] = {"seconds": sample.seconds, "steps_per_second": steps / sample.seconds, "ratio": middle}
        found[name] |= {"ratio_low": low, "ratio_high": high}
    _print(case, steps, found, console)
    return {"steps": steps, "contenders": found}


def _print(case: str, steps: int, found: dict[str, Any], console: Console) -> None:
    table = Table(
        "loop", "× scan", "middle half", "steps/s", title=f"{case}: {steps} steps of Adam", header_style="dim"
    )
    for name, row in found.items():
        middle = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        table.add_row(name, f"{row['ratio']:.2f}", middle, f"{row['steps_per_second']:.3g}")
    console.print(table)


def scaling(rounds: int, console: Console) -> dict[str, Any]:
    """Seconds of 50 steps on more and more virtual devices, of 4,096 rows in all, and of 1,024 rows each."""
    model = gl.models.mlp((256, 512, 10))
    loss, start = digits.cross_entropy(model), model.init(jax.random.key(1))
    found: dict[str, Any] = {}
    for kind, rows in (("strong", lambda n: 4096), ("weak", lambda n: 1024 * n)):
        runs: dict[int, Run] = {}
        flops: dict[int, float] = {}
        for n in (1, 2, 4, 8):
            mesh = gl.distributed.mesh(devices=jax.devices()[:n])
            images = jax.random.normal(jax.random.key(0), (rows(n), 256))
            data = gl.distributed.shard(digits.Images(images, jnp.zeros(rows(n), jnp.int32)), mesh)
            params = gl.distributed.replicate(start, mesh)
            program = jax.jit(gl.descent_loop(loss, optax.adam(RATE), steps=50)).lower(params, data).compile()
            flops[n] = float((program.cost_analysis() or {}).get("flops", -1))
            runs[n] = partial(program, params, data)
        samples = interleaved(list(runs.values()), repeats=rounds)
        one = np.array(samples[0].rounds)
        table = Table(
            "devices", "time × one device", "flops a device × one", title=f"{kind} scaling", header_style="dim"
        )
        rows_: dict[str, Any] = {}
        for n, sample in zip(runs, samples, strict=True):
            ratio = float(np.median(np.array(sample.rounds) / one))
            rows_[str(n)] = {"ratio": ratio, "flops_ratio": flops[n] / flops[1]}
            table.add_row(str(n), f"{ratio:.2f}", f"{flops[n] / flops[1]:.3f}")
        console.print(table)
        found[kind] = rows_
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=list(CASES))
    parser.add_argument("--without", nargs="*", default=[], choices=list(CONTENDERS))
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    console = Console(width=100)
    if options.scaling:
        jax.config.update("jax_num_cpu_devices", 8)
        results: dict[str, Any] = {"scaling": scaling(options.rounds, console)}
    else:
        results = {"cases": {case: measure(case, options.rounds, options.without, console) for case in options.only}}
    if options.json:
        date = datetime.date.today().isoformat()
        write_atomically(options.json, to_json({**results, "info": facts(), "date": date}))


if __name__ == "__main__":
    main()

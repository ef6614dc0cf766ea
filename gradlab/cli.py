"""The `gradlab` command: compare, predict, calibrate, train, check, graph, blame, tour, problems, info."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from gradlab import problems, report
from gradlab.checking import check
from gradlab.comparison import Comparison, compare
from gradlab.descent.watching import progress
from gradlab.errors import GradlabError, MissingExtraError, OptionError, TargetError
from gradlab.graphs import graph
from gradlab.mode import cost
from gradlab.prediction import predict
from gradlab.problems import digits
from gradlab.targets import quantity, resolve
from gradlab.types import Fn, Quantity

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="A gradient lab for JAX."
)

# Seconds of timing for each comparison of the whole table; one alone takes compare's own default.
TABLE_BUDGET = 0.1

Task = tuple[str, Fn, tuple[Any, ...], Quantity]


@app.command("compare")
def compare_command(
    target: Annotated[
        str | None, typer.Argument(help="A problem's name, or package.module:function. Without it, every problem.")
    ] = None,
    args: Annotated[str | None, typer.Option(help="package.module:name of the arguments.")] = None,
    of: Annotated[str | None, typer.Option(help="gradient, jacobian, hessian, hvp or laplacian.")] = None,
    modes: Annotated[str | None, typer.Option(help="Modes to compare, separated by commas.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results to this JSON file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw time against memory to this .png, .svg or .pdf.")] = None,
) -> None:
    """Time every mode of a derivative, check each against float64, and say which is the fastest right one."""
    chosen = None if modes is None else tuple(m.strip() for m in modes.split(",") if m.strip())
    wanted = quantity(of)
    _require_writable(json=json, html=html, plot=plot)
    if chosen is not None and target is None and wanted is None:
        raise TargetError("--modes without TARGET needs --of: modes have different names for each derivative.")
    # A pipe has no width of its own; the table has a least one below which it would be cut.
    console = Console(width=max(Console().width, 118))
    done = []
    tasks, missing = _whole_table(wanted) if target is None else ([_single(target, args, wanted)], [])
    with _progress(len(tasks)) as advance:
        for name, f, inputs, kind in tasks:
            advance(f"{kind} of {name}")
            result = compare(f, *inputs, of=kind, modes=chosen, budget=TABLE_BUDGET if target is None else None)
            done.append(_named(result, name))
            console.print(report.table(done[-1]))
    for line in [*missing, *(report.summary(done) if target is None else [])]:
        console.print(line, highlight=False)
    _write(done, json, html, plot)


def _single(target: str, args: str | None, wanted: Quantity | None) -> Task:
    f, inputs, main = resolve(target, args)
    return target, f, inputs, wanted or main


def _whole_table(wanted: Quantity | None) -> tuple[list[Task], list[str]]:
    """Each problem with its main derivative, and lines on those whose data are not installed."""
    tasks: list[Task] = []
    missing = []
    for problem in problems.TABLE:
        if wanted is not None and wanted not in problem.of:
            continue
        try:
            f, inputs = problem.build()
        except MissingExtraError as error:
            missing.append(f"{problem.name}: left out. {error}")
            continue
        tasks.append((problem.name, f, inputs, wanted or problem.of[0]))
    return tasks, missing


def _named(result: Comparison, name: str) -> Comparison:
    return Comparison(**{**vars(result), "name": name})


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr, where that is a terminal and there is more than one thing to wait for."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda text: None
        return
    with progress(transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def _require_writable(**paths: Path | None) -> None:
    """Find a wrong path before anything is computed, not after; each by the name of its option."""
    for option, path in paths.items():
        if path is None:
            continue
        if not path.parent.is_dir():
            raise TargetError(f"--{option} {path}: the folder {path.parent} does not exist. Make it first.")
        if path.is_dir():
            raise TargetError(f"--{option} {path} is a folder; expected a file.")
    if (plot := paths.get("plot")) is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise TargetError(f"--plot {plot} must end in .png, .svg or .pdf.")


def _write(done: Sequence[Comparison], json: Path | None, html: Path | None, plot: Path | None) -> None:
    if json is not None:
        content = {"comparisons": [one.to_dict() for one in done], "summary": report.summary(done), "info": facts()}
        report.write_atomically(json, report.to_json(content))
    if html is not None:
        report.write_atomically(html, report.page("gradlab compare", done))
    if plot is not None:
        from gradlab import plots

        report.write_atomically(plot, plots.image(plots.sheet(done), plot.suffix[1:]))


@app.command("predict")
def predict_command(
    target: Annotated[str, typer.Argument(help="A problem's name, or package.module:function.")],
    args: Annotated[str | None, typer.Option(help="package.module:name of the arguments.")] = None,
    of: Annotated[str | None, typer.Option(help="gradient, jacobian, hessian, hvp or laplacian.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the prediction to this JSON file.")] = None,
) -> None:
    """Say what each mode of a derivative would cost, and which one auto would take; nothing runs."""
    wanted = quantity(of)
    _require_writable(json=json)
    name, f, inputs, kind = _single(target, args, wanted)
    result = dataclasses.replace(predict(f, *inputs, of=kind), name=name)
    print(result)
    if json is not None:
        report.write_atomically(json, report.to_json({"prediction": result.to_dict(), "info": facts()}))


@app.command("calibrate")
def calibrate_command(
    budget: Annotated[float, typer.Option(help="Seconds of timing, for all programs together.")] = 20.0,
) -> None:
    """Measure what this device takes for each kind of work, and keep it for predict and auto."""
    from gradlab import calibration

    if not budget > 0:
        raise OptionError(f"--budget must be a positive number of seconds, but got {budget}.")
    before = cost.rates()
    measured, factor = calibration.calibrate(budget)
    table = Table("work", "before", "measured", header_style="dim", title="Seconds each; the cache in bytes")
    for name, value in cost.to_dict(measured).items():
        table.add_row(name, f"{cost.to_dict(before)[name]:.2g}", f"{value:.2g}")
    Console().print(table)
    print(f"Half of the programs that were timed are predicted within a factor of {factor:.2f}.")
    print(f"Kept in {calibration.keep(measured)}; remove the file to go back to the built-in rates.")


@app.command("train")
def train_command(
    model: Annotated[str, typer.Option(help="softmax, mlp or attention.")] = "mlp",
    optimizer: Annotated[str, typer.Option(help="sgd, momentum, adam or lbfgs.")] = "adam",
    learning_rate: Annotated[float | None, typer.Option(help="Else one that suits the optimizer.")] = None,
    steps: Annotated[int, typer.Option(help="At most so many.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Images a step; lbfgs takes all of them.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the split, the start and the batches.")] = 0,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Save to this folder, and go on from it.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the history to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the history to this .png, .svg or .pdf.")] = None,
) -> None:
    """Train a classifier of handwritten digits, and say how many of the images that it has not seen it gets right."""
    from gradlab.descent import descend  # with optax, which no other command needs

    _require_writable(json=json, plot=plot)
    recipe = digits.recipe(optimizer, learning_rate)
    chosen = digits.classifier(model)
    for_split, for_start, for_batches = jax.random.split(jax.random.key(seed), 3)
    train, test = digits.split(key=for_split)
    result = descend(
        digits.cross_entropy(chosen),
        chosen.init(for_start),
        data=train,
        optimizer=recipe,
        steps=steps,
        batch_size=None if optimizer == "lbfgs" else batch_size,
        key=for_batches,
        checkpoint_dir=checkpoint_dir,
        progress=sys.stderr.isatty(),
    )
    right = digits.accuracy(chosen, result.params, test)
    print(f"{model} by {optimizer}: {result}")
    print(f"{right:.1%} of {len(test.labels)} images that it was not trained on are classified right.")
    if json is not None:
        content = {"training": result.to_dict(), "test_accuracy": right, "info": facts()}
        report.write_atomically(json, report.to_json(content))
    if plot is not None:
        from gradlab import plots

        plots.save(plots.descent(result, name=f"{model} by {optimizer}"), plot)


@app.command("check")
def check_command(
    target: Annotated[str, typer.Argument(help="A problem's name, or package.module:function.")],
    args: Annotated[str | None, typer.Option(help="package.module:name of the arguments.")] = None,
    order: Annotated[int, typer.Option(help="1, or 2 for the second derivative as well.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
) -> None:
    """Say whether a derivative is right, or what is wrong with it and where; the exit code is 0 only for ok."""
    _require_writable(json=json)
    f, inputs, _ = resolve(target, args)
    result = dataclasses.replace(check(f, *inputs, order=order), name=target)
    Console(highlight=False).print(str(result), style="green" if result.ok else "red", markup=False)
    if json is not None:
        report.write_atomically(json, report.to_json({"check": result.to_dict(), "info": facts()}))
    if not result.ok:
        raise typer.Exit(1)


@app.command("graph")
def graph_command(
    target: Annotated[str, typer.Argument(help="A problem's name, or package.module:function.")],
    args: Annotated[str | None, typer.Option(help="package.module:name of the arguments.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")] = None,
    dot: Annotated[Path | None, typer.Option(help="Write the graph for Graphviz to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the graph to this .png, .svg or .pdf.")] = None,
) -> None:
    """List the operators of a function, with values forward and adjoints backward."""
    _require_writable(html=html, dot=dot, plot=plot)
    f, inputs, _ = resolve(target, args)
    result = dataclasses.replace(graph(f, *inputs), name=target)
    print(result)
    if html is not None:
        report.write_atomically(html, result.to_html())
    if dot is not None:
        report.write_atomically(dot, result.to_dot())
    if plot is not None:
        from gradlab import plots

        plots.save(result.plot(), plot)


@app.command("blame")
def blame_command(
    target: Annotated[str, typer.Argument(help="A problem's name, or package.module:function with one real output.")],
    args: Annotated[str | None, typer.Option(help="package.module:name of the arguments.")] = None,
    where: Annotated[str | None, typer.Option(help="One input, such as \"args[0]['w']\"; else all of them.")] = None,
) -> None:
    """Name the operator and the line that make a derivative NaN, infinite or zero; the exit code is 1 if one does."""
    f, inputs, _ = resolve(target, args)
    found = graph(f, *inputs).blame(where)
    if found is None:
        print(f"{target}: every derivative is finite, and none is cut off.")
        return
    Console(highlight=False).print(str(found), style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1)


@app.command("tour")
def tour_command(
    out: Annotated[Path, typer.Option(help="The folder to write; what an older tour left there is replaced.")] = Path(
        "out/tour"
    ),
) -> None:
    """Write the tour of gradients as a site of plain files, with everything in it computed here."""
    from gradlab import tour

    with _progress(len(tour.PARTS)) as advance:
        first = tour.build(out, progress=advance)
    print(f"Written. Open {first} in a browser.")


@app.command("problems")
def problems_command() -> None:
    """List the functions that comparisons, tests and benchmarks draw from."""
    table = Table("name", "derivatives", "size", "description", header_style="dim")
    for problem in problems.TABLE:
        table.add_row(problem.name, ", ".join(problem.of), str(problem.size), problem.description)
    Console().print(table)


@app.command("info")
def info_command() -> None:
    """Versions, devices and precision: what to put into a report."""
    for name, value in facts().items():
        Console().print(f"{name:12} {value}", highlight=False)


def facts() -> dict[str, str]:
    """What the numbers depend on, by name: versions, devices, precision.

    >>> sorted(facts())[:3]
    ['devices', 'extras', 'gradlab']
    """
    devices = ", ".join(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices())
    extras = ("asdex", "folx", "scikit-learn", "sympy", "orbax-checkpoint", "pdoc")
    found = [f"{name} {_version(name)}" for name in extras if _version(name)]
    return {
        "gradlab": _version("gradlab-jax") or "not installed",
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "optax": _version("optax"),
        "extras": ", ".join(found) or "none",
        "devices": devices,
        "precision": f"{jnp.result_type(float)} by default, matrix products {_matmul_precision()}",
    }


def _matmul_precision() -> str:
    return getattr(jax.config, "jax_default_matmul_precision", None) or "as the platform does them"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; gradlab's own errors are one line on stderr and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments))
    except GradlabError as error:
        Console(stderr=True).print(f"[bold red]error[/] {type(error).__name__}: ", end="")
        Console(stderr=True, markup=False, highlight=False).print(str(error))
        sys.exit(2)

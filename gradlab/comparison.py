"""What each mode costs here, and which is the fastest right one."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import inputs, operators, reference, trees
from gradlab.errors import ArgumentError, GradlabError, OptionError, UnsupportedModeError
from gradlab.mode import choice
from gradlab.prediction import Prediction, predict
from gradlab.timing import Program, Sample, compiled, interleaved_once, race
from gradlab.types import MODES, Fn, PyTree, Quantity

# Predictions are right within a factor of ten: a mode that is further over the budget is not even compiled.
HOPELESS = 10.0
# So one that is predicted to take so many times as long as another is not the fastest; one call of it may take minutes.
FAR = 100.0
VALUE = "the function itself"

Status = Literal["ok", "wrong", "unsupported", "unavailable", "skipped", "failed"]


@dataclass(frozen=True)
class Row:
    """One mode: what it cost and whether it was right.

    Attributes:
        mode: its name.
        status: `ok`, `wrong` (disagrees with the reference), `unsupported` (no rule), `unavailable` (an extra is
            missing), `skipped` (over memory_limit or budget) or `failed`.
        seconds: run time of one call, the median; spread: interquartile range over the median.
        compile_seconds: time to trace and compile.
        flops, bytes: what the compiler counts; peak_bytes: arguments, results and temporaries.
        relative_cost: run time over that of f.
        error: largest difference from the float64 reference, over the reference's largest entry.
        predicted_seconds, predicted_bytes: what `auto` expects of it, found before anything ran.
        reason: why it did not run, or what else to know.

    Whatever was not measured is None.
    """

    mode: str
    status: Status
    seconds: float | None = None
    spread: float | None = None
    compile_seconds: float | None = None
    flops: float | None = None
    bytes: float | None = None
    peak_bytes: int | None = None
    relative_cost: float | None = None
    error: float | None = None
    predicted_seconds: float | None = None
    predicted_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """The rows of one comparison, fastest right mode first; made by `compare`."""

    of: Quantity
    name: str
    rows: tuple[Row, ...]
    auto: str | None
    value_seconds: float
    device: str
    functions: dict[str, Callable[..., PyTree]] = field(repr=False, compare=False, default_factory=dict)

    @property
    def best(self) -> Row | None:
        """The fastest row that is right; None where no mode is."""
        right = [row for row in self.rows if row.status == "ok" and row.seconds is not None]
        return min(right, key=lambda row: cast(float, row.seconds), default=None)

    @property
    def function(self) -> Callable[..., PyTree]:
        """The compiled derivative of the best row, for arguments of the shapes and dtypes compared.

        Raises:
            UnsupportedModeError: no mode is right.
        """
        if self.best is None:
            raise UnsupportedModeError(f"No mode of {self.of} is right for {self.name}; the table says why:\n{self}")
        return self.functions[self.best.mode]

    @property
    def regret(self) -> float | None:
        """The time of the mode that `auto` picks over the best one's: 1 is a perfect choice."""
        return self.ratio(self.auto)

    def ratio(self, mode: str | None) -> float | None:
        """The time of a mode over the best one's; None where either was not measured, or the mode is wrong."""
        row = next((row for row in self.rows if row.mode == mode and row.status == "ok"), None)
        if row is None or row.seconds is None or self.best is None:
            return None
        return row.seconds / cast(float, self.best.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Everything measured, as JSON scalars, lists and dicts."""
        return {
            "of": self.of,
            "name": self.name,
            "device": self.device,
            "value_seconds": self.value_seconds,
            "best": None if self.best is None else self.best.mode,
            "auto": self.auto,
            "regret": self.regret,
            "rows": [asdict(row) for row in self.rows],
        }

    def to_html(self) -> str:
        """One self-contained page: the table and the picture; it loads nothing from anywhere."""
        from gradlab import report

        return report.page(f"{self.of} of {self.name}", [self])

    def plot(self, ax: Any = None) -> Any:
        """Time against peak memory, one point a mode; returns the matplotlib axes."""
        from gradlab import plots

        return plots.comparison(self, ax)

    def _repr_html_(self) -> str:
        from gradlab import report

        return report.html_table(self)

    def __str__(self) -> str:
        from gradlab import report

        return report.text(self)


def compare(
    f: Fn,
    *args: PyTree,
    of: Quantity = "jacobian",
    modes: tuple[str, ...] | list[str] | None = None,
    repeats: int | None = None,
    budget: float | None = None,
    memory_limit: int | None = None,
) -> Comparison:
    """Compile and time every mode of a derivative of f, and check each against a float64 reference.

    Compiling and running are timed apart; runs are interleaved and waited for. A mode that is wrong is never the best,
    however fast.

    Args:
        f: a function of pytrees, differentiated by its first argument.
        args: its arguments; numbers and arrays. For `of="hvp"` the direction is a fixed random one.
        of: `"gradient"`, `"jacobian"`, `"hessian"`, `"hvp"` or `"laplacian"`.
        modes: the modes to compare; all but `auto` where None.
        repeats: rounds of timing, the same for all modes. Where None, all modes share half of the budget (5 rounds at
            least), and those that may be the fastest share the other half.
        budget: seconds of timing for all modes together, 1 where None. A mode whose first run alone is over it is
            skipped, as is one that is predicted to be ten times over it. Where modes is None, so is one that is
            predicted to take a hundred times as long as the fastest.
        memory_limit: bytes; a mode whose compiled program needs more is skipped.

    Returns:
        The comparison; print it, `plot()` it, or call `.function(*args)`, the fastest right derivative.

    Raises:
        UnknownModeError: of or modes hold an unknown name.
        OptionError: repeats, budget or memory_limit out of range.
        NotScalarError, NotDifferentiableError, EmptyInputError: f and args have no such derivative.

    Source: equation 7.4.

    >>> result = compare(lambda t: t * jnp.ones(100), 2.0, repeats=3)
    >>> result.rows[0].status, result.auto, result.function(2.0).shape
    ('ok', 'forward', (100,))
    """
    asked = _asked(f, of, modes, repeats, budget, memory_limit)
    args = jax.tree.map(jnp.asarray, args)
    inputs.require_fit(*inputs.focus(f, 0, args, {}), of)
    name = getattr(f, "__name__", type(f).__name__)
    f, held = _holding_integers(f, args)
    predicted = _predicted(f, args, of)
    if of == "hvp":
        args = (args[0], trees.random_like(0, args[0]), *args[1:])
    value = compiled(_value(f, of), *args)
    hopeless = _hopeless(predicted, budget or 1.0, FAR if modes is None else np.inf)
    tried = {mode: hopeless.get(mode) or _try(_derivative(f, of, mode), args, mode, memory_limit) for mode in asked}
    programs = {mode: one for mode, one in tried.items() if isinstance(one, Program)}
    rows = {mode: one for mode, one in tried.items() if isinstance(one, Row)}
    programs, over = _within_budget(programs, args, budget or 1.0)
    verdicts = reference.judge(f, args, of, programs, _derivative)
    # Modes that compile to the same program are one: no noise may rank them.
    runs = {name: partial(program, *args) for name, program in {VALUE: value, **programs}.items()}
    if repeats is None:
        wrong = [mode for mode, (_, right, _) in verdicts.items() if not right]
        samples = race(runs, apart=[VALUE, *wrong], budget=budget or 1.0)
    else:
        samples = interleaved_once(runs, repeats=repeats)
    for mode, program in programs.items():
        rows[mode] = _measured(mode, program, samples[mode], samples[VALUE], verdicts[mode])
    rows = {mode: _foretold(row, predicted) for mode, row in (rows | over).items()}
    ordered = sorted(rows.values(), key=lambda r: (get_args(Status).index(r.status), r.seconds or np.inf))
    functions = {mode: _guarded(program, held, 2 if of == "hvp" else 1) for mode, program in programs.items()}
    auto = predicted.choice if predicted else None
    return Comparison(of, name, tuple(ordered), auto, samples[VALUE].seconds, _device(), functions)


def _holding_integers(f: Fn, args: tuple) -> tuple[Fn, dict[int, jax.Array]]:
    """f with the integers and bools among its data as constants: where they are indices, a pattern hangs on them.

    Returns:
        The function, of the same arguments, and what it holds, by the place in the flat data.
    """
    leaves = jax.tree.leaves(args[1:])
    held = {i: a for i, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.integer) or a.dtype == jnp.bool_}

    def g(x: PyTree, *rest: PyTree) -> PyTree:
        given, structure = jax.tree.flatten(rest)
        return f(x, *jax.tree.unflatten(structure, [held.get(i, leaf) for i, leaf in enumerate(given)]))

    return (g, held) if held else (f, held)


def _guarded(program: Program, held: dict[int, jax.Array], first: int) -> Callable[..., PyTree]:
    """The program, which raises `ArgumentError` for other integers than those that it was compiled for."""
    if not held:
        return program

    def run(*given: PyTree) -> PyTree:
        leaves = jax.tree.leaves(given[first:])
        for i, array in held.items():
            if leaves[i] is not array and not np.array_equal(leaves[i], array):
                raise ArgumentError(
                    "This function was compiled for the integers that compare was given, and an array of other ones "
                    f"was passed: {array!r:.60} there, {leaves[i]!r:.60} here. Call compare again with these arguments."
                )
        return program(*given)

    return run


def _predicted(f: Fn, args: tuple, of: Quantity) -> Prediction | None:
    """What is predicted of every mode; None where none can run."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), args)
    try:
        return predict(f, *shapes, of=of)
    except UnsupportedModeError:
        return None


def _hopeless(predicted: Prediction | None, budget: float, far: float) -> dict[str, Row]:
    """The modes that are not even compiled: far over the budget or all memory there is, or far behind the fastest."""
    limit = choice.device_limit() or np.inf
    rows = predicted.rows if predicted else ()
    able = [(e.mode, e.seconds, e.bytes) for e in rows if e.seconds is not None and e.bytes is not None]
    least = min((seconds for _, seconds, _ in able), default=np.inf)
    reasons = {}
    for mode, seconds, needed in able:
        if needed > limit:
            reasons[mode] = f"predicted to need {needed:,} of {limit:,} bytes"
        elif seconds > HOPELESS * budget:
            reasons[mode] = f"predicted to take {seconds:.2g} s a call, far over budget={budget:g}"
        elif seconds > far * least:
            times = f"{seconds / least:.0f} times as long as the fastest"
            reasons[mode] = f"predicted to take {times}; name it in modes= to have it timed"
    return {mode: Row(mode, "skipped", reason=reason) for mode, reason in reasons.items()}


def _foretold(row: Row, predicted: Prediction | None) -> Row:
    found = next((e for e in predicted.rows if e.mode == row.mode), None) if predicted else None
    if found is None or found.status != "ok":
        return row
    reason = "; ".join(part for part in (row.reason, found.reason) if part)
    return replace(row, predicted_seconds=found.seconds, predicted_bytes=found.bytes, reason=reason)


def _asked(f: Fn, of: str, modes: Any, repeats: Any, budget: Any, memory_limit: Any) -> tuple[str, ...]:
    inputs.require_function(f, "compare")
    asked = operators.modes(cast(Quantity, of))
    if modes is not None:
        asked = (modes,) if isinstance(modes, str) else tuple(modes)
        for mode in asked:
            inputs.require_mode(mode, of)
        if not asked:
            raise OptionError("modes is empty; name at least one mode, or leave it out for all of them.")
    inputs.require_count(repeats, "repeats", none=True)
    inputs.require_count(memory_limit, "memory_limit", none=True)
    if budget is not None and not (isinstance(budget, (int, float)) and budget > 0):
        raise OptionError(f"budget must be a positive number of seconds or None, but got {budget!r}.")
    return tuple(dict.fromkeys(m for m in asked if m != "auto")) or tuple(m for m in MODES[of] if m != "auto")


def _value(f: Fn, of: str) -> Fn:
    return (lambda x, v, *rest: f(x, *rest)) if of == "hvp" else f


def _derivative(f: Fn, of: str, mode: str) -> Fn:
    """The derivative as a function of all arguments of the comparison; for hvp the second one is the direction."""
    match of:
        case "gradient" | "jacobian" | "hessian":
            return getattr(operators, of)(f, mode=mode)
        case "laplacian":
            return lambda x, *rest: operators.laplacian(lambda x: f(x, *rest), mode=cast(Any, mode))(x)
        case "hvp":
            return lambda x, v, *rest: operators.hvp(lambda x: f(x, *rest), mode=cast(Any, mode))(x, v)
        case _:
            raise AssertionError(of)


def _measured(mode: str, program: Program, sample: Sample, value: Sample, verdict: reference.Verdict) -> Row:
    error, right, note = verdict
    return Row(
        mode,
        "ok" if right else "wrong",
        sample.seconds,
        sample.spread,
        program.compile_seconds,
        program.flops,
        program.bytes,
        program.peak_bytes,
        sample.seconds / value.seconds,
        error,
        reason=note,
    )


def _try(derivative: Fn, args: tuple, mode: str, memory_limit: int | None) -> Program | Row:
    """The compiled program, or the row that says why there is none."""
    try:
        program = compiled(derivative, *args)
    except UnsupportedModeError as error:
        return Row(mode, "unsupported", reason=str(error))
    except ImportError as error:
        return Row(mode, "unavailable", reason=str(error))
    except GradlabError as error:
        return Row(mode, "unsupported", reason=str(error))
    except Exception as error:  # whatever one mode does must not take the others' rows away
        return Row(mode, "failed", reason=f"{type(error).__name__}: {str(error)[:300]}")
    if memory_limit is not None and program.peak_bytes is not None and program.peak_bytes > memory_limit:
        reason = f"needs {program.peak_bytes:,} bytes, over memory_limit={memory_limit:,}"
        return Row(mode, "skipped", peak_bytes=program.peak_bytes, reason=reason)
    return program


def _within_budget(programs: dict[str, Program], args: tuple, budget: float) -> tuple[dict, dict[str, Row]]:
    """Leave out the modes whose first run alone is over the budget, or fails."""
    kept, left = {}, {}
    for mode, program in programs.items():
        try:
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            seconds = time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            left[mode] = Row(mode, "failed", reason=f"{type(error).__name__}: {str(error)[:300]}")
            continue
        if seconds > budget:
            reason = f"the first call took {seconds:.2g} s, over budget={budget:g}"
            left[mode] = Row(mode, "skipped", compile_seconds=program.compile_seconds, reason=reason)
        else:
            kept[mode] = program
    return kept, left


def _device() -> str:
    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}, {jax.device_count()} device(s), jax {jax.__version__}"

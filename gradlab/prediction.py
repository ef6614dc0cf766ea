"""What would `auto` choose, and why? Asked without running anything."""

from dataclasses import asdict, dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp  # noqa: F401 - the example uses it

from gradlab import inputs
from gradlab.mode import auto, cost
from gradlab.mode.choice import Choice, Estimate
from gradlab.types import Fn, PyTree, Quantity


@dataclass(frozen=True)
class Prediction:
    """What each mode is predicted to cost, the cheapest first; made by `predict`.

    Attributes:
        of, name: the derivative, and of which function.
        rows: one `Estimate` a mode, with `.mode`, `.status`, `.seconds`, `.bytes` and `.reason`.
        choice: the mode that `auto` takes.
        reason: why.
        rates: where the rates of the device are from: `calibrated`, `built in`, or `built in, unmeasured`.
    """

    of: Quantity
    name: str
    rows: tuple[Estimate, ...]
    choice: str
    reason: str
    rates: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON scalars, lists and dicts."""
        return asdict(self)

    def __str__(self) -> str:
        from gradlab import report

        return report.prediction_text(self)

    def _repr_html_(self) -> str:
        from gradlab import report

        return report.prediction_html(self)


def predict(f: Fn, *args: PyTree, of: Quantity = "jacobian", memory_limit: int | None = None) -> Prediction:
    """What each mode of a derivative of f would cost, and which one `auto` would take; nothing runs.

    Each mode's own program is traced and priced by what its kernels do on this platform: bytes moved, arithmetic, loop
    iterations, starts. `gradlab calibrate` measures the rates of this machine.

    Args:
        f: a function of pytrees, differentiated by its first argument.
        args: its arguments, or their shapes (`jax.ShapeDtypeStruct`). A pattern of zeros that hangs on the values of
            integers is found only where they are given.
        of: `"gradient"`, `"jacobian"`, `"hessian"`, `"hvp"` or `"laplacian"`.
        memory_limit: bytes, beyond which fewer directions are taken at a time; None for what the device has.

    Returns:
        The prediction; print it.

    Raises:
        UnknownModeError: of is no derivative.
        UnsupportedModeError: no mode can run.
        NotScalarError, NotDifferentiableError, EmptyInputError: f and args have no such derivative.

    Source: Williams, Waterman and Patterson, Roofline, CACM 52 (2009).

    >>> found = predict(lambda t: t * jnp.ones(100), 2.0)
    >>> found.choice, sorted(row.mode for row in found.rows if row.status == "ok")
    ('forward', ['forward', 'reverse'])
    """
    inputs.require_function(f, "predict")
    inputs.require_quantity(of)
    inputs.require_count(memory_limit, "memory_limit", none=True)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    x, *rest = args if args else (None,)
    leaves, structure = jax.tree.flatten(rest)
    given: list[Choice] = []

    def look(x: PyTree, unknown: dict[int, Any]) -> None:
        # Inside a trace, so that what has only a shape has no value either.
        held = jax.tree.unflatten(structure, [unknown.get(i, leaf) for i, leaf in enumerate(leaves)])
        g, x = inputs.focus(f, 0, (x, *held), {})
        inputs.require_fit(g, x, of)
        given.append(auto.choose(g, x, of, x if of == "hvp" else None, memory_limit))

    jax.eval_shape(look, x, {i: leaf for i, leaf in enumerate(leaves) if is_shape(leaf)})
    rows = sorted(given[0].estimates, key=lambda e: (e.status != "ok", e.seconds or 0.0))
    name = getattr(f, "__name__", type(f).__name__)
    mode = given[0].mode
    return Prediction(of, name, tuple(rows), mode, _reason(mode, rows), cost.origin())


def _reason(mode: str, rows: list[Estimate]) -> str:
    able = [row for row in rows if row.status == "ok"]
    chosen = next(row for row in able if row.mode == mode)
    others = [row for row in able if row.mode != mode]
    if not others:
        return "no other mode can run" + (f"; {chosen.reason}" if chosen.reason else "")
    rival = min(others, key=lambda row: cast(float, row.seconds))
    ratio = cast(float, rival.seconds) / cast(float, chosen.seconds)
    if ratio >= 1.005:
        gain = f"{ratio:.3g} × faster than {rival.mode}"
    elif ratio > 0.995:
        gain = f"as fast as {rival.mode}"
    else:
        gain = f"{1 / ratio - 1:.0%} slower than {rival.mode}: too close to call, and it is simpler"
    return f"predicted {gain}" + (f"; {chosen.reason}" if chosen.reason else "")

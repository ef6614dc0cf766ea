"""Which of several computed derivatives is right: float64, and differences of values where the modes disagree."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import trees
from gradlab.errors import GradlabError
from gradlab.types import Fn, PyTree

# A working precision keeps about half its digits through a derivative; a wrong rule is off by far more.
WRONG_ABOVE_ROOT_EPS = 30.0
REFUTED_ABOVE = 1e-3  # a gap to the differences of values, over the largest of them
FIRST = ("gradient", "jacobian")

NO_FLOAT64 = "f cannot run in float64; held against differences of its values and the other modes instead"
KINKED = "f has a kink at this point, where its values do not tell which derivative is right"

Verdict = tuple[float | None, bool, str]
Derivative = Callable[[Fn, str, str], Fn]


def judge(f: Fn, args: tuple, of: str, results: dict[str, PyTree], derivative: Derivative) -> dict[str, Verdict]:
    """The error of each result relative to float64, whether it is right, and what to know about it.

    The reference is the derivative in float64, in the first of the modes that ran. Where differences of f's values
    refute it, or a result disagrees with it, every mode's float64 result is held against the differences, and the
    closest becomes the reference. Outputs with a kink at the point are left out of the differences.

    Args:
        f, args, of: what was differentiated.
        results: a result for each mode.
        derivative: makes the derivative of f in a mode.

    Returns:
        `(error, right, note)` for each mode; the error is a ratio to the reference's largest entry, and None where f
        cannot run in float64.
    """
    if not results:
        return {}
    limit = WRONG_ABOVE_ROOT_EPS * float(np.sqrt(_epsilon(args[0])))
    numeric = _Numeric(f, args, of)
    exact = {m: _in_float64(derivative(f, of, m), args) for m in list(results)[:1]}
    candidates = {m: e if e is not None else results[m] for m, e in exact.items()}
    chosen, base = next(iter(candidates.items()))
    if numeric.refutes(base) or any(not _difference(r, base) <= limit for r in results.values()):
        exact |= {m: _in_float64(derivative(f, of, m), args) for m in results if m not in exact}
        candidates = {m: e if e is not None else results[m] for m, e in exact.items()}
        chosen, base = min(candidates.items(), key=lambda item: numeric.gap(item[1]))
    refuted = numeric.refutes(base)
    wide = exact[chosen] is not None and _epsilon(base) < 1e-15
    doubts = "; ".join([NO_FLOAT64] * (not wide) + [KINKED] * numeric.kinked)
    verdict = partial(_verdict, limit=limit, refuted=refuted, wide=wide, doubts=doubts)
    return {mode: verdict(_difference(result, base)) for mode, result in results.items()}


def _verdict(error: float, *, limit: float, refuted: bool, wide: bool, doubts: str) -> Verdict:
    known = error if wide else None
    if refuted:
        return known, False, "disagrees with differences of f's values"
    if not error <= limit:
        reference = "the float64 reference" if wide else "the mode that differences of f's values support"
        return known, False, f"differs from {reference} by {error:.2g} of its largest entry"
    return known, True, doubts


class _Numeric:
    """Differences of f's values along one random direction, at steps that say how far to trust each other.

    Two would not do: a kink at two thirds of a step changes the second difference over it, and over twice that step,
    by the same amount. A step eight times shorter does not reach that kink.
    """

    fine: Any
    coarse: tuple[Any, ...]
    kinks: list[np.ndarray] | None

    def __init__(self, f: Fn, args: tuple, of: str):
        self.of = of
        self.v = args[1] if of == "hvp" else trees.random_like(1, args[0])
        rest = args[2:] if of == "hvp" else args[1:]
        values = lambda x, v, *rest: [_differences(f, x, v, rest, of, scale) for scale in (1 / 8, 1.0, 2.0)]
        found = _in_float64(values, (args[0], self.v, *rest))
        self.fine, *coarse = [slope for slope, _ in found or [(None, None)]]
        self.coarse = tuple(coarse)
        self.kinks = _kinks(found) if found and of in FIRST else None

    @property
    def kinked(self) -> bool:
        """Whether f has a kink at the point itself, in any output."""
        return self.kinks is not None and any(kink.any() for kink in self.kinks)

    def gap(self, result: PyTree) -> float:
        """How far a derivative is from the differences, over their largest entry."""
        if self.fine is None:
            return 0.0
        told, fine = jax.tree.leaves(_contracted(result, self.v, self.of)), jax.tree.leaves(self.fine)
        if self.kinks is not None:
            told = [np.where(kink, b, a) for kink, a, b in zip(self.kinks, told, fine, strict=True)]
        return _difference(told, fine)

    def refutes(self, result: PyTree) -> bool:
        """Whether the gap is beyond what rounding, truncation or a kink between two of the steps could explain."""
        trust = 10 * max((_difference(coarse, self.fine) for coarse in self.coarse), default=0.0)
        return self.fine is not None and self.gap(result) > REFUTED_ABOVE + trust


def _kinks(found: list[tuple[PyTree, PyTree]]) -> list[np.ndarray]:
    """Where the slopes to the right and to the left stay as far apart as the step falls by eight, for each leaf.

    Where f is smooth the gap between them falls with the step, and where its values are rounded it grows.
    """
    (slopes, finer), (_, coarser), *_ = found

    def of_leaf(slope: np.ndarray, fine: np.ndarray, coarse: np.ndarray) -> np.ndarray:
        size = np.max(np.abs(slope[np.isfinite(slope)]), initial=0.0)
        with np.errstate(invalid="ignore"):
            stays = (np.abs(fine) > np.abs(coarse) / 2) & (np.abs(fine) < 2 * np.abs(coarse))
            return stays & (np.abs(fine) > REFUTED_ABOVE * size)

    return list(map(of_leaf, *map(jax.tree.leaves, (slopes, finer, coarser))))


def _epsilon(x: PyTree) -> float:
    """The rounding of the coarsest floating leaf."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(x))


def _in_float64(f: Fn, args: tuple) -> Any:
    """f at the arguments in float64, as host arrays; None when f insists on its own precision."""
    with jax.enable_x64(True):
        wide = jax.tree.map(_widen, args)
        try:
            return jax.tree.map(np.asarray, jax.jit(f)(*wide))
        except (TypeError, ValueError, GradlabError):
            return None


def _widen(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return leaf.astype(jnp.complex128)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _difference(given: PyTree, exact: PyTree) -> float:
    """The largest difference over the largest entry of the leaf; NaN where both have it counts as equal."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        a = a.astype(np.promote_types(a.dtype, np.float64))
        if not b.size:
            continue
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.where(same, 0.0, np.abs(a - b))
        size = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
        ratio = float(np.max(gap)) / (size if size > 0 else 1.0)
        worst = max(worst, float("inf") if np.isnan(ratio) else float(ratio))
    return worst


def _differences(f: Fn, x: PyTree, v: PyTree, rest: tuple, of: str, scale: float) -> tuple[PyTree, PyTree]:
    """Central differences: J v for first derivatives, ⟨v, H v⟩ for second ones, the sum over axes for the Laplacian.

    Beside them, for first derivatives, what the slope to the right has over the slope to the left.
    """
    eps = _epsilon(x)
    along = lambda t, v: f(trees.axpy(t, v, x), *rest)
    if of in FIRST:
        h = scale * eps ** (1 / 3)
        values = along(h, v), along(0.0, v), along(-h, v)
        slope = jax.tree.map(lambda a, _, c: (a - c) / (2 * h), *values)
        return slope, jax.tree.map(lambda a, b, c: (a - 2 * b + c) / h, *values)
    h = scale * eps ** (1 / 4)
    second = lambda v: jax.tree.map(lambda a, b, c: (a - 2 * b + c) / h**2, along(h, v), along(0.0, v), along(-h, v))
    if of == "laplacian":
        total = jax.vmap(second)(trees.basis(x, jnp.arange(trees.size(x))))
        return jax.tree.map(lambda t: t.sum(0), total), ()
    return second(v), ()


def _contracted(result: PyTree, v: PyTree, of: str) -> PyTree:
    """What `_differences` gives, from a derivative: J v, ⟨v, H v⟩, ⟨v, Hv⟩ or the Laplacian itself."""
    if of == "laplacian":
        return result
    flat_v = np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(v)])
    structure: Any = jax.tree.structure(v)
    if of in ("gradient", "hvp"):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)]) @ flat_v
    rows = jax.tree.leaves(result)
    k = structure.num_leaves
    if of == "hessian":
        twice = lambda start: sum(
            _matrix_times(_matrix_times(rows[start + i * k + j], b), a)
            for i, a in _numbered(v)
            for j, b in _numbered(v)
        )
        return [twice(start) for start in range(0, len(rows), k * k)]
    return [sum(_matrix_times(rows[i + j], b) for j, b in _numbered(v)) for i in range(0, len(rows), k)]


def _numbered(v: PyTree) -> list[tuple[int, Any]]:
    return list(enumerate(jax.tree.leaves(v)))


def _matrix_times(block: Any, b: Any) -> Any:
    return np.tensordot(np.asarray(block), np.asarray(b), axes=np.ndim(b))

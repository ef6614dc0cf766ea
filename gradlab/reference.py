"""Which of several computed derivatives is right: float64, and differences of values where the modes disagree."""

from collections.abc import Callable, Mapping
from functools import cached_property
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
UNSETTLED_ABOVE = 0.5  # a gap between differences at two steps: f turns, or jumps, within a step
JOSTLED = 10.0  # what rounding explains, over how far the last bits of the arguments move a result
FIRST = ("gradient", "jacobian")

NO_FLOAT64 = "f cannot run in float64; held against differences of its values and the other modes instead"
KINKED = "f has a kink at this point, where its values do not tell which derivative is right"
UNSETTLED = "f turns or jumps within the shortest step here, so its values do not tell which derivative is right"
ROUNDED = "the derivative is lost in rounding here, in all modes alike; float64 loses less"

Verdict = tuple[float | None, bool, str]
Derivative = Callable[[Fn, str, str], Fn]


def judge(f: Fn, args: tuple, of: str, programs: Mapping[str, Fn], derivative: Derivative) -> dict[str, Verdict]:
    """The error of each result relative to float64, whether it is right, and what to know about it.

    The reference is the derivative in float64, in the first of the modes that ran. Where differences of f's values
    refute it, or a result disagrees with it, every mode's float64 result is held against the differences, and the
    closest becomes the reference. Outputs with a kink at the point are left out of the differences. Where terms cancel,
    so that the derivative is as small as their rounding, what rounding explains is no disagreement.

    Args:
        f, args, of: what was differentiated.
        programs: what gives the result of each mode, from args.
        derivative: makes the derivative of f in a mode.

    Returns:
        `(error, right, note)` for each mode; the error is a ratio to the reference's largest entry, and None where f
        cannot run in float64.
    """
    if not programs:
        return {}
    results = {mode: program(*args) for mode, program in programs.items()}
    rounding = _Rounding(args, programs, results)
    limit = WRONG_ABOVE_ROOT_EPS * float(np.sqrt(_epsilon(args[0])))
    numeric = _Numeric(f, args, of)
    exact = {m: _in_float64(derivative(f, of, m), args) for m in list(results)[:1]}
    candidates = {m: e if e is not None else results[m] for m, e in exact.items()}
    chosen, base = next(iter(candidates.items()))
    agrees = lambda mode: _difference(results[mode], base) <= limit
    if numeric.refutes(base) or not all(agrees(mode) or rounding.explains(mode, base) for mode in results):
        exact |= {m: _in_float64(derivative(f, of, m), args) for m in results if m not in exact}
        candidates = {m: e if e is not None else results[m] for m, e in exact.items()}
        chosen, base = min(candidates.items(), key=lambda item: numeric.gap(item[1]))
    refuted = numeric.refutes(base)
    wide = exact[chosen] is not None and _epsilon(base) < 1e-15

    def verdict(mode: str) -> Verdict:
        error = _difference(results[mode], base)
        doubts = [NO_FLOAT64] * (not wide) + [KINKED] * numeric.kinked
        doubts += [UNSETTLED] * (not numeric.settled and not numeric.kinked)
        wrong = _wrong(error, limit, refuted, wide)
        if wrong and not refuted and not numeric.kinked and rounding.explains(mode, base):
            wrong, doubts = "", [*doubts, ROUNDED]
        return error if wide else None, not wrong, wrong or "; ".join(doubts)

    return {mode: verdict(mode) for mode in results}


def _wrong(error: float, limit: float, refuted: bool, wide: bool) -> str:
    """What is wrong with a result, if anything."""
    if refuted:
        return "disagrees with differences of f's values"
    if error <= limit:
        return ""
    reference = "the float64 reference" if wide else "the mode that differences of f's values support"
    by = f"by {error:.2g} of its largest entry" if np.isfinite(error) else "where that is zero or not a number"
    return f"differs from {reference} {by}"


class _Rounding:
    """What rounding alone may put between the results and the reference.

    Where the last bits of the arguments change, the rounding of a result is drawn anew, while the error of a wrong rule
    stays. A mode that loses more than the others do is not excused by its own rounding.
    """

    def __init__(self, args: tuple, programs: Mapping[str, Fn], results: dict[str, PyTree]):
        self.args, self.programs, self.results = args, programs, results

    def explains(self, mode: str, exact: PyTree) -> bool:
        """Whether a mode's result is no further from the reference than rounding takes this derivative."""
        bounds = map(np.minimum, self._moved[mode], self._usual)
        return _difference(self.results[mode], exact, [JOSTLED * bound for bound in bounds]) == 0

    @cached_property
    def _usual(self) -> list[np.ndarray]:
        """The median over the modes; of two, the lower one."""
        leaves = zip(*self._moved.values(), strict=True)
        return [np.quantile(np.stack(modes), 0.5, axis=0, method="lower") for modes in leaves]

    @cached_property
    def _moved(self) -> dict[str, list[np.ndarray]]:
        """How far each mode's result moves with the last bits of the arguments, for each entry of each leaf."""
        return {mode: self._movement(mode) for mode in self.programs}

    def _movement(self, mode: str) -> list[np.ndarray]:
        flat = lambda tree: [_wide(leaf) for leaf in jax.tree.leaves(tree)]
        moved = zip(*(flat(self.programs[mode](*_jostled(self.args, seed))) for seed in range(3)), strict=True)
        pairs = zip(flat(self.results[mode]), moved, strict=True)
        with np.errstate(invalid="ignore"):
            return [_movement(np.abs(np.stack(others) - leaf)) for leaf, others in pairs]


def _movement(gaps: np.ndarray) -> np.ndarray:
    """The largest gap of each entry; what hardly moved, by luck, counts as moved like the median of what did.

    The largest of the leaf would not do: one entry beside a kink would excuse all others.
    """
    largest = gaps.max(axis=0)
    return np.maximum(largest, np.median(largest[largest > 0])) if largest.any() else largest


def _jostled(args: tuple, seed: int) -> tuple:
    """The arguments, each floating number of them moved by its last bits, up or down; what is zero stays."""
    draw = np.random.default_rng(seed)

    def moved(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        factors = 1 + jnp.finfo(leaf.dtype).eps * draw.choice([-1.0, 1.0], leaf.shape)
        return leaf * jnp.asarray(factors, leaf.dtype)

    return jax.tree.map(moved, args)


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
        self.fine, *coarse = [slope for slope, _, _ in found or [(None, None, None)]]
        self.coarse = tuple(coarse)
        self.rounding = jax.tree.leaves(found[0][2]) if found else []
        self.kinks = _kinks(found) if found and of in FIRST else None

    @property
    def kinked(self) -> bool:
        """Whether f has a kink at the point itself, in any output."""
        return self.kinks is not None and any(kink.any() for kink in self.kinks)

    @cached_property
    def settled(self) -> bool:
        """Whether the steps say nearly the same, or there are none."""
        return all(_difference(coarse, self.fine, self.rounding) <= UNSETTLED_ABOVE for coarse in self.coarse)

    def gap(self, result: PyTree) -> float:
        """How far a derivative is from the differences, over their largest entry."""
        if self.fine is None:
            return 0.0
        told, fine = jax.tree.leaves(_contracted(result, self.v, self.of)), jax.tree.leaves(self.fine)
        if self.kinks is not None:
            told = [np.where(kink, b, a) for kink, a, b in zip(self.kinks, told, fine, strict=True)]
        return _difference(told, fine, self.rounding)

    def refutes(self, result: PyTree) -> bool:
        """Whether the gap is beyond what rounding, truncation or a kink between two of the steps could explain."""
        if self.fine is None or not self.settled:
            return False
        trust = 10 * max(_difference(coarse, self.fine) for coarse in self.coarse)
        return self.gap(result) > REFUTED_ABOVE + trust


def _kinks(found: list[tuple[PyTree, PyTree, PyTree]]) -> list[np.ndarray]:
    """Where the slopes to the right and to the left stay as far apart at all steps, for each leaf.

    Where f is smooth the gap between them falls with the step, where its values are rounded it grows, and where f
    oscillates within a step it is one thing at one step and another at the next.
    """
    slopes, gaps = found[0][0], [gap for _, gap, _ in found]

    def of_leaf(slope: np.ndarray, fine: np.ndarray, *coarser: np.ndarray) -> np.ndarray:
        size = np.max(np.abs(slope[np.isfinite(slope)]), initial=0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [coarse / fine for coarse in coarser]
            stays = np.all([(ratio > 1 / 2) & (ratio < 2) for ratio in ratios], axis=0)
            return stays & (np.abs(fine) > REFUTED_ABOVE * size)

    return list(map(of_leaf, *map(jax.tree.leaves, (slopes, *gaps))))


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


def _wide(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return leaf.astype(np.promote_types(leaf.dtype, np.float64))


def _difference(given: PyTree, exact: PyTree, ignored: Any = None) -> float:
    """The largest difference over the largest entry of the leaf, inf where that is 0; NaN in both counts as equal.

    Differences up to `ignored`, a bound for each leaf, count as none.
    """
    worst = 0.0
    leaves, references = jax.tree.leaves(given), jax.tree.leaves(exact)
    for a, b, bound in zip(leaves, references, [0.0] * len(leaves) if ignored is None else ignored, strict=True):
        a, b = _wide(a), np.asarray(b)
        if not b.size:
            continue
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(a - b)
        gap = np.where(same | (gap <= bound), 0.0, gap)
        size = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
        largest = float(np.max(gap))
        ratio = largest / float(size) if size > 0 else float("inf") if largest else 0.0
        worst = max(worst, float("inf") if np.isnan(ratio) else ratio)
    return worst


def _differences(f: Fn, x: PyTree, v: PyTree, rest: tuple, of: str, scale: float) -> tuple[PyTree, PyTree, PyTree]:
    """Central differences: J v for first derivatives, ⟨v, H v⟩ for second ones, the sum over axes for the Laplacian.

    Beside them, for first derivatives, what the slope to the right has over the slope to the left, and for each leaf
    what the rounding of f's values comes to in them.
    """
    eps = _epsilon(x)
    along = lambda t, v: f(trees.axpy(t, v, x), *rest)
    rounding = lambda value, step: jax.tree.map(lambda b: 4 * eps * jnp.max(jnp.abs(b), initial=0.0) / step, value)
    value = along(0.0, v)
    if of in FIRST:
        h = scale * eps ** (1 / 3)
        values = along(h, v), value, along(-h, v)
        slope = jax.tree.map(lambda a, _, c: (a - c) / (2 * h), *values)
        return slope, jax.tree.map(lambda a, b, c: (a - 2 * b + c) / h, *values), rounding(value, h)
    h = scale * eps ** (1 / 4)
    second = lambda v: jax.tree.map(lambda a, b, c: (a - 2 * b + c) / h**2, along(h, v), value, along(-h, v))
    if of == "laplacian":
        n = trees.size(x)
        total = jax.vmap(second)(trees.basis(x, jnp.arange(n)))
        return jax.tree.map(lambda t: t.sum(0), total), (), rounding(value, h**2 / n)
    return second(v), (), rounding(value, h**2)


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

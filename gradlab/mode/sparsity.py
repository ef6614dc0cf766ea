"""Where a derivative can be nonzero, and which of its columns or rows one pass can take together.

Two columns that share no row can be pushed forward as one direction, and read apart afterwards: a tridiagonal Jacobian
of any size needs three passes. asdex finds the pattern and the coloring.

Source: Curtis, Powell and Reid, On the estimation of sparse Jacobian matrices (1974); Coleman and Moré, Estimation of
sparse Hessian matrices and graph coloring problems (1984); Gebremedhin, Manne and Pothen, What color is your Jacobian?
(SIAM Review 47, 2005).
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, assert_never

import jax
import jax.numpy as jnp  # noqa: F401 - the examples use it
import numpy as np

from gradlab import trees
from gradlab.errors import MissingExtraError, OptionError, ShapeError, UnsupportedModeError, first_sentence
from gradlab.jaxprs.outline import outline
from gradlab.mode.dense import DIRECTIONS, Direction, unchunked
from gradlab.mode.product import Of, Product, product
from gradlab.mode.support import Unary, obstacle
from gradlab.types import PyTree

# Up to so many passes, a dense derivative is cheap enough that a coloring may save few or none of them.
FEW = 8
# So many steps of asdex's coloring, of a few nanoseconds each, take about ten seconds.
MOST_STEPS = 2_000_000_000
# Patterns of this many programs are kept.
MOST_KEPT = 64
_FOUND: dict[bytes, "Sparsity"] = {}


@dataclass(frozen=True, eq=False)
class Sparsity:
    """Where a derivative can be nonzero, and a coloring that says which columns or rows are taken in one pass.

    Attributes:
        of: the derivative that it belongs to.
        colored: asdex's coloring of the pattern, of shape `[m, n]`.
        programs: the fingerprints of programs that it is known to belong to.

    >>> found = detect(lambda x: x[1:] * x[:-1], jnp.ones(100), "jacobian")
    >>> print(found)
    99 x 100 with 198 entries, 2 forward passes
    """

    of: Of
    colored: Any = field(repr=False)
    programs: set[bytes] = field(default_factory=set, repr=False)

    def __str__(self) -> str:
        m, n = self.shape
        entries = f"{self.nnz} entr{'y' if self.nnz == 1 else 'ies'}"
        return f"{m} x {n} with {entries}, {self.colors} {self.direction} pass{'' if self.colors == 1 else 'es'}"

    @property
    def shape(self) -> tuple[int, int]:
        """`(m, n)`: how many numbers f returns and takes; `(n, n)` for a Hessian."""
        m, n = self.colored.sparsity.shape
        return int(m), int(n)

    @property
    def nnz(self) -> int:
        """How many entries can be nonzero."""
        return int(self.colored.sparsity.nnz)

    @property
    def colors(self) -> int:
        """How many passes the derivative takes."""
        return int(self.colored.num_colors)

    @property
    def direction(self) -> Direction:
        """Whether a pass pushes columns forward or pulls rows back; a Hessian–vector product counts as forward."""
        return "reverse" if self.colored.mode == "rev" else "forward"

    @property
    def rows(self) -> np.ndarray:
        """The row of every entry, ascending, shape `[nnz]`."""
        return np.asarray(self.colored.sparsity.rows)

    @property
    def columns(self) -> np.ndarray:
        """The column of every entry, ascending in each row, shape `[nnz]`."""
        return np.asarray(self.colored.sparsity.cols)

    @property
    def color(self) -> np.ndarray:
        """The pass that each column (forward) or row (reverse) is taken in, -1 for none, shape `[n]` or `[m]`."""
        return np.asarray(self.colored.colors)

    @cached_property
    def places(self) -> np.ndarray:
        """Where each entry lies in the passes' results, laid end to end, shape `[nnz]`."""
        m, n = self.shape
        if self.direction == "reverse":
            return self.color[self.rows] * n + self.columns
        places = self.color[self.columns] * m + self.rows
        if self.of == "jacobian":
            return places
        # Of a symmetric matrix, an entry that shares its place with another one stands alone in its mirror image's.
        _, inverse, counts = np.unique(places, return_inverse=True, return_counts=True)
        alone = (counts[inverse] == 1) & (self.color[self.columns] >= 0)
        return np.where(alone, places, self.color[self.rows] * n + self.columns)

    def require_fit(self, m: int, n: int, of: Of) -> None:
        """Raise unless this is the pattern of such a derivative, of shape `[m, n]`.

        Raises:
            OptionError: it belongs to another derivative.
            ShapeError: it has another shape.
        """
        cure = "Detect the pattern of this function anew, at arguments of these shapes."
        if self.of != of:
            raise OptionError(f"sparsity belongs to a {self.of}, but a {of} was asked for. {cure}")
        if self.shape != (m, n):
            raise ShapeError(f"sparsity has shape {self.shape}, but the {of} has shape {(m, n)}. {cure}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the pattern and its coloring to one `.npz` file, whole or not at all.

        Args:
            path: the file; one that exists is replaced.
        """
        target = Path(path)
        handle, name = tempfile.mkstemp(suffix=".npz", prefix=target.name, dir=target.parent)
        os.close(handle)
        try:
            self.colored.save(name)
            os.replace(name, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sparsity":
        """Read what `save` wrote.

        Args:
            path: the file.

        Raises:
            OptionError: there is no such file, or it is another.
        """
        cure = "Expected a file that Sparsity.save wrote."
        library = asdex()
        try:
            colored = library.ColoredPattern.load(path)
            _require_sound(colored)
        except Exception as error:  # numpy's and zipfile's classes for a wrong file differ by what is wrong with it
            raise OptionError(f"{str(path)!r} holds no sparsity pattern: {first_sentence(error)}. {cure}") from error
        return cls("jacobian" if colored.mode in ("fwd", "rev") else "hessian", colored)


def _require_sound(colored: Any) -> None:
    """Raise ValueError where an index lies outside: such a one would be read from memory unchecked."""
    (m, n), rows, columns = colored.sparsity.shape, colored.sparsity.rows, colored.sparsity.cols
    keys = rows.astype(np.int64) * n + columns
    seeded = m if colored.mode == "rev" else n
    within = lambda a, low, end: a.size == 0 or (a.min() >= low and a.max() < end)
    if not (within(rows, 0, m) and within(columns, 0, n) and np.all(np.diff(keys) > 0)):
        raise ValueError(f"its entries are not those of a matrix of shape {(int(m), int(n))}")
    if colored.colors.shape != (seeded,) or not within(colored.colors, -1, colored.num_colors):
        raise ValueError(f"its coloring is not one of {seeded} with {colored.num_colors} colors")


def asdex() -> Any:
    """The library.

    Raises:
        MissingExtraError: it is not installed, or does not work with this JAX.
    """
    try:
        import asdex
    except Exception as error:  # one that does not fit this JAX fails as it likes
        raise MissingExtraError(
            f"mode='sparse' needs asdex, which cannot be imported with JAX {jax.__version__}: {first_sentence(error)}. "
            'Run pip install "gradlab-jax[sparse]", with a JAX that asdex supports, or take another mode.'
        ) from error
    return asdex


def detect(f: Unary, x: PyTree, of: Of, direction: Direction | None = None) -> Sparsity:
    """The entries of a derivative that can be nonzero at any point, and a coloring of them.

    The pattern is that of the program v ↦ J v (or w ↦ Jᵀ w, or v ↦ H v), so a custom rule counts as it is
    differentiated. A derivative that coloring cannot speed up is refused: where one of its rows (or columns) alone
    needs more than half of the passes of the dense one, or, with up to `FEW` passes, where every entry can be nonzero.

    Args:
        f: a function of one pytree of real arrays; for a Hessian, with one real output.
        x: the point, or its shapes; values do not matter.
        of: the derivative.
        direction: of a Jacobian's passes; None for reverse ones where they are at most half as many, else forward.

    Raises:
        MissingExtraError: asdex is not installed, or does not work with this JAX.
        UnsupportedModeError: f has no rule that the derivative needs; asdex cannot read an operator; the derivative is
            dense; or its coloring would take too long.

    >>> detect(lambda x: jnp.sum(x**3), jnp.ones(50), "hessian").colors
    1
    """
    asdex()  # a missing one is named before anything is traced
    return _of_product(product(f, x, of, direction), f, x, direction)


def found(f: Unary, x: PyTree, of: Of, *, screened: bool = False) -> Sparsity:
    """`detect`, or what it found before for the same program.

    Args:
        f, x, of: as for `detect`.
        screened: refuse what is not sparse by an estimate, before asdex looks at it.
    """
    asdex()  # a missing one is named before anything is traced
    given = product(f, x, of)
    name = given.fingerprint
    if screened:  # whether or not a pattern is known: what auto takes must not hang on what was asked before
        given.require_few()
    if name not in _FOUND:
        _FOUND[name] = _of_product(given, f, x, None)
        _FOUND[name].programs.add(name)
        while len(_FOUND) > MOST_KEPT:
            del _FOUND[next(iter(_FOUND))]
    return _FOUND[name]


def _of_product(given: Product, f: Unary, x: PyTree, direction: Direction | None) -> Sparsity:
    n, entries = trees.size(x), _entries(given, trees.size(x))
    match given.of:
        case "jacobian":
            m = trees.size(jax.eval_shape(f, x))
            runs = [d for d in DIRECTIONS if direction in (None, d) and obstacle(unchunked(f, d), x) is None]
            colored = _line_colored(_pattern(entries, m, n), runs)
        case "hessian":
            # What is read from one of H's two triangles must be in the other one too.
            both = _distinct(np.concatenate([entries, entries % n * n + entries // n]))
            colored = _star_colored(_pattern(both, n, n))
        case _:
            assert_never(given.of)
    return Sparsity(given.of, colored)


def _entries(given: Product, n: int) -> np.ndarray:
    """The entries of the derivative that can be nonzero, each as `row * n + column`, ascending."""
    try:
        with jax.ensure_compile_time_eval():
            # asdex reads shapes alone; the last argument stands for all that is not known.
            seed = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), given.direction)
            reduced = outline(given.traced, given.direction)
            pattern = asdex().jacobian_sparsity(reduced, seed, np.zeros((), np.float32), argnums=0)
    except Exception as error:  # asdex has several for what it cannot read, and no class of its own
        raise UnsupportedModeError(
            f"{given.of} cannot use mode 'sparse' for this function: asdex cannot read its derivative: "
            f"{first_sentence(error)}. Use mode='auto'."
        ) from error
    rows, columns = np.asarray(pattern.rows, np.int64), np.asarray(pattern.cols, np.int64)
    return _distinct(columns * n + rows if given.transposed else rows * n + columns)


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """In ascending order; for a few million that are nearly in order, many times faster than `np.unique`."""
    ordered = np.sort(numbers, kind="stable")
    return ordered[np.concatenate([[True], np.diff(ordered) > 0])] if len(ordered) else ordered


def _pattern(entries: np.ndarray, m: int, n: int) -> Any:
    """asdex's own, of entries in ascending order."""
    return asdex().SparsityPattern.from_coo(entries // n, entries % n, (m, n))


def _star_colored(pattern: Any) -> Any:
    """asdex's star coloring of a symmetric pattern, after a look at how many passes it will need at least."""
    n = pattern.n
    _require_gain(_least_symmetric(pattern), n // 2, n, pattern, "hessian")
    colored = _quietly(lambda: asdex().hessian_coloring_from_sparsity(pattern), pattern.rows, "hessian")
    _require_gain(colored.num_colors, n - 1, n, pattern, "hessian")
    return colored


def _line_colored(pattern: Any, runs: list[Direction]) -> Any:
    """asdex's coloring of columns or rows, by the one of the directions that needs fewer passes.

    Reverse passes keep intermediate values, so they must be at most half as many as the forward ones.
    """
    lines = {"forward": pattern.rows, "reverse": pattern.cols}
    # All entries of one line need a pass each.
    least = {d: int(np.bincount(lines[d]).max(initial=0)) for d in runs}
    dense = min(pattern.n if d == "forward" else pattern.m for d in runs)
    _require_gain(min(least.values()), dense // 2, dense, pattern, "jacobian")
    best: Any = None
    for d in runs:
        hopeless = 2 * least[d] > dense > FEW if best is None else not 0 < 2 * least[d] <= best.num_colors
        if not hopeless:
            mode = "fwd" if d == "forward" else "rev"
            color = partial(asdex().jacobian_coloring_from_sparsity, pattern, mode=mode)
            colored = _quietly(color, lines[d], "jacobian")
            best = colored if best is None or 2 * colored.num_colors <= best.num_colors else best
    _require_gain(best.num_colors, dense - 1, dense, pattern, "jacobian")
    return best


def _quietly(color: Callable[[], Any], lines: np.ndarray, of: Of) -> Any:
    """A coloring that is short enough, without asdex's warning of a dense one, which is an error here.

    Args:
        color: makes it.
        lines: for each entry, the line whose other entries it must not share a color with.
        of: the derivative, for the error.

    Raises:
        UnsupportedModeError: the coloring would take too long.
    """
    # A greedy coloring looks, for each entry of a line, at every other entry of it.
    steps = int(np.sum(np.bincount(lines).astype(np.float64) ** 2))
    if steps > MOST_STEPS:
        raise UnsupportedModeError(
            f"{of} cannot use mode 'sparse' for this function: the coloring would take {steps:.0e} steps, more than "
            f"{MOST_STEPS:.0e}, since some rows or columns have very many entries. Use mode='auto'."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", asdex().DenseColoringWarning)
        return color()


def _least_symmetric(pattern: Any) -> int:
    """A lower bound on the passes of a star coloring.

    The entries between two colors make no cycle, so they are fewer than the columns of both: a + 1 colors have at most
    a n - a (a + 1) / 2 entries above the diagonal. One of them needs no pass, if no entry is read from it.
    """
    n, above = pattern.n, int(np.sum(pattern.rows < pattern.cols))
    root = np.sqrt(max((2 * n - 1) ** 2 - 8 * above, 0))
    return max(1, int(np.ceil((2 * n - 1 - root) / 2))) if pattern.nnz else 0


def _require_gain(passes: int, most: int, dense: int, pattern: Any, of: Of) -> None:
    """Raise `UnsupportedModeError` where a coloring saves too little to be worth its making; see `detect`.

    Args:
        passes: that it takes at least.
        most: that it may take.
        dense: that the dense derivative takes; of up to `FEW`, the pattern is refused only where it is full.
        pattern, of: for which.
    """
    full = 0 < pattern.nnz == pattern.m * pattern.n
    if full if dense <= FEW else passes > most:
        raise UnsupportedModeError(
            f"{of} cannot use mode 'sparse' for this function: the derivative is dense: at least {passes} passes of "
            f"{dense}. Use mode='auto'."
        )

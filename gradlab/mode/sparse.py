"""Jacobians and Hessians with few nonzeros, in as few passes as the coloring of their pattern needs.

Column coloring pushes forward sums of unit vectors whose columns share no row; row coloring pulls back sums of rows
alike; star coloring reads a symmetric Hessian from products with such sums. Every entry then stands alone somewhere.

Source: Gebremedhin, Manne and Pothen, What color is your Jacobian? Graph coloring for computing derivatives (SIAM
Review 47, 2005); Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), chapter 8.
"""

from collections.abc import Sequence
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import inputs, trees
from gradlab.errors import UnsupportedModeError
from gradlab.jaxprs import trace
from gradlab.mode import hvp
from gradlab.mode.dense import DIRECTIONS, MIXTURES, linear, unchunked
from gradlab.mode.product import Of, product
from gradlab.mode.sparsity import Sparsity, found
from gradlab.mode.support import Unary, first_supported, obstacle
from gradlab.types import Mixture, Output, PyTree

# The largest index that a constant of places holds.
LARGEST = 2**31 - 1
# Below this many numbers a constant costs the compiler nothing.
SMALL = 64
# Relative rounding of a float32 product in bfloat16, in which accelerators may take it.
SHORT = 2.0**-8


def jacobian(
    f: Unary,
    x: PyTree,
    sparsity: Sparsity,
    *,
    chunk_size: int | None = None,
    has_aux: bool = False,
    output: Output = "dense",
) -> Any:
    """The Jacobian J = ∂f/∂x at x in `sparsity.colors` passes, in the structure that `jax.jacobian` gives.

    Args:
        f: a function of one pytree of real arrays, n numbers in all, to a pytree of m numbers.
        x: the point.
        sparsity: the pattern of f's Jacobian; entries outside of it are taken for zero.
        chunk_size: so many passes at a time, or None for all at once.
        has_aux: f returns `(y, aux)`, and the result is `(J, aux)`.
        output: `"dense"` arrays, or `"bcoo"`: `jax.experimental.sparse.BCOO`, of memory in proportion to the entries.

    Returns:
        At each leaf of y, x's structure with blocks of shape `[*y.shape, *x.shape]`.

    Raises:
        OptionError, ShapeError: the pattern belongs to another derivative, or to other shapes.

    >>> from gradlab.mode.sparsity import detect
    >>> square = lambda x: x**2
    >>> jacobian(square, jnp.arange(9.0), detect(square, jnp.ones(9), "jacobian"), output="bcoo").data[3]
    Array(6., dtype=float32)
    """
    y, apply, *aux = linear(f, x, sparsity.direction, has_aux)
    sparsity.require_fit(trees.size(y), trees.size(x), "jacobian")
    results = _passes(apply, x if sparsity.direction == "forward" else y, sparsity, chunk_size)
    jac = _assembled(results, sparsity, y, x, output)
    return (jac, *aux) if has_aux else jac


def hessian(
    f: Unary,
    x: PyTree,
    sparsity: Sparsity,
    *,
    chunk_size: int | None = None,
    output: Output = "dense",
    mode: Mixture = "forward_over_reverse",
) -> Any:
    """The Hessian H = ∂²f/∂x² at x from `sparsity.colors` Hessian–vector products, in the structure of `jax.hessian`.

    An entry and its mirror image are read from the same number, so H must be symmetric, as that of every twice
    differentiable function is.

    Args:
        f: a function of one pytree of real arrays, n numbers in all, with one real output.
        x: the point.
        sparsity: the pattern of f's Hessian.
        chunk_size, output: as for `jacobian`.
        mode: how a product is taken; `"forward_over_forward"` takes n passes for each.

    Raises:
        OptionError, ShapeError: as for `jacobian`.

    >>> from gradlab.mode.sparsity import detect
    >>> cubes = lambda x: jnp.sum(x**3)
    >>> jnp.diag(hessian(cubes, jnp.arange(9.0), detect(cubes, jnp.ones(9), "hessian")))[3]
    Array(18., dtype=float32)
    """
    sparsity.require_fit(trees.size(x), trees.size(x), "hessian")
    results = _passes(_products(f, x, mode), x, sparsity, chunk_size)
    return _assembled(results, sparsity, x, x, output)


def _products(f: Unary, x: PyTree, mode: Mixture) -> Unary:
    """v ↦ H v at x, with what all v share taken once where the mode allows."""
    match mode:
        case "forward_over_reverse":
            return jax.linearize(jax.grad(f), x)[1]
        case "reverse_over_reverse":
            pull = jax.vjp(jax.grad(f), x)[1]
            return lambda v: pull(v)[0]
        case "reverse_over_forward" | "forward_over_forward":
            return lambda v: hvp.along(f, v, mode)(x)
        case _:
            assert_never(mode)


def _passes(apply: Unary, seeded: PyTree, sparsity: Sparsity, chunk_size: int | None) -> jax.Array:
    """The results of all passes laid end to end, `[colors * length]`, in the largest of their dtypes.

    Seeds are made by comparison inside the program: as a constant they would be `colors` times as large as x.
    """
    results = jax.eval_shape(apply, seeded)
    if not sparsity.colors:
        return jnp.zeros(0, jnp.result_type(*jax.tree.leaves(results)))
    if sparsity.colors * trees.size(results) > LARGEST:
        raise UnsupportedModeError(
            f"mode 'sparse' would keep {sparsity.colors} passes of {trees.size(results):,} numbers, more than 32-bit "
            "indices reach. Differentiate a part of the arguments at a time."
        )
    color = _constant(sparsity.color)

    def one(number: jax.Array) -> jax.Array:
        return _flat(apply(_split(color == number, seeded)))

    numbers = jnp.arange(sparsity.colors, dtype=jnp.int32)
    if chunk_size is None or chunk_size >= sparsity.colors:
        return jax.vmap(one)(numbers).ravel()
    return jax.lax.map(one, numbers, batch_size=chunk_size).ravel()


def _split(hot: jax.Array, like: PyTree) -> PyTree:
    """A flat vector of zeros and ones as a pytree of the given shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    parts, offset = [], 0
    for leaf in leaves:
        piece = hot[offset : offset + trees.size(leaf)]
        parts.append(piece.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)))
        offset += trees.size(leaf)
    return jax.tree.unflatten(structure, parts)


def _constant(numbers: np.ndarray) -> Any:
    """Integers as a constant; behind the barrier XLA does not compute at compile time what depends on it alone."""
    numbers = numbers.astype(np.int32)
    return numbers if numbers.size < SMALL else jax.lax.optimization_barrier(jnp.asarray(numbers))


def _assembled(results: jax.Array, sparsity: Sparsity, y: PyTree, x: PyTree, output: Output) -> PyTree:
    """The matrix in JAX's structure, y's with x's at each leaf, from the results of all passes."""
    outs, outer = jax.tree.flatten(y)
    ins, inner = jax.tree.flatten(x)
    blocks = _blocks(sparsity, [trees.size(leaf) for leaf in outs], [trees.size(leaf) for leaf in ins])

    def block(number: int, out: Any, into: Any) -> Any:
        places, rows, columns = blocks[number]
        dtype = jnp.result_type(out if sparsity.direction == "forward" else into)
        # Two entries of a Hessian may lie at one place, so the indices are not said to be unique.
        data = results.at[_constant(places)].get(mode="promise_in_bounds").astype(dtype)
        make = _dense if output == "dense" else _bcoo
        return make(data, rows, columns, jnp.shape(out), jnp.shape(into))

    lines = [[block(i * len(ins) + j, out, into) for j, into in enumerate(ins)] for i, out in enumerate(outs)]
    return jax.tree.unflatten(outer, [jax.tree.unflatten(inner, line) for line in lines])


def _blocks(
    sparsity: Sparsity, heights: Sequence[int], widths: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each pair of leaves, where its entries lie in the passes' results, and in the block; row by row."""
    places, rows, columns = sparsity.places, sparsity.rows, sparsity.columns
    if len(heights) == len(widths) == 1:
        return [(places, rows, columns)]
    downs, acrosses = np.cumsum([0, *heights]), np.cumsum([0, *widths])
    # The last leaf that starts there: an empty one before it starts there too.
    down = np.searchsorted(downs[1:], rows, side="right")
    across = np.searchsorted(acrosses[1:], columns, side="right")
    owner = down * len(widths) + across
    order = np.argsort(owner, kind="stable")
    parts = np.split(order, np.searchsorted(owner[order], np.arange(1, len(heights) * len(widths))))
    return [(places[part], rows[part] - downs[down[part]], columns[part] - acrosses[across[part]]) for part in parts]


def _dense(data: jax.Array, rows: np.ndarray, columns: np.ndarray, out: tuple, into: tuple) -> jax.Array:
    shape = int(np.prod(out)), int(np.prod(into))
    if data.size == shape[0] * shape[1]:  # full, and row by row: such as all by few parameters that all depends on
        return data.reshape((*out, *into))
    # On CPU this takes little longer than the zeros (0.12 ms for 1200 × 1200 with 8388 entries); as a selection from
    # the passes' results under a mask, every one of the zeros is looked up, and it takes ten times as long.
    zeros = jnp.zeros(shape, data.dtype)
    entries = zeros.at[_constant(rows), _constant(columns)]
    kept = entries.set(data, unique_indices=True, indices_are_sorted=True, mode="promise_in_bounds")
    return kept.reshape((*out, *into))


def _bcoo(data: jax.Array, rows: np.ndarray, columns: np.ndarray, out: tuple, into: tuple) -> Any:
    from jax.experimental.sparse import BCOO  # brings SciPy, which not everybody who imports gradlab needs

    axes = [axis for flat, shape in ((rows, out), (columns, into)) if shape for axis in np.unravel_index(flat, shape)]
    indices = np.stack(axes, axis=-1) if axes else np.zeros((len(rows), 0))
    return BCOO((data, jnp.asarray(indices, jnp.int32)), shape=(*out, *into), indices_sorted=True, unique_indices=True)


def fitting(f: Unary, x: PyTree, of: Of, given: Sparsity | None, *, screened: bool = False) -> Sparsity:
    """The pattern that was given, or the one that is found; one that may belong to another program is probed first.

    Args:
        f: a function of one pytree.
        x: the point, or its shapes.
        of: the derivative.
        given: a pattern, or None.
        screened: refuse what is not sparse by an estimate, before a pattern is looked for.

    Raises:
        OptionError, ShapeError, UnsupportedModeError: the one that was given is not that of this derivative.
    """
    if given is None:
        return found(f, x, of, screened=screened)
    name = product(f, x, of).fingerprint
    if name not in given.programs and probe(f, x, given):
        given.programs.add(name)
    return given


def probe(f: Unary, x: PyTree, sparsity: Sparsity) -> bool:
    """Raise unless the compressed derivative gives the products of the whole one with random vectors, at x.

    J v, and wᵀ J, are taken both ways, each by the rule that f has for it; of a Hessian, H v. An entry that the pattern
    misses changes them for almost every v. A product that is not finite decides nothing.

    Args:
        f: a function of one pytree, as the pattern was detected for.
        x: the point, with values; where it is traced, or f holds traced values, nothing is decided.
        sparsity: its pattern.

    Returns:
        Whether it was decided.

    Raises:
        UnsupportedModeError: the pattern misses an entry (or a custom rule's Hessian is not symmetric).

    >>> from gradlab.mode.sparsity import detect
    >>> probe(jnp.sin, jnp.ones(9), detect(jnp.sin, jnp.ones(9), "jacobian"))
    True
    """
    y = jax.eval_shape(f, x)
    sparsity.require_fit(trees.size(x if sparsity.of == "hessian" else y), trees.size(x), sparsity.of)
    if any(isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct)) for leaf in jax.tree.leaves(x)):
        return False
    # Drawn here: XLA would draw them while it compiles, which takes longer than all the rest.
    draw = np.random.default_rng(0)
    random = lambda tree: jax.tree.map(lambda a: draw.standard_normal(jnp.shape(a)).astype(jnp.result_type(a)), tree)
    products = jax.jit(lambda x, v, w: _pairs(f, x, v, w, sparsity))(x, random(x), random(y))
    if inputs.is_traced(products):
        return False
    rounding = trace(f, x).rounding
    if jax.default_backend() != "cpu" and rounding > jnp.finfo(jnp.float64).eps:
        rounding = max(rounding, SHORT)
    for given, expected, sizes in jax.tree.map(lambda a: np.asarray(a, np.float64), products):
        finite = np.isfinite(given) & np.isfinite(expected) & np.isfinite(sizes)
        given, expected, sizes = (np.where(finite, a, 0.0) for a in (given, expected, sizes))
        scale = sizes + np.abs(expected)
        # Rounding may grow on the way through f, hence the root; and what cancels leaves it relative to the largest.
        limit = np.sqrt(rounding) * scale + 16 * rounding * scale.max(initial=0.0)
        if np.any(np.abs(given - expected) > limit):
            raise UnsupportedModeError(
                f"{sparsity.of} cannot use this pattern ({sparsity}) for this function: it misses an entry that is not "
                "zero. Find the pattern of this function with gradlab.sparsity, or use mode='auto'."
            )
    return True


def _pairs(f: Unary, x: PyTree, v: PyTree, w: PyTree, sparsity: Sparsity) -> list[tuple[jax.Array, ...]]:
    """Products of the compressed derivative, the same of the whole one, and the sums of their terms' sizes."""
    rows, columns, places = (_constant(a) for a in (sparsity.rows, sparsity.columns, sparsity.places))
    # For each product: its direction, the entries' places in direction and product, and the product.
    products: list[tuple[PyTree, Any, Any, PyTree]] = []
    if sparsity.of == "hessian":
        mode = first_supported([(name, hvp.along(f, v, name)) for name in MIXTURES], x, "hessian")
        seeded, apply = x, _products(f, x, mode)
        products.append((v, columns, rows, hvp.along(f, v, mode)(x)))
    else:
        seeded, apply = x if sparsity.direction == "forward" else w, linear(f, x, sparsity.direction)[1]
        ways = {"forward": (v, columns, rows), "reverse": (w, rows, columns)}
        for d in DIRECTIONS:
            if obstacle(unchunked(f, d), x) is None:
                products.append((*ways[d], linear(f, x, d)[1](ways[d][0])))
    data = _passes(apply, seeded, sparsity, None)[places]

    def pair(direction: PyTree, taken: Any, placed: Any, whole: PyTree) -> tuple[jax.Array, ...]:
        terms, expected = data * _flat(direction)[taken], _flat(whole)
        total = lambda a: jax.ops.segment_sum(a, placed, expected.size)
        return total(terms), expected, total(jnp.abs(terms))

    return [pair(*product) for product in products]


def _flat(tree: PyTree) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

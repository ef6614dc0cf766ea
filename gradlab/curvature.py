"""Curvature without a matrix: traces, diagonals, eigenvalues and spectra of a Hessian from its products with vectors.

Every function takes f and x, a pytree of n numbers in all, and `product=`, an operator that turns f into
`(x, v) ↦ A v` with a symmetric A: `gradlab.hvp` for the Hessian, `functools.partial(gauss_newton, outer=…)` for the
generalized Gauss-Newton matrix. What does not depend on v is computed once. A call compiles one program; inside `jit`
it is part of yours. Vectors are of x's widest dtype, and of float32 at least.

Every function raises `ArgumentError` for an f that is no function or needs values to be traced, `NotScalarError` where
f (or outer) does not return one real number, `NotDifferentiableError` for integers and complex numbers in x,
`OptionError` for an option out of range or a key that is none, and `UnsupportedModeError` where f lacks the
differentiation rules. A function with a `while_loop` has no reverse mode: each of its products takes n passes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from gradlab import inputs, trees
from gradlab.errors import OptionError
from gradlab.jaxprs import hoist
from gradlab.mode.support import first_supported
from gradlab.operators import hvp
from gradlab.types import Fn, PyTree, ScalarFn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = jax.Array
Product = Callable[[Fn], Callable[[PyTree, PyTree], PyTree]]
Apply = Callable[[Array], Array]
Space = jax.ShapeDtypeStruct
# Numbers in the probes, or in their Lanczos bases, that are held at one time: 256 MB in float32.
HELD = 2**26
# Orthogonality to the last bit needs products that no device may round to fewer.
_dot = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@partial(register_dataclass, data_fields=["value", "standard_error"], meta_fields=["probes"])
@dataclass(frozen=True)
class Estimate:
    """A mean over so many random probes, and its standard error; both are arrays, or pytrees of one structure."""

    value: PyTree
    standard_error: PyTree
    probes: int

    def margin(self, confidence: float = 0.95) -> PyTree:
        """How far the truth may be off at this confidence: Student's quantile times the standard error.

        >>> round(float(Estimate(10.0, 1.0, probes=16).margin(0.99)), 3)
        2.947
        """
        from scipy.stats import t

        if not 0 < confidence < 1:
            raise OptionError(f"confidence must be between 0 and 1, but got {confidence!r}.")
        return trees.scale(float(t.ppf((1 + confidence) / 2, self.probes - 1)), self.standard_error)

    def __str__(self) -> str:
        return f"{self.value} ± {self.standard_error} (standard error of {self.probes} probes)"


class Eigenpairs(NamedTuple):
    """The largest eigenvalues λ in falling order, shape `[count]`, and their vectors v, of length one.

    `vectors` is a pytree like x with a leading axis of that length. `residuals` are |A v − λ v|, shape `[count]`: an
    eigenvalue of A is at most that far from λ.
    """

    values: Array
    vectors: PyTree
    residuals: Array


class Sharpness(NamedTuple):
    """The largest eigenvalue λ of a Hessian, |H v − λ v|, and the v of length one along which f bends most."""

    value: Array
    residual: Array
    direction: PyTree

    @property
    def largest_rate(self) -> Array:
        """2/λ, the learning rate above which gradient descent on the quadratic model grows; infinite for λ ≤ 0."""
        return jnp.where(self.value <= 0, jnp.inf, 2 / jnp.where(self.value == 0, 1, self.value))


@partial(register_dataclass, data_fields=["nodes", "weights"], meta_fields=["size"])
@dataclass(frozen=True)
class Spectrum:
    """The distribution of `size` eigenvalues, as one quadrature rule a probe.

    `nodes` are the places of the mass and `weights` the mass there, both of shape `[probes, steps]`; each row of
    weights sums to one.
    """

    nodes: Array
    weights: Array
    size: int

    def mean(self, g: Callable[[Array], Array] = lambda eigenvalue: eigenvalue) -> Estimate:
        """The mean of g over the eigenvalues, tr g(A)/n; g maps arrays elementwise, with finite values."""
        return _estimate(jnp.sum(self.weights * g(self.nodes), axis=1))

    def density(self, grid: ArrayLike, *, width: float | None = None) -> Estimate:
        """The share of eigenvalues per unit, each smoothed to a normal distribution; of the grid's shape, which is any.

        Args:
            grid: where.
            width: the standard deviation, in units of the eigenvalues; 2% of the nodes' range by default.
        """
        if width is not None and not inputs.is_traced(width) and not 0 < width < float("inf"):
            raise OptionError(f"width must be a positive number, but got {width!r}. Leave it out for 2% of the range.")
        wide = self.resolved(50) if width is None else jnp.asarray(width)
        bells = jax.scipy.stats.norm.pdf(jnp.asarray(grid)[..., None, None], self.nodes, wide)
        return _estimate(jnp.moveaxis(jnp.sum(bells * self.weights, axis=-1), -1, 0))

    def resolved(self, parts: int) -> Array:
        """A width: one of so many parts of the nodes' range, and no less than rounding can tell apart."""
        least = 64 * jnp.finfo(self.nodes.dtype).eps * jnp.max(jnp.abs(self.nodes))
        wide = jnp.maximum(jnp.ptp(self.nodes) / parts, least)
        return jnp.where(wide > 0, wide, 1)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The density on a logarithmic scale, with a band of one standard error."""
        from gradlab import plots

        return plots.spectrum(self, ax)


def trace(f: ScalarFn, x: PyTree, *, key: Array, probes: int = 16, product: Product = hvp) -> Estimate:
    """The trace of the Hessian: the mean of ⟨z, H z⟩ over random signs z.

    Args:
        f: a function of one pytree with a real scalar output.
        x: where.
        key: a PRNG key.
        probes: how many z, at least 2; the standard error falls as 1/√probes.
        product: of another symmetric matrix than the Hessian; see the module, also for what is raised.

    Returns:
        An `Estimate` with a value of shape `()`. Its margin is right where many eigenvalues share in the trace; with a
        few large ones, a small number of probes makes it somewhat too narrow.

    Source: Hutchinson, Communications in Statistics 18 (1989).

    >>> found = trace(lambda x: jnp.sum(x**4), jnp.ones(3), key=jax.random.key(0))
    >>> float(found.value), float(found.standard_error)
    (36.0, 0.0)
    """
    inputs.require_count(probes, "probes", least=2)
    run = lambda apply, space, key, back: _estimate(_probed(apply, space, key, probes, jnp.sum))
    return _solve(f, x, key, product, run)


def diagonal(f: ScalarFn, x: PyTree, *, key: Array, probes: int = 16, product: Product = hvp) -> Estimate:
    """The diagonal of the Hessian: the mean of z ⊙ H z over random signs z.

    Args as for `trace`; probes · n numbers are held.

    Returns:
        An `Estimate` with the structure of x.

    Source: Bekas, Kokiopoulou and Saad, Applied Numerical Mathematics 57 (2007).

    >>> diagonal(lambda x: jnp.sum(x**4), jnp.array([1.0, 2.0]), key=jax.random.key(0)).value
    Array([12., 48.], dtype=float32)
    """
    inputs.require_count(probes, "probes", least=2)
    probed = partial(_probed, probes=probes, read=lambda samples: samples)
    run = lambda apply, space, key, back: jax.tree.map(back, _estimate(probed(apply, space, key)))
    return _solve(f, x, key, product, run)


def top_eigenvalues(
    f: ScalarFn, x: PyTree, *, key: Array, count: int = 1, steps: int = 64, product: Product = hvp
) -> Eigenpairs:
    """The algebraically largest eigenvalues of the Hessian, by Lanczos' method from a random start.

    Args:
        f, x, key, product: as for `trace`.
        count: how many; of −f, they are the smallest eigenvalues with the other sign.
        steps: products with H, at most n of them, beside one for each residual; the error falls geometrically, with the
            square root of the gap. steps · n numbers are held.

    Returns:
        `Eigenpairs`, with residuals that say how far each value can be from an eigenvalue. Where eigenvalues are
        equal, the second of them is found through rounding alone, and needs more steps.

    Source: Lanczos (1950); Golub and Van Loan, Matrix computations, 4th edition, section 10.1.

    >>> found = top_eigenvalues(lambda x: x[0] ** 2 + 3 * x[1] ** 2, jnp.ones(2), key=jax.random.key(0), count=2)
    >>> [round(float(value), 4) for value in found.values]
    [6.0, 2.0]
    """
    inputs.require_count(count, "count")
    steps = _steps(steps, x)
    if count > steps:
        raise OptionError(f"count={count} is more than the {steps} steps, at most one a number in x. Ask for fewer.")

    def run(apply: Apply, space: Space, key: Array, back: Callable[[Array], PyTree]) -> Eigenpairs:
        start, again = jax.random.split(key)
        basis, small = _lanczos(apply, jax.random.normal(start, space.shape, space.dtype), again, steps)
        values, inner = jnp.linalg.eigh(small)
        values, vectors = values[::-1][:count], _dot(inner.T[::-1][:count], basis)
        residuals = jax.lax.map(lambda pair: trees.norm(apply(pair[1]) - pair[0] * pair[1]), (values, vectors))
        return Eigenpairs(values, jax.vmap(back)(vectors), residuals)

    return _solve(f, x, key, product, run)


def sharpness(f: ScalarFn, x: PyTree, *, key: Array, steps: int = 64, product: Product = hvp) -> Sharpness:
    """The largest eigenvalue of the Hessian, and the learning rate 2/λ that it sets as a limit; see `top_eigenvalues`.

    Source: Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability, ICLR 2021.

    >>> found = sharpness(lambda x: x[0] ** 2 + 3 * x[1] ** 2, jnp.ones(2), key=jax.random.key(0))
    >>> round(float(found.value), 4), round(float(found.largest_rate), 4)
    (6.0, 0.3333)
    """
    values, vectors, residuals = top_eigenvalues(f, x, key=key, steps=steps, product=product)
    return Sharpness(values[0], residuals[0], jax.tree.map(lambda leaf: leaf[0], vectors))


def spectral_density(
    f: ScalarFn, x: PyTree, *, key: Array, probes: int = 16, steps: int = 64, product: Product = hvp
) -> Spectrum:
    """How the eigenvalues of the Hessian are distributed, by stochastic Lanczos quadrature.

    Each probe starts Lanczos' method from random signs; the eigenvalues of its tridiagonal matrix are the nodes of a
    quadrature rule of degree 2·steps − 1 for that start, and the squared first components of its eigenvectors the
    weights.

    Args:
        f, x, key, product: as for `trace`.
        probes: random starts, at least 2.
        steps: products with H for each of them, at most n. As many probes run at one time as 2²⁶ numbers are enough
            for, at steps · n each.

    Returns:
        A `Spectrum`; `.density(grid)`, `.mean(g)` and `.plot()` read it.

    Source: Ubaru, Chen and Saad, SIAM J. Matrix Analysis 38 (2017); Ghorbani, Krishnan and Xiao, ICML 2019.

    >>> found = spectral_density(lambda x: jnp.sum(x**2 * jnp.arange(1.0, 6.0)), jnp.ones(5), key=jax.random.key(0))
    >>> round(float(found.mean().value), 4)
    6.0
    """
    inputs.require_count(probes, "probes", least=2)
    steps = _steps(steps, x)

    def run(apply: Apply, space: Space, key: Array, back: Callable[[Array], PyTree]) -> Spectrum:
        def rule(key: Array) -> tuple[Array, Array]:
            start, again = jax.random.split(key)
            signs = jax.random.rademacher(start, space.shape, space.dtype)
            nodes, inner = jnp.linalg.eigh(_lanczos(apply, signs, again, steps)[1])
            return nodes, inner[0] ** 2

        nodes, weights = _for_each(rule, key, probes, steps * space.size)
        return Spectrum(nodes, weights, space.size)

    return _solve(f, x, key, product, run)


def gauss_newton(f: Fn, *, outer: ScalarFn) -> Callable[[PyTree, PyTree], PyTree]:
    """Products with the generalized Gauss-Newton matrix of outer ∘ f: (x, v) ↦ Jᵀ (∇²outer(f(x))) J v.

    It is the Hessian without the curvature of f itself, and positive semidefinite wherever outer is convex.

    Args:
        f: a function of one pytree, often a model's outputs as a function of its parameters.
        outer: from f's output to one real number, often the loss of those outputs.

    Returns:
        A function of x and v, both with the structure of x. The estimators of this module take it as
        `product=functools.partial(gauss_newton, outer=outer)`, with f itself in place of the loss.

    Source: Schraudolph, Neural Computation 14 (2002); Martens, JMLR 21 (2020).

    >>> line = lambda x: jnp.array([x[0] + x[1], x[1]])
    >>> gauss_newton(line, outer=lambda y: jnp.sum(y**2))(jnp.ones(2), jnp.array([1.0, 0.0]))
    Array([2., 2.], dtype=float32)
    """
    inputs.require_callable(f, "f")
    inputs.require_callable(outer, "outer")
    bend = hvp(outer)

    def take(x: PyTree, v: PyTree) -> PyTree:
        x = _require_point(x)
        v = inputs.require_like(v, x, "v", "x")
        inputs.require_scalar(outer, inputs.output_shape(f, x), "gauss_newton's outer")

        def forward(x: PyTree) -> PyTree:
            y, push = jax.linearize(f, x)
            return jax.linear_transpose(push, x)(bend(y, push(v)))[0]

        def reverse(x: PyTree) -> PyTree:
            y, pull = jax.vjp(f, x)  # J is the transpose of what this does; so it goes where f has a custom_vjp
            return pull(bend(y, jax.linear_transpose(pull, y)((v,))[0]))[0]

        way = first_supported([("forward", forward), ("reverse", reverse)], x, "gauss_newton")
        return forward(x) if way == "forward" else reverse(x)

    return take


def _steps(steps: int, x: PyTree) -> int:
    inputs.require_count(steps, "steps")
    return min(steps, trees.size(_require_point(x)))


def _require_point(x: PyTree) -> PyTree:
    """x as arrays."""
    inputs.require_differentiable(x, "x")
    inputs.require_real(x, (), "curvature")
    return jax.tree.map(jnp.asarray, x)


def _solve(f: Fn, x: PyTree, key: Array, product: Product, run: Callable[..., Any]) -> Any:
    """`run(apply, space, key, back)` as one program; x is one array there, of shape and dtype `space`."""
    inputs.require_callable(f, "f", "Close over its data: lambda params: loss(params, data).")
    inputs.require_callable(product, "product")
    inputs.require_key(key)
    x = _require_point(x)
    given = product(f)
    inputs.require_callable(given, "product(f)")
    with inputs.tracing():
        if product is hvp:
            inputs.require_scalar(f, x, "The curvature")
        inside = lambda x, v: inputs.require_like(given(x, v), x, "product(f)(x, v)", "x")
        multiply, constants = hoist(inside, x, x)

    def whole(constants: list[Any], x: PyTree, key: Array) -> Any:
        flat, back = trees.ravel(x)
        space = Space(flat.shape, jnp.promote_types(flat.dtype, jnp.float32))
        narrow = lambda v: back(v.astype(flat.dtype))
        times = lambda v: trees.ravel(multiply(constants, x, narrow(v)))[0].astype(space.dtype)
        # Linear in v: the part that hangs on x alone is computed here, once.
        _, apply = jax.linearize(times, jnp.zeros(space.shape, space.dtype))
        return run(apply, space, key, narrow)

    if inputs.is_traced((constants, x, key)):
        return whole(constants, x, key)
    return jax.jit(whole)(constants, x, key)


def _for_each(one: Callable[[Array], Any], key: Array, probes: int, numbers: int) -> Any:
    """`one` of every probe's own key, as many at a time as may be held when each holds so many numbers."""
    together = max(1, min(probes, HELD // numbers))
    return jax.lax.map(one, jax.random.split(key, probes), batch_size=together)


def _probed(apply: Apply, space: Space, key: Array, probes: int, read: Callable[[Array], Array]) -> Array:
    """What `read` makes of z ⊙ A z, one row for each z: of all random z, signs have the least variance."""
    of = lambda signs: read(signs * apply(signs))
    draw = lambda key: jax.random.rademacher(key, space.shape, space.dtype)
    return _for_each(lambda key: of(draw(key)), key, probes, space.size)


def _estimate(samples: Array) -> Estimate:
    """The mean over the leading axis."""
    probes, mean = len(samples), jnp.mean(samples, axis=0)
    lengths = jax.vmap(trees.norm, 1)((samples - mean).reshape(probes, -1)).reshape(mean.shape)
    return Estimate(mean, lengths / (probes * (probes - 1)) ** 0.5, probes)


def _lanczos(apply: Apply, start: Array, key: Array, steps: int) -> tuple[Array, Array]:
    """An orthonormal basis, `[steps, n]`, and A there, tridiagonal, `[steps, steps]`.

    Where the Krylov space ends, as it does when A has few different eigenvalues, a new random direction goes on.
    """
    shape, dtype = start.shape, start.dtype
    drop = lambda basis, w: w - _dot(_dot(basis, w), basis)

    def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[Any, tuple[Array, Array]]:
        basis, v, scale = carry
        basis = basis.at[i].set(v)
        w = apply(v)
        rest = drop(basis, w)
        b, scale = trees.norm(rest), jnp.maximum(scale, trees.norm(w))
        ended = b <= 32 * jnp.finfo(dtype).eps * scale  # what is left is rounding
        fresh = lambda: drop(basis, jax.random.normal(jax.random.fold_in(key, i), shape, dtype))
        # Once more, for what rounding left of the basis in a small rest: twice is enough.
        following = trees.unit(drop(basis, trees.unit(jax.lax.cond(ended, fresh, lambda: rest))))
        return (basis, following, scale), (_dot(v, w), jnp.where(ended, 0, b))

    first = (jnp.zeros((steps, *shape), dtype), trees.unit(start), jnp.zeros((), dtype))
    (basis, *_), (along, beside) = jax.lax.scan(step, first, jnp.arange(steps))
    return basis, jnp.diag(along) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)

"""The operators: each takes a plain JAX function and returns the function that is its derivative.

Options are keyword-only and checked at once; arguments are checked, by tracing, when the result is called. All
operators work under `jax.jit`, `jax.vmap` and inside one another. n is how many numbers x holds over all leaves, m how
many f returns. Every returned function raises `NotDifferentiableError` for integers and bools, `EmptyInputError` for a
pytree without arrays, and `UnsupportedModeError` where f lacks the differentiation rules that a mode needs.
"""

from collections.abc import Callable
from functools import wraps
from math import factorial
from typing import Any

import jax
import jax.numpy as jnp

from gradlab import inputs, trees
from gradlab.errors import ShapeError
from gradlab.mode import gradient as gradient_modes
from gradlab.mode import hessian as hessian_modes
from gradlab.mode import hvp as hvp_modes
from gradlab.mode import jacobian as jacobian_modes
from gradlab.mode import laplacian as laplacian_modes
from gradlab.mode.support import explained
from gradlab.types import (
    MODES,
    Argnums,
    Fn,
    GradientMode,
    HessianMode,
    HvpMode,
    JacobianMode,
    LaplacianMode,
    Params,
    PyTree,
    Quantity,
    Scalar,
    ScalarFn,
)


def modes(of: Quantity) -> tuple[str, ...]:
    """The names of the modes that a quantity can be computed in.

    Args:
        of: `"gradient"`, `"jacobian"`, `"hessian"`, `"hvp"` or `"laplacian"`.

    Raises:
        UnknownModeError: another name.

    >>> modes("jacobian")
    ('forward', 'reverse', 'auto')
    """
    inputs.require_quantity(of)
    return MODES[of]


def derivative(f: Fn) -> Callable[[Scalar | float], PyTree]:
    """The derivative of a function of one real variable: x ↦ f'(x) = lim (f(x + h) − f(x)) / h.

    Args:
        f: a function of a scalar; it may return any pytree of arrays.

    Returns:
        A function of a scalar x (shape `()`) with f's output structure and shapes.

    Raises:
        ShapeError: x is not a scalar.

    Source: equation 2.1.

    >>> float(derivative(jnp.sin)(0.0)), float(derivative(derivative(jnp.exp))(0.0))
    (1.0, 1.0)
    """
    inputs.require_function(f, "derivative")

    def slope(x: Scalar | float) -> PyTree:
        g, x = inputs.focus(f, 0, (x,), {})
        if jnp.shape(x) != ():
            raise ShapeError(
                f"derivative needs a scalar x, but args[0] has shape {jnp.shape(x)}. Map it over an array with "
                "jax.vmap(gradlab.derivative(f)), or take gradlab.gradient or gradlab.jacobian."
            )
        inputs.output_shape(g, x)
        return jacobian_modes.compute(g, x, "auto", None, False)

    return slope


def directional_derivative(f: Fn, *, normalize: bool = False) -> Callable[[PyTree, PyTree], PyTree]:
    """The rate of change of f along v: (x, v) ↦ J v, which is ⟨∇f, v⟩ for a scalar f.

    Args:
        f: a function of one pytree.
        normalize: divide v by its Euclidean norm first (a zero v stays zero), which makes the result a slope.

    Returns:
        A function of x and v (of x's structure and shapes) with f's output structure and shapes.

    Raises:
        StructureError, ShapeError, DtypeError: v does not live in x's space.

    Source: equations 3.1 to 3.5.

    >>> f = lambda x: x[0] ** 2 + 3 * x[1]
    >>> float(directional_derivative(f)(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])))
    6.0
    >>> float(directional_derivative(f, normalize=True)(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0])))
    3.0
    """
    inputs.require_function(f, "directional_derivative")
    push = pushforward(f)
    return lambda x, v: push(x, _unit(v) if normalize else v)[1]


def gradient(
    f: Fn, argnums: Argnums = 0, *, has_aux: bool = False, mode: GradientMode = "reverse"
) -> Callable[..., Params]:
    """The gradient of a scalar function: x ↦ ∇f(x), with ⟨∇f, v⟩ the directional derivative along every v.

    Args:
        f: a function with one real scalar output; with has_aux, a pair of it and anything else.
        argnums: which positional argument to differentiate, or a tuple of them.
        has_aux: return `(∇f, aux)`.
        mode: `"reverse"` (one pass backward) or `"forward"` (n passes, no intermediate values kept).

    Returns:
        A function of f's arguments; the result has the structure, shapes and dtypes of `args[argnums]`. For a complex
        argument it is JAX's convention: the conjugate of the direction of steepest ascent.

    Raises:
        NotScalarError: f does not return one real number.

    Source: equation 3.5; Griewank and Walther (2008), chapter 3.

    >>> gradient(lambda w, x: (w["a"] * x) ** 2)({"a": 3.0}, 2.0)["a"]
    Array(24., dtype=float32, weak_type=True)
    """
    return _gradient(f, argnums, has_aux, mode, value=False, operator="gradient")


def value_and_gradient(
    f: Fn, argnums: Argnums = 0, *, has_aux: bool = False, mode: GradientMode = "reverse"
) -> Callable[..., tuple[Any, Params]]:
    """The value of a scalar function and its gradient, in one evaluation: x ↦ (f(x), ∇f(x)).

    Args, Raises and the gradient are those of `gradient`.

    Returns:
        A function of f's arguments: `(value, ∇f)`, or `((value, aux), ∇f)` with has_aux.

    Source: equation 3.5.

    >>> [float(v) for v in value_and_gradient(lambda x: x**3)(2.0)]
    [8.0, 12.0]
    """
    return _gradient(f, argnums, has_aux, mode, value=True, operator="value_and_gradient")


def _gradient(f: Fn, argnums: Argnums, has_aux: bool, mode: GradientMode, *, value: bool, operator: str) -> Fn:
    inputs.require_function(f, operator)
    inputs.require_mode(mode, "gradient")
    inputs.require_argnums(argnums)

    @wraps(f)
    def take(*args: Any, **kwargs: Any) -> Any:
        g, x = inputs.focus(f, argnums, args, kwargs)
        inputs.require_scalar(inputs.split_aux(g, has_aux), x, operator)
        return gradient_modes.compute(g, x, mode, has_aux, value)

    return take


def steepest_direction(f: ScalarFn) -> Callable[[PyTree], PyTree]:
    """The unit vector along which f rises fastest: x ↦ ∇f/|∇f|, and zeros where ∇f = 0.

    Args:
        f: a function of one pytree with one real scalar output.

    Returns:
        A function of x with x's structure and shapes; the norm of the result, over all leaves, is 1 or 0.

    Raises:
        NotScalarError: f does not return one real number.

    Source: equations 2.4 and 3.5.

    >>> [round(float(d), 4) for d in steepest_direction(lambda x: 3 * x[0] + 4 * x[1])(jnp.zeros(2))]
    [0.6, 0.8]
    """
    slope = gradient(f)
    return lambda x: _unit(slope(x))


def _unit(v: PyTree) -> PyTree:
    length = trees.norm(v)
    return trees.scale(jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0), v)


def pushforward(f: Fn) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """Forward mode: (x, v) ↦ (f(x), J v), in one pass.

    Args:
        f: a function of one pytree.

    Returns:
        A function of x and a tangent v of x's structure and shapes; both results have f's output structure.

    Raises:
        StructureError, ShapeError, DtypeError: v does not live in x's space.

    Source: equation 7.4.

    >>> [float(y) for y in pushforward(jnp.sin)(0.0, 2.0)]
    [0.0, 2.0]
    """
    inputs.require_function(f, "pushforward")

    def push(x: PyTree, v: PyTree) -> tuple[PyTree, PyTree]:
        g, x = inputs.focus(f, 0, (x,), {})
        v = inputs.require_like(v, x, "args[1]", "args[0]")
        inputs.output_shape(g, x)
        run = lambda x: jax.jvp(g, (x,), (v,))
        return explained(run, x, "forward", "pushforward", lambda: [("pullback, gradient", jax.jacrev(g))], pushes=True)

    return push


def pullback(f: Fn) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """Reverse mode: (x, w) ↦ (f(x), Jᵀ w), in one pass forward and one backward.

    Args:
        f: a function of one pytree.

    Returns:
        A function of x and a cotangent w of f's output structure and shapes: f(x), and Jᵀ w of x's structure (no
        conjugate is taken for complex values, as in `jax.vjp`).

    Raises:
        StructureError, ShapeError, DtypeError: w does not live in f's output space.

    Source: equations 6.7 and 7.4.

    >>> y, back = pullback(lambda x: jnp.stack([x[0] * x[1], x[0]]))(jnp.array([2.0, 3.0]), jnp.array([1.0, 10.0]))
    >>> back
    Array([13.,  2.], dtype=float32)
    """
    inputs.require_function(f, "pullback")

    def pull(x: PyTree, w: PyTree) -> tuple[PyTree, PyTree]:
        g, x = inputs.focus(f, 0, (x,), {})
        w = inputs.require_like(w, inputs.output_shape(g, x), "args[1]", "the output of f")

        def run(x: PyTree) -> tuple[PyTree, PyTree]:
            y, transpose = jax.vjp(g, x)
            return y, transpose(w)[0]

        return explained(run, x, "reverse", "pullback", lambda: [("pushforward, jacobian", jax.jacfwd(g))])

    return pull


def jacobian(
    f: Fn,
    argnums: Argnums = 0,
    *,
    mode: JacobianMode = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
) -> Callable[..., PyTree]:
    """All first derivatives at once: x ↦ J with J[i, j] = ∂fᵢ/∂xⱼ.

    Args:
        f: a function of pytrees to a pytree; with has_aux, to a pair of it and anything else.
        argnums: which positional argument to differentiate, or a tuple of them.
        mode: `"forward"` (n passes), `"reverse"` (m passes), or `"auto"`: the fewer passes, among the modes that f has
            rules for, decided while tracing.
        chunk_size: that many directions at a time instead of all: less memory, the same result.
        has_aux: return `(J, aux)`.

    Returns:
        A function of f's arguments. The result has the structure that `jax.jacobian` gives: f's output, with the
        input's structure at each leaf, and leaves of shape `[*output.shape, *input.shape]`.

    Raises:
        UnknownModeError, OptionError: an option that does not exist; at once.

    Source: equations 6.6 and 7.4; Griewank and Walther (2008), chapter 3.

    >>> jacobian(lambda x: jnp.stack([x[0] * x[1], x[1], x[0]]))(jnp.array([2.0, 3.0]))
    Array([[3., 2.],
           [0., 1.],
           [1., 0.]], dtype=float32)
    """
    _require_dense_options(f, "jacobian", mode, argnums, chunk_size)

    @wraps(f)
    def take(*args: Any, **kwargs: Any) -> PyTree:
        g, x = inputs.focus(f, argnums, args, kwargs)
        y = inputs.output_shape(inputs.split_aux(g, has_aux), x)
        inputs.require_convention(x, y, mode)
        return jacobian_modes.compute(g, x, mode, chunk_size, has_aux)

    return take


def _require_dense_options(f: Fn, of: Quantity, mode: str, argnums: Argnums, chunk_size: int | None) -> None:
    inputs.require_function(f, of)
    inputs.require_mode(mode, of)
    inputs.require_argnums(argnums)
    inputs.require_count(chunk_size, "chunk_size", none=True)


def hessian(
    f: Fn, argnums: Argnums = 0, *, mode: HessianMode = "auto", chunk_size: int | None = None
) -> Callable[..., PyTree]:
    """All second derivatives at once: x ↦ H with H[j, k] = ∂²f/∂xⱼ∂xₖ.

    Args:
        f: a function with a real scalar output (an array output gives one Hessian for each of its numbers).
        argnums: which positional argument to differentiate, or a tuple of them.
        mode: one of the four mixtures, outer over inner, or `"auto"`: the first that can run of
            forward over reverse, reverse over forward, reverse over reverse, forward over forward.
        chunk_size: that many directions at a time instead of all n: less memory, the same result.

    Returns:
        A function of f's arguments. The result has the structure that `jax.hessian` gives; for one array x, shape
        `[*x.shape, *x.shape]`.

    Raises:
        UnknownModeError, OptionError: an option that does not exist; at once.

    Source: equation 7.5; Griewank and Walther (2008), section 5.1.

    >>> hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([2.0, 3.0]))
    Array([[6., 4.],
           [4., 0.]], dtype=float32)
    """
    _require_dense_options(f, "hessian", mode, argnums, chunk_size)

    @wraps(f)
    def take(*args: Any, **kwargs: Any) -> PyTree:
        g, x = inputs.focus(f, argnums, args, kwargs)
        inputs.require_real(x, inputs.output_shape(g, x), "hessian")
        return hessian_modes.compute(g, x, mode, chunk_size)

    return take


def hvp(f: ScalarFn, *, mode: HvpMode = "auto") -> Callable[[PyTree, PyTree], PyTree]:
    """The Hessian times a vector, without the Hessian: (x, v) ↦ H v.

    Args:
        f: a function of one pytree with one real scalar output.
        mode: as for `hessian`; all but `"forward_over_forward"` (n passes) cost a small multiple of f.

    Returns:
        A function of x and v (of x's structure and shapes) with x's structure and shapes.

    Raises:
        UnknownModeError: at once.
        NotScalarError: f does not return one real number.
        StructureError, ShapeError, DtypeError: v does not live in x's space.

    Source: Pearlmutter, Neural Computation 6 (1994).

    >>> hvp(lambda x: x[0] ** 2 * x[1])(jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0]))
    Array([6., 4.], dtype=float32)
    """
    inputs.require_function(f, "hvp")
    inputs.require_mode(mode, "hvp")

    def product(x: PyTree, v: PyTree) -> PyTree:
        g, x = inputs.focus(f, 0, (x,), {})
        v = inputs.require_like(v, x, "args[1]", "args[0]")
        inputs.require_real(x, inputs.require_scalar(g, x, "hvp"), "hvp")
        return hvp_modes.compute(g, x, v, mode)

    return product


def laplacian(f: ScalarFn, *, mode: LaplacianMode = "auto") -> Callable[[PyTree], Scalar]:
    """The sum of the unmixed second derivatives: x ↦ Δf = tr H = Σⱼ ∂²f/∂xⱼ².

    Args:
        f: a function of one pytree with one real scalar output.
        mode: `"hessian_trace"` (a dense Hessian), `"forward_over_reverse"` (n Hessian–vector products), `"taylor"` (n
            second-order Taylor expansions, no reverse mode), or `"auto"`: the first that can run of the last two and
            the trace.

    Returns:
        A function of x with a scalar result, shape `()`.

    Raises:
        UnknownModeError: at once.
        NotScalarError: f does not return one real number.

    Source: Griewank, Utke and Walther, Mathematics of Computation 69 (2000).

    >>> float(laplacian(lambda x: jnp.sum(x**2))(jnp.ones(3)))
    6.0
    """
    inputs.require_function(f, "laplacian")
    inputs.require_mode(mode, "laplacian")

    def total(x: PyTree) -> Scalar:
        g, x = inputs.focus(f, 0, (x,), {})
        inputs.require_real(x, inputs.require_scalar(g, x, "laplacian"), "laplacian")
        return laplacian_modes.compute(g, x, mode)

    return total


def taylor(f: Fn, order: int) -> Callable[[PyTree], Callable[[PyTree], PyTree]]:
    """The local polynomial model of f: x0 ↦ (x ↦ Σₖ Dᵏf(x0)[x − x0, …, x − x0] / k!), for k up to `order`.

    Only derivatives along x − x0 are taken, so neither J nor H is ever formed; the cost doubles with each order.

    Args:
        f: a function of one pytree of real arrays, with a forward mode.
        order: 1 (f + J d), 2 (+ ½ dᵀ H d) or more; the error falls like |x − x0|^(order + 1).

    Returns:
        A function of the point x0 that returns the model, itself a function of x (of x0's structure and shapes) with
        f's output structure and shapes.

    Raises:
        OptionError: order is not an integer of at least 1; at once.
        StructureError, ShapeError, DtypeError: x does not live in x0's space.

    Source: equation 7.5.

    >>> model = taylor(jnp.exp, 2)(0.0)
    >>> float(model(1.0))
    2.5
    """
    inputs.require_function(f, "taylor")
    inputs.require_count(order, "order")

    def at(x0: PyTree) -> Callable[[PyTree], PyTree]:
        g, x0 = inputs.focus(f, 0, (x0,), {})
        inputs.output_shape(g, x0)

        def model(x: PyTree) -> PyTree:
            x = inputs.require_like(x, x0, "x", "x0")
            d = trees.axpy(-1.0, x0, x)
            term: Fn = lambda t: g(trees.axpy(t, d, x0))
            terms = [term(0.0)]
            for k in range(1, order + 1):
                term = derivative(term)
                terms.append(trees.scale(1 / factorial(k), term(0.0)))
            return jax.tree.map(lambda *parts: sum(parts), *terms)

        return model

    return at

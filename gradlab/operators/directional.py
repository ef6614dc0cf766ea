"""Derivatives along one direction at a time: J v, Jᵀ w, H v, and the series they make.

Options are checked at once; arguments are checked, by tracing, when the result is called. n is how many numbers x
holds over all leaves, m how many f returns. Every returned function raises `NotDifferentiableError` for integers and
bools, `EmptyInputError` for a pytree without arrays, and `UnsupportedModeError` where f lacks the differentiation rules
that a mode needs.
"""

from collections.abc import Callable
from math import factorial

import jax
import jax.numpy as jnp

from gradlab import inputs, trees
from gradlab.errors import ShapeError
from gradlab.mode import hvp as hvp_modes
from gradlab.mode.choice import Memory
from gradlab.mode.dense import DIRECTIONS, unchunked
from gradlab.mode.support import explained, first_supported
from gradlab.types import Fn, HvpMode, PyTree, Scalar, ScalarFn


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
        # One number goes in, so forward mode is one pass and never the slower one.
        direction = first_supported([(d, unchunked(g, d)) for d in DIRECTIONS], x, "derivative")
        return unchunked(g, direction)(x)

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
    return lambda x, v: push(x, trees.unit(v) if normalize else v)[1]


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


def hvp(f: ScalarFn, *, mode: HvpMode = "auto") -> Callable[[PyTree, PyTree], PyTree]:
    """The Hessian times a vector, without the Hessian: (x, v) ↦ H v.

    Args:
        f: a function of one pytree with one real scalar output.
        mode: one of the four mixtures, outer over inner, or `"auto"`: the one that is predicted to be the fastest. All
            but `"forward_over_forward"` (n passes) cost a small multiple of f.

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
    memory = Memory()

    def product(x: PyTree, v: PyTree) -> PyTree:
        g, x = inputs.focus(f, 0, (x,), {})
        v = inputs.require_like(v, x, "args[1]", "args[0]")
        inputs.require_real(x, inputs.require_scalar(g, x, "hvp"), "hvp")
        compute = lambda mode, _: hvp_modes.compute(g, x, v, mode)
        if mode != "auto":
            return compute(mode, None)
        return memory.run(x, x, lambda: hvp_modes.choose(g, x, v), compute)

    return product


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

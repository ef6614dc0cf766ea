"""Laplacians Δf = tr H of scalar functions.

Source: Griewank, Utke and Walther, Evaluating higher derivative tensors by forward propagation of univariate Taylor
series, Mathematics of Computation 69 (2000), for the Taylor mode; Li et al., A computational framework for neural
network-based variational Monte Carlo with forward Laplacian, Nature Machine Intelligence 6 (2024), for that one.
"""

from collections.abc import Callable
from typing import Any, assert_never

import jax
import jax.numpy as jnp

from gradlab import jaxprs, trees
from gradlab.errors import MissingExtraError, first_sentence
from gradlab.jaxprs.reach import reach
from gradlab.jaxprs.rewriting import opened
from gradlab.mode import choice
from gradlab.mode.choice import Choice
from gradlab.mode.dense import MIXTURES, nested
from gradlab.mode.support import Unary, explained, first_supported
from gradlab.types import LaplacianMode, PyTree

# The preferred first: n Hessian–vector products keep no n × n array; the trace of a dense Hessian has every mixture;
# the forward Laplacian needs an extra.
PREFERENCE: tuple[LaplacianMode, ...] = ("forward_over_reverse", "taylor", "hessian_trace", "forward_laplacian")
# The functions that folx knows by name: a user's of the same name would be taken for them, and is written out instead.
KNOWN_TO_FOLX = ("det", "inv", "logaddexp", "sigmoid", "sign", "silu", "slogdet", "softplus", "solve")
# folx scans over nothing that depends on x, and from JAX 0.11 on over nothing: up to so many steps are written out.
MOST_STEPS = 100
# Where folx is known to fail, to be named first.
FAILING = {"cond", "lu", "top_k", "lt_to", "call_hi_primitive"}


def compute(f: Unary, x: PyTree, mode: LaplacianMode, chunk_size: int | None = None) -> Any:
    """The Laplacian of f at x in the given mode: a scalar, shape `()`.

    Args:
        f: a function of one pytree with one real scalar output.
        x: the point; n numbers in all.
        mode: a Laplacian mode.
        chunk_size: so many directions at a time, or None for all at once.
    """
    if mode == "auto":
        return choose(f, x, chunk_size).run(x)
    others = lambda: [(name, trace(f, name, chunk_size)) for name in PREFERENCE]
    within = jax.grad(f) if mode == "forward_over_reverse" else None
    return explained(trace(f, mode, chunk_size), x, mode, "laplacian", others, within=within)


def choose(f: Unary, x: PyTree, chunk_size: int | None = None, memory_limit: int | None = None) -> Choice:
    """The mode that is predicted to be the fastest within the limit of memory, and what is predicted of the others."""
    plain = lambda chunk: [choice.plain(mode, trace(f, mode, chunk)) for mode in PREFERENCE]
    cheapest = lambda chunk: choice.cheapest(plain(chunk), x, "laplacian")
    return choice.within(memory_limit, chunk_size, trees.size(x), cheapest)


def trace(f: Unary, mode: LaplacianMode, chunk_size: int | None = None) -> Unary:
    """`x ↦ tr H`, over all leaves of x.

    >>> f, x = lambda p: jnp.sum(p["a"] ** 2) * p["b"], {"a": jnp.ones(3), "b": 2.0}
    >>> [round(float(trace(f, mode, 2)(x)), 3) for mode in ("taylor", "forward_over_reverse")]
    [12.0, 12.0]
    """
    match mode:
        case "hessian_trace":
            return lambda x: _dense_trace(f, x, chunk_size)
        case "forward_over_reverse":
            return lambda x: _in_chunks(_by_hvps(f, _arrays(x)), _arrays(x), chunk_size)
        case "taylor":
            return lambda x: _in_chunks(_by_taylor(f, _arrays(x)), _arrays(x), chunk_size)
        case "forward_laplacian":
            return lambda x: _in_chunks(_by_folx(f, _arrays(x)), _arrays(x), chunk_size)
        case "auto":
            raise AssertionError("auto is resolved by choose")
        case _:
            assert_never(mode)


def _arrays(x: PyTree) -> PyTree:
    return jax.tree.map(jnp.asarray, x)


def _dense_trace(f: Unary, x: PyTree, chunk_size: int | None) -> jax.Array:
    vector, back = trees.ravel(x)
    whole = {mode: nested(lambda u: f(back(u)), mode, chunk_size) for mode in MIXTURES}
    return jnp.trace(whole[first_supported(list(whole.items()), vector, "hessian")](vector))


def _in_chunks(part: Callable[[PyTree], jax.Array], x: PyTree, chunk_size: int | None) -> jax.Array:
    """The sum of `part` over the unit vectors of x's space, `chunk_size` of them at a time.

    The last chunk is filled up with zeros, which add nothing.

    Args:
        part: from directions, stacked along a first axis, to the sum of the second derivatives along them.
        x: the point; n numbers in all.
        chunk_size: directions at a time, or None for all of them.
    """
    n, dtype = trees.size(x), jnp.result_type(*jax.tree.leaves(x))
    chunk = min(chunk_size or n, n)
    add = lambda i, total: total + part(trees.basis(x, i * chunk + jnp.arange(chunk))).astype(dtype)
    start = jnp.zeros((), dtype)
    return add(0, start) if chunk == n else jax.lax.fori_loop(0, -(-n // chunk), add, start)


def _by_hvps(f: Unary, x: PyTree) -> Callable[[PyTree], jax.Array]:
    """eᵀ H e for a stack of unit vectors e: the gradient is linearized once, for all of them."""
    _, push = jax.linearize(jax.grad(f), x)
    # The entry is picked, not multiplied: what is infinite elsewhere in its column must not make it NaN.
    picked = lambda e, column: jnp.sum(jnp.where(e != 0, column, 0))

    def part(basis: PyTree) -> jax.Array:
        columns = jax.vmap(push)(basis)
        return jax.tree.reduce(jnp.add, jax.tree.map(picked, basis, columns))

    return part


def _by_taylor(f: Unary, x: PyTree) -> Callable[[PyTree], jax.Array]:
    """The second Taylor coefficient along a stack of directions, zero along none."""
    from jax.experimental.jet import jet  # half of what importing gradlab's operators would take

    leaves, structure = jax.tree.flatten(x)

    def second(e: PyTree) -> jax.Array:
        series = [(v, jnp.zeros_like(v)) for v in jax.tree.leaves(e)]
        return jet(lambda *parts: f(jax.tree.unflatten(structure, parts)), leaves, series)[1][1]

    def part(basis: PyTree) -> jax.Array:
        there = jnp.stack([jnp.any(v != 0, axis=tuple(range(1, v.ndim))) for v in jax.tree.leaves(basis)]).any(0)
        return jnp.sum(jnp.where(there, jax.vmap(second)(basis), 0))

    return part


def _by_folx(f: Unary, x: PyTree) -> Callable[[PyTree], jax.Array]:
    """What folx carries along for a stack of directions: values, their Jacobians, and their Laplacians.

    Raises:
        MissingExtraError: folx cannot be imported.
        NotImplementedError: a program that folx fails on, or gets wrong.
    """
    try:
        import folx
        from folx.api import FwdJacobian, FwdLaplArray
    except ImportError as error:
        raise MissingExtraError(
            "mode='forward_laplacian' needs folx, which cannot be imported "
            f'({first_sentence(error)}): pip install "gradlab-jax[laplacian]", or take another mode.'
        ) from error
    program = jaxprs.trace(f, x)
    _require_known_to_folx(program)
    run = folx.forward_laplacian(opened(program, KNOWN_TO_FOLX, MOST_STEPS), disable_jit=True)

    def part(basis: PyTree) -> jax.Array:
        carried = lambda a, e: FwdLaplArray(a, FwdJacobian.from_dense(e), jnp.zeros_like(a))
        y = run(jax.tree.map(carried, x, basis))
        return y.laplacian if isinstance(y, FwdLaplArray) else jnp.zeros_like(y)

    def traced(basis: PyTree) -> jax.Array:
        # Traced first, so that nothing has run when folx fails; by whatever class of error.
        try:
            whole = jaxprs.trace(part, basis)
        except Exception as error:
            there = reach(program).operators
            at = ", ".join(sorted(there & FAILING)) or f"one of {', '.join(sorted(there))}"
            raise NotImplementedError(f"folx fails at {at}: {first_sentence(error)}") from error
        return whole(basis)

    return traced


def _require_known_to_folx(program: jaxprs.Traced) -> None:
    """Raise `NotImplementedError` for what folx fails on, or silently gets wrong."""
    found = reach(program)
    if found.rules:
        names = ", ".join(found.rules)
        raise NotImplementedError(
            f"the rule of {names} may not be the derivative of its value, and then folx and jax.hessian differ"
        )
    if "while" in found.operators:
        raise NotImplementedError("folx has no rule for a while_loop")
    if found.steps > MOST_STEPS:
        raise NotImplementedError(
            f"folx takes no scan, and writing out {found.steps} steps is too long; {MOST_STEPS} is the most"
        )

"""Jacobians J = ∂f/∂x: dense in either direction, colored, cut at the waist, or whichever is predicted the fastest."""

from dataclasses import dataclass, replace
from typing import Any, assert_never

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gradlab import trees
from gradlab.mode import choice, dense, sharded, sparse, waist
from gradlab.mode.choice import Candidate, Choice
from gradlab.mode.dense import Direction
from gradlab.mode.sparsity import Sparsity
from gradlab.mode.support import Unary, explained
from gradlab.types import JacobianMode, Output, PyTree


@dataclass(frozen=True)
class Options:
    """How a Jacobian or a Hessian is taken.

    Attributes:
        chunk_size: so many directions at a time, or None for all at once.
        has_aux: f returns `(y, aux)`, and the result is `(J, aux)`.
        output: `"dense"`, or `"bcoo"` for sparse matrices, which `"sparse"` alone can give.
        pattern: of the derivative, where it is known beforehand.
        memory_limit: bytes, beyond which `auto` takes fewer directions at a time; None for what the device has.
        mesh: the devices that the directions of a dense Jacobian are spread over; None for where x is.
    """

    chunk_size: int | None = None
    has_aux: bool = False
    output: Output = "dense"
    pattern: Sparsity | None = None
    memory_limit: int | None = None
    mesh: Mesh | None = None


def compute(f: Unary, x: PyTree, mode: JacobianMode, options: Options) -> Any:
    """The Jacobian of f at x in the given mode, in the structure that `jax.jacobian` gives.

    Args:
        f: a function of one pytree.
        x: the point; n numbers in all.
        mode: a Jacobian mode.
        options: how.
    """
    match mode:
        case "auto":
            return choose(f, x, options).run(x)
        case "sparse":
            return colored(f, x, options)[0](x)
        case "waist":
            return cut(f, x, options)[0](x)
        case "forward" | "reverse":
            others = lambda: [(name, plain(f, name, options)) for name in dense.DIRECTIONS]
            return explained(plain(f, mode, options), x, mode, "jacobian", others)
        case _:
            assert_never(mode)


def plain(f: Unary, direction: Direction, options: Options) -> Unary:
    """`x ↦ J` from every direction, here or over a mesh."""
    if options.mesh is None:
        return dense.dense(f, direction, options.chunk_size, options.has_aux)
    return sharded.sharded(f, direction, options.mesh, options.has_aux)


def choose(f: Unary, x: PyTree, options: Options) -> Choice:
    """The mode that is predicted to be the fastest, within the limit of memory, with what is predicted of the others.

    >>> picked = lambda f, x: choose(f, x, Options()).mode
    >>> picked(lambda x: jnp.sum(x**2), jnp.ones(500)), picked(lambda t: t * jnp.ones(500), 1.0)
    ('reverse', 'forward')
    """
    if options.mesh is not None:
        return choice.cheapest(candidates(f, x, options), x, "jacobian")
    cheapest = lambda chunk: choice.cheapest(candidates(f, x, replace(options, chunk_size=chunk)), x, "jacobian")
    return choice.within(options.memory_limit, options.chunk_size, trees.size(x), cheapest)


def candidates(f: Unary, x: PyTree, options: Options) -> list[Candidate]:
    """Every mode of a Jacobian that can be worth it, the preferred first: the direction with fewer passes leads."""
    y = jax.eval_shape(_value(f, options), x)
    m, n = trees.size(y), trees.size(x)
    order = dense.DIRECTIONS if n <= m else dense.DIRECTIONS[::-1]
    margin = choice.ALIKE if m == n else choice.MARGIN
    both = [choice.plain(d, plain(f, d, options), margin) for d in order]
    few = Candidate("sparse", lambda: colored(f, x, options, screened=options.output == "dense"))
    if options.output == "bcoo":
        return [few]
    # One pass is all that there is where f takes or returns one number.
    if options.mesh is not None or min(m, n) == 1 or not all(map(_is_real, jax.tree.leaves((x, y)))):
        return both
    return [*both, few, Candidate("waist", lambda: cut(f, x, options))]


def colored(f: Unary, x: PyTree, options: Options, *, screened: bool = False) -> tuple[Unary, str]:
    """The Jacobian in as few passes as its coloring needs, and what it does.

    Args:
        f, x, options: as for `compute`.
        screened: refuse a derivative that is dense by an estimate, before its pattern is looked for.
    """
    value = _value(f, options)
    pattern = sparse.fitting(value, x, "jacobian", options.pattern, screened=screened)
    run = lambda x: sparse.jacobian(
        f, x, pattern, chunk_size=options.chunk_size, has_aux=options.has_aux, output=options.output
    )
    return run, str(pattern)


def cut(f: Unary, x: PyTree, options: Options) -> tuple[Unary, str]:
    """The Jacobian cut where few numbers cross, and where that is."""
    plan = waist.plan(f, x, has_aux=options.has_aux)
    run = lambda x: waist.jacobian(f, x, plan, has_aux=options.has_aux, chunk_size=options.chunk_size)
    return run, str(plan)


def _is_real(leaf: Any) -> bool:
    return not jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)


def _value(f: Unary, options: Options) -> Unary:
    """What is differentiated."""
    return (lambda x: f(x)[0]) if options.has_aux else f

"""Hessians H = ∂²f/∂x²: the Jacobian of a Jacobian in any of the four mixtures of modes, or colored.

Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), sections 5.1 and 8.3.
"""

from dataclasses import replace
from typing import Any, assert_never

import jax

from gradlab import trees
from gradlab.errors import UnsupportedModeError
from gradlab.mode import choice, hvp, sparse
from gradlab.mode.choice import Candidate, Choice
from gradlab.mode.dense import MIXTURES, directions, nested, unchunked
from gradlab.mode.jacobian import Options
from gradlab.mode.support import Unary, explained
from gradlab.types import HessianMode, PyTree


def compute(f: Unary, x: PyTree, mode: HessianMode, options: Options) -> Any:
    """The Hessian of f at x in the given mode, in the structure that `jax.hessian` gives."""
    match mode:
        case "auto":
            return choose(f, x, options).run(x)
        case "sparse":
            return colored(f, x, options)[0](x)
        case "forward_over_reverse" | "reverse_over_forward" | "reverse_over_reverse" | "forward_over_forward":
            others = lambda: [(name, nested(f, name, options.chunk_size)) for name in MIXTURES]
            within = unchunked(f, directions(mode)[1])
            return explained(nested(f, mode, options.chunk_size), x, mode, "hessian", others, within=within)
        case _:
            assert_never(mode)


def choose(f: Unary, x: PyTree, options: Options) -> Choice:
    """The mode that is predicted to be the fastest, within the limit of memory, with what is predicted of the others.

    >>> import jax.numpy as jnp
    >>> choose(lambda x: jnp.sum(jnp.cumsum(x) ** 2), jnp.ones(50), Options()).mode in MIXTURES
    True
    """
    cheapest = lambda chunk: choice.cheapest(candidates(f, x, replace(options, chunk_size=chunk)), x, "hessian")
    return choice.within(options.memory_limit, options.chunk_size, trees.size(x), cheapest)


def candidates(f: Unary, x: PyTree, options: Options) -> list[Candidate]:
    """Every mode of a Hessian that can be worth it, the preferred first."""
    # Over a gradient in reverse mode either direction takes n passes; where f has more outputs, the prediction knows.
    margin = lambda mode: choice.ALIKE if mode == "reverse_over_reverse" else choice.MARGIN
    plain = [choice.plain(mode, nested(f, mode, options.chunk_size), margin(mode)) for mode in MIXTURES]
    few = Candidate("sparse", lambda: colored(f, x, options, screened=options.output == "dense"))
    if options.output == "bcoo":
        return [few]
    return plain if trees.size(x) == 1 else [*plain, few]


def colored(f: Unary, x: PyTree, options: Options, *, screened: bool = False) -> tuple[Unary, str]:
    """The Hessian from as few Hessian–vector products as its coloring needs, and what it does.

    Args:
        f, x, options: as for `compute`.
        screened: refuse a derivative that is dense by an estimate, before its pattern is looked for.
    """
    if [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(f, x))] != [()]:
        raise UnsupportedModeError(
            "hessian cannot use mode 'sparse' for a function that returns more than one number. Use mode='auto'."
        )
    product = hvp.first(f, x, x)
    pattern = sparse.fitting(f, x, "hessian", options.pattern, screened=screened)
    run = lambda x: sparse.hessian(f, x, pattern, chunk_size=options.chunk_size, output=options.output, mode=product)
    return run, str(pattern)

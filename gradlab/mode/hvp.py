"""Hessian–vector products H v, without H.

Source: Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6 (1994); Dagréou et al., How to
compute Hessian-vector products? (ICLR blogposts, 2024).
"""

from typing import Any, assert_never

import jax

from gradlab import trees
from gradlab.mode import choice
from gradlab.mode.choice import Choice
from gradlab.mode.dense import MIXTURES, directions, unchunked
from gradlab.mode.support import Unary, explained, first_supported
from gradlab.types import HvpMode, Mixture, PyTree

# One product takes much the same work in each mixture; predictions are not fine enough to tell less than this apart.
MARGIN = 1.5


def compute(f: Unary, x: PyTree, v: PyTree, mode: HvpMode) -> Any:
    """H v at x in the given mode; v and the result have x's structure."""
    if mode == "auto":
        return choose(f, x, v).run(x)
    others = lambda: [(name, along(f, v, name)) for name in MIXTURES]
    within = unchunked(f, directions(mode)[1])
    return explained(along(f, v, mode), x, mode, "hvp", others, within=within, pushes=True)


def choose(f: Unary, x: PyTree, v: PyTree) -> Choice:
    """The mixture that is predicted to be the fastest."""
    return choice.cheapest([choice.plain(mode, along(f, v, mode), MARGIN) for mode in MIXTURES], x, "hvp")


def first(f: Unary, x: PyTree, v: PyTree) -> Mixture:
    """The first mixture, in the order of `MIXTURES`, that can run."""
    return first_supported([(mode, along(f, v, mode)) for mode in MIXTURES], x, "hvp")


def along(f: Unary, v: PyTree, mode: HvpMode) -> Unary:
    """`x ↦ H v` for a fixed v.

    All but `forward_over_forward` cost a small multiple of f; that one takes n passes, and needs no reverse rule.
    """
    match mode:
        case "forward_over_reverse":
            return lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1]
        case "reverse_over_forward":
            return jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])
        case "reverse_over_reverse":
            return jax.grad(lambda x: trees.vdot(jax.grad(f)(x), v))
        case "forward_over_forward":
            return jax.jacfwd(lambda x: jax.jvp(f, (x,), (v,))[1])
        case "auto":
            raise AssertionError("auto is resolved by choose")
        case _:
            assert_never(mode)

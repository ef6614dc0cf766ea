"""A derivative along one direction as a traced program: v ↦ J v, w ↦ Jᵀ w or v ↦ H v. Patterns are read from it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax

from gradlab.errors import UnsupportedModeError, first_sentence
from gradlab.jaxprs import Traced, density, lacks_forward_rule, trace
from gradlab.jaxprs.outline import digest
from gradlab.mode import hvp
from gradlab.mode.dense import MIXTURES, Direction
from gradlab.mode.support import NO_FORWARD_RULE, Unary
from gradlab.types import Mixture, PyTree

Of = Literal["jacobian", "hessian"]

# A fuller pattern needs so many passes that it is not worth looking for unasked.
FULL = 0.25


class Product(NamedTuple):
    """A traced program of (direction, point), linear in its direction.

    Attributes:
        of: the derivative.
        traced: the program.
        direction: the shapes of a direction.
        transposed: whether its matrix is the derivative's transpose.
    """

    of: Of
    traced: Traced
    direction: PyTree
    transposed: bool

    @property
    def fingerprint(self) -> bytes:
        """A digest of the program: while it stays the same, so does the pattern."""
        return digest(self.traced) + bytes([self.of == "hessian", self.transposed])

    def require_few(self) -> None:
        """Raise `UnsupportedModeError` where an estimate says that coloring would save little."""
        share = density(self.traced, leaves=len(jax.tree.leaves(self.direction)))
        if share > FULL:
            raise UnsupportedModeError(f"about {share:.0%} of the entries can be nonzero, so coloring saves few passes")


def product(f: Unary, x: PyTree, of: Of, direction: Direction | None = None) -> Product:
    """The first of the products that f has rules for: forward, then reverse; of a Hessian, in the order of `MIXTURES`.

    Args:
        f: a function of one pytree.
        x: the point, or its shapes.
        of: the derivative.
        direction: of a Jacobian's product; None for either.

    Raises:
        UnsupportedModeError: there is none; the text has every reason.

    >>> import jax.numpy as jnp
    >>> found = product(jnp.sin, jnp.ones(3), "jacobian")
    >>> found.transposed, found.fingerprint == product(jnp.sin, jnp.ones(3), "jacobian").fingerprint
    (False, True)
    """
    point, reasons = jax.eval_shape(lambda t: t, x), []
    for name, run, space, transposed in _ways(f, x, of):
        if direction not in (None, name):
            continue
        try:
            traced = trace(run, space, point)
        except Exception as error:  # JAX's class for a missing rule differs by rule: TypeError, ValueError, KeyError, …
            reasons.append(f"{name}: {first_sentence(error)}.")
            continue
        if not lacks_forward_rule(traced):
            return Product(of, traced, space, transposed)
        reasons.append(f"{name}: {NO_FORWARD_RULE}.")
    raise UnsupportedModeError(f"No mode of {of} can run for this function. " + " ".join(reasons))


def _ways(f: Unary, x: PyTree, of: Of) -> Iterator[tuple[str, Callable[..., Any], PyTree, bool]]:
    """Name, program, shapes of a direction, and whether it is the transpose's."""
    point = jax.eval_shape(lambda t: t, x)
    if of == "hessian":
        for mode in MIXTURES:
            yield mode, partial(_curvature, f, mode), point, False
        return
    push = lambda v, x: jax.jvp(f, (x,), (v,))[1]
    pull = lambda w, x: jax.vjp(f, x)[1](w)[0]
    yield "forward", push, point, False
    yield "reverse", pull, jax.eval_shape(f, x), True


def _curvature(f: Unary, mode: Mixture, v: PyTree, x: PyTree) -> PyTree:
    return hvp.along(f, v, mode)(x)

"""The record that one problem is: a function, its inputs, and what is known about its derivative."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from gradlab.errors import OptionError
from gradlab.types import Fn, PyTree, Quantity

Args = tuple[PyTree, ...]
Made = tuple[Fn, Args]
Make = Callable[[jax.Array, int], Made]

__all__ = ["Args", "Made", "Make", "Problem"]


@dataclass(frozen=True)
class Problem:
    """A real function f(x, *data), differentiated in x, together with inputs of any size.

    Attributes:
        name: how `gradlab.problems.get` finds it.
        of: the derivatives it is meant for; the first is the main one.
        make: (key, size) -> (f, args). f is one pure module-level function for every size, so that jit's cache
            works; `args[0]` is a floating array or a pytree of them, and the data follow as further arguments.
            Everything is computed in the dtype of the arguments.
        size: the size that `build` takes when none is given.
        description: one line.
        source: the paper or book that defines it.
        truth: called as `truth(*args)`; the main derivative in closed form, shaped as JAX shapes it. None if unknown.
        requires: the optional extra that its data need, as in `pip install "gradlab-jax[data]"`.
        unsupported: the directions JAX has no rule for: "forward" (a `custom_vjp`), "reverse" (a `while_loop`).

    >>> from gradlab import problems
    >>> problems.get("rosenbrock")
    Problem('rosenbrock', of=('gradient', 'hessian', 'hvp'), size=500)
    """

    name: str
    of: tuple[Quantity, ...]
    make: Make
    size: int
    description: str
    source: str
    truth: Fn | None = None
    requires: str | None = None
    unsupported: tuple[str, ...] = ()

    def build(self, *, key: jax.Array | None = None, size: int | None = None) -> Made:
        """Draw the inputs: (f, args), with f(*args) to be differentiated in args[0].

        Args:
            key: a JAX random key; `jax.random.key(0)` by default. The same key gives the same arguments.
            size: an integer of at least 2; what it counts is in the description. `self.size` by default.

        Returns:
            f and its arguments, in JAX's default floating dtype.

        Raises:
            OptionError: the size is not an integer of at least 2, or the problem has no more data.
            MissingExtraError: the optional package that holds the data is not installed.

        >>> from gradlab import problems
        >>> f, args = problems.get("speelpenning").build(size=4)
        >>> args[0].shape, f(*args).shape
        ((4,), ())
        """
        chosen = self.size if size is None else size
        if isinstance(chosen, bool) or not isinstance(chosen, int) or chosen < 2:
            raise OptionError(
                f"size={size!r} was given to the problem {self.name!r}; expected an integer of at least 2. "
                f"Leave it out for the default, {self.size}."
            )
        return self.make(jax.random.key(0) if key is None else key, chosen)

    def __repr__(self) -> str:
        return f"Problem({self.name!r}, of={self.of}, size={self.size})"

"""One frozen table of real functions with inputs: tests, comparisons and benchmarks all draw from it.

    f, args = problems.get("lennard_jones").build(size=8)
    forces = jax.grad(f)(*args)

Every f is pure and is differentiated in args[0]; the data follow. Definitions are written by hand from the
publications named in each record's `source`.
"""

from typing import get_args

from gradlab.errors import OptionError, TargetError, nearest
from gradlab.problems import assembly, digits, learning, numerics, one_way, science, sequences, shapes
from gradlab.problems.record import Problem
from gradlab.types import Quantity

__all__ = ["TABLE", "Problem", "digits", "for_quantity", "get", "names"]

TABLE: tuple[Problem, ...] = (
    shapes.PROBLEMS
    + one_way.PROBLEMS
    + numerics.PROBLEMS
    + science.PROBLEMS
    + assembly.PROBLEMS
    + sequences.PROBLEMS
    + learning.PROBLEMS
)


def names() -> tuple[str, ...]:
    """The names of all problems, in the order of the table.

    Returns:
        One string for each record of `TABLE`.

    >>> names()[:3]
    ('rosenbrock', 'speelpenning', 'quadratic_form')
    """
    return tuple(problem.name for problem in TABLE)


def get(name: str) -> Problem:
    """The problem of this name.

    Args:
        name: one of `names()`.

    Returns:
        Its record; `.build()` gives the function and the arguments.

    Raises:
        TargetError: there is no such problem; the text lists those there are and the nearest spelling.

    >>> get("softmax").description
    'probabilities of `size` logits: a dense symmetric Jacobian of rank size - 1'
    """
    for problem in TABLE:
        if problem.name == name:
            return problem
    raise TargetError(f"There is no problem named {name!r}.{nearest(name, names())} Use one of: {', '.join(names())}.")


def for_quantity(of: Quantity) -> tuple[Problem, ...]:
    """The problems meant for one kind of derivative.

    Args:
        of: "gradient", "jacobian", "hessian", "hvp" or "laplacian".

    Returns:
        The records whose `.of` holds it, in the order of the table.

    Raises:
        OptionError: there is no such kind of derivative.

    >>> [problem.name for problem in for_quantity("laplacian")]
    ['harmonic_trap', 'hydrogen', 'wavefunction', 'lennard_jones']
    """
    kinds = get_args(Quantity)
    if of not in kinds:
        raise OptionError(f"of={of!r} was given; expected one of {', '.join(kinds)}.{nearest(of, kinds)}")
    return tuple(problem for problem in TABLE if of in problem.of)

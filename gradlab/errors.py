"""Every error gradlab raises: what was given, what was expected, what to do next.

Each class is a `GradlabError` and also the builtin a person would catch without knowing gradlab.
"""

import difflib
from collections.abc import Iterable


class GradlabError(Exception):
    """The root: `except gradlab.GradlabError` catches everything gradlab raises on purpose."""


class NotScalarError(GradlabError, TypeError):
    """A function with one real output was needed, and it returned something else."""


class NotDifferentiableError(GradlabError, TypeError):
    """An input (or output) has a dtype that has no tangent: integers, bools, PRNG keys."""


class StructureError(GradlabError, TypeError):
    """Two pytrees that must have one structure differ."""


class ShapeError(GradlabError, ValueError):
    """Two arrays that must have one shape differ, or a shape does not fit."""


class DtypeError(GradlabError, TypeError):
    """A tangent or cotangent cannot be read in the dtype that it must have."""


class EmptyInputError(GradlabError, ValueError):
    """A pytree without a single array was given to differentiate."""


class OptionError(GradlabError, ValueError):
    """An option is outside its range, or two options do not go together."""


class ArgumentError(GradlabError, TypeError):
    """A call does not fit the function: too few arguments, an argnums that points at none, not a function."""


class UnknownModeError(GradlabError, ValueError):
    """A mode that does not exist for this quantity."""


class UnsupportedModeError(GradlabError, ValueError):
    """A mode that exists, and that this function has no differentiation rule for."""


class WrongDerivativeError(GradlabError, AssertionError):
    """A check did not end in `ok`; the text is its report."""


class MissingExtraError(GradlabError, ImportError):
    """An optional package is not installed, or does not work with this JAX."""


class NonFiniteError(GradlabError, ValueError):
    """Data or initial parameters hold NaN or infinities."""


class CheckpointError(GradlabError, ValueError):
    """A checkpoint belongs to another run, or its folder cannot be used."""


class DistributedError(GradlabError, RuntimeError):
    """Processes that should work together could not start, or one of them was lost."""


class TargetError(GradlabError, ValueError):
    """A name that should lead to a function or a problem leads nowhere."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The question that ends a misspelling, or nothing when no known name is close.

    Args:
        name: what was given.
        known: the names that exist.

    Returns:
        `" Did you mean 'x'?"`, with its leading space, or `""`.

    >>> nearest("foward", ["forward", "reverse"])
    " Did you mean 'forward'?"
    """
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def first_sentence(error: BaseException) -> str:
    """The error's text up to its first full stop or line break; the class's name when it has no text.

    >>> first_sentence(ValueError("Two. Three"))
    'Two'
    """
    if isinstance(error, KeyError):
        return f"there is no differentiation rule for the operator {error}"
    text = str(error).strip().split("\n")[0]
    return text.split(". ")[0].rstrip(".") if text else type(error).__name__

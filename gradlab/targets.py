"""From a name to a function and its arguments: a problem of the table, or `package.module:function`."""

import importlib
import sys
from typing import Any, get_args

import jax

from gradlab import problems
from gradlab.errors import GradlabError, TargetError, nearest
from gradlab.inputs import misfit
from gradlab.types import Fn, Quantity


def resolve(target: str, arguments: str | None) -> tuple[Fn, tuple[Any, ...], Quantity]:
    """The function that a target names, its arguments, and the derivative to take of it by default.

    Args:
        target: a problem's name, or `package.module:function`, importable from the working folder.
        arguments: `package.module:name` of the arguments: a tuple of them, one argument, or a function without
            parameters that returns either. A problem brings its own.

    Raises:
        TargetError: a name leads nowhere, or the arguments do not fit the function.

    >>> f, args, of = resolve("rosenbrock", None)
    >>> of
    'gradient'
    """
    if ":" not in target:
        if arguments is not None:
            raise TargetError(
                f"--args belongs to a function, but {target!r} is a problem, which has its own arguments."
            )
        problem = problems.get(target) if target in problems.names() else _no_such(target)
        return (*problem.build(), problem.of[0])
    f = load(target, "TARGET")
    if not callable(f):
        raise TargetError(f"TARGET {target!r} is {type(f).__name__}, not a function. Name a function of arrays.")
    if arguments is None:
        raise TargetError(
            f"TARGET {target!r} needs its arguments: add --args package.module:name, where name is a tuple of arrays "
            "or a function that returns one."
        )
    args = load(arguments, "--args")
    try:
        args = args() if callable(args) else args
    except Exception as error:
        raise TargetError(f"--args {arguments!r} failed when it was called: {type(error).__name__}: {error}") from error
    args = args if isinstance(args, tuple) else (args,)
    y = _fitting(f, args, target, arguments)
    scalar = isinstance(y, jax.ShapeDtypeStruct) and y.shape == ()
    return f, args, "gradient" if scalar else "jacobian"


def _no_such(target: str) -> Any:
    raise TargetError(
        f"TARGET {target!r} is no problem and names no function.{nearest(target, problems.names())} "
        "Expected package.module:function with --args package.module:name, or one of: "
        f"{', '.join(problems.names())}."
    )


def load(path: str, what: str) -> Any:
    """The object at `package.module:name`, with the working folder importable, as for `python -m`.

    Raises:
        TargetError: the text has no colon, the module cannot be imported, or it has no such name.

    >>> load("math:pi", "--args")
    3.141592653589793
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise TargetError(f"{what} must look like package.module:name, but got {path!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        value = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = "Run gradlab in the folder that holds it, or install it."
        raise TargetError(f"{what} {path!r}: there is no module named {error.name!r}. {hint}") from error
    except Exception as error:
        raise TargetError(f"{what} {path!r}: importing it failed: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in dir(value) if not n.startswith("_")]
            raise TargetError(f"{what} {path!r}: {module_name} has no {part!r}.{nearest(part, names)}")
        value = getattr(value, part)
    return value


def _fitting(f: Fn, args: tuple[Any, ...], target: str, arguments: str) -> Any:
    if error := misfit(f, *args):
        given = f"{len(args)} argument(s)"
        raise TargetError(f"--args {arguments!r} gives {given}, which do not fit {target}: {error}.") from error
    try:
        return jax.eval_shape(f, *args)
    except GradlabError:
        raise
    except Exception as error:
        shapes = ", ".join(str(getattr(a, "shape", type(a).__name__)) for a in args)
        raise TargetError(
            f"{target} cannot be traced with --args {arguments!r} (given {shapes}): {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def quantity(name: str | None) -> Quantity | None:
    """The derivative that `--of` names.

    Raises:
        TargetError: there is none of this name.

    >>> quantity("hessian")
    'hessian'
    """
    if name is None:
        return None
    for known in get_args(Quantity):
        if name == known:
            return known
    raise TargetError(
        f"--of must be one of {', '.join(get_args(Quantity))}, but got {name!r}.{nearest(name, get_args(Quantity))}"
    )

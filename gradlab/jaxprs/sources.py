"""Where in the user's files an operator comes from."""

import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib


class Frame(NamedTuple):
    """A line that was running when an operator was traced.

    Attributes:
        file, line, function: where; "" for the file where only the function is known.
        via: JAX's function that this line called on the way to the operator, such as `norm`; "" for none.
    """

    file: str
    line: int
    function: str
    via: str = ""


Frames = tuple[Frame, ...]

_folder = lambda module: str(Path(module.__file__).parent) + os.sep
_TRACERS = tuple(_folder(module) for module in (jax, jaxlib))
_GRADLAB = str(Path(__file__).parent.parent) + os.sep
# What gradlab offers to be differentiated; the rest of it only calls the function at hand.
_OFFERED = tuple(_GRADLAB + name for name in ("losses.py", "models.py", "fused.py", "attacks.py", "problems"))
_LIBRARIES = tuple({str(Path(sysconfig.get_path(name))) + os.sep for name in ("stdlib", "purelib", "platlib")})


def frames_of(eqn: Any) -> Frames:
    """The lines outside of JAX that led to an operator, the innermost first.

    A program that is traced inside another, of a call or a loop, starts at its own first line: the rest are the frames
    of the operator that holds it. JAX keeps what it has traced, so the first caller's lines would be wrong for others.
    """
    trail = eqn.source_info.traceback
    found, via = [], ""
    for frame in trail.frames if trail is not None else ():
        name = frame.function_name
        calls = frame.file_name.startswith(_GRADLAB) and not frame.file_name.startswith(_OFFERED)
        if frame.file_name.startswith(_TRACERS):
            via = "" if name.startswith("_") or "<locals>" in name else name
        elif not calls:
            found.append(Frame(frame.file_name, frame.line_num, name, via))
            via = ""
    return tuple(found)


def user_frame(frames: Sequence[Frame]) -> Frame | None:
    """The user's own line: the innermost outside of every library, else the innermost there is.

    >>> library = Frame(f"{sysconfig.get_path('purelib')}/flax/norm.py", 9, "__call__")
    >>> user_frame([library, Frame("/home/me/model.py", 12, "loss"), Frame("/home/me/train.py", 40, "step")]).line
    12
    """
    frames = [frame for frame in frames if frame.file]
    apart = [frame for frame in frames if not frame.file.startswith(_GRADLAB)]
    own = [frame for frame in apart if not frame.file.startswith(_LIBRARIES)]
    return next(iter([*own, *apart, *frames]), None)


def called(frames: Sequence[Frame]) -> str:
    """The function of JAX that the user's line calls on the way to an operator; "" for none.

    >>> called([Frame("/home/me/model.py", 12, "loss", via="norm")])
    'norm'
    """
    frame = user_frame(frames)
    return frame.via if frame else next((one.via for one in frames if one.via), "")


def place(frame: Frame | None) -> str:
    """A frame as `file:line`, the file from the working folder where it lies below it.

    >>> place(Frame("/elsewhere/model.py", 12, "loss")), place(None)
    ('/elsewhere/model.py:12', '')
    """
    return f"{frame.file.removeprefix(os.getcwd() + os.sep)}:{frame.line}" if frame else ""

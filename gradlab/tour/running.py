"""The code of one page, run from top to bottom: what each block prints, returns, draws, or is refused."""

import ast
import io
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from textwrap import indent
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab import plots
from gradlab.errors import GradlabError, MissingExtraError


@dataclass(frozen=True)
class Shown:
    """What one block of code left behind.

    Attributes:
        text: what it printed, the value of its last expression as Python shows it, or the error.
        html: that value as a table, where it knows how; "" where not.
        picture: an SVG, where the value is a figure or axes; None where not.
        script: the code, as part of a script that shows the same: printed, or saved as a picture.
    """

    text: str = ""
    html: str = ""
    picture: bytes | None = None
    script: str = ""


class Session:
    """The names that the blocks of a page share.

    Not every extra works with every JAX. Where one is missing the page says so, and what cannot run without the names
    of that block says it again; the rest of the page goes on.
    """

    def __init__(self, page: str) -> None:
        self.page = page
        self.missing: MissingExtraError | None = None
        self.names: dict[str, Any] = {"__name__": f"tour_{page}"}

    def run(self, code: str, line: int, *, file: str = "", raises: bool = False) -> Shown:
        """Run one block.

        Args:
            code: Python.
            line: where it begins in the page, for what goes wrong.
            file: where a script saves its picture.
            raises: it must end in an error of gradlab, which is what it shows.

        Raises:
            RuntimeError: the code failed; or did not, where it should.
        """
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                value = self._run(code, line)
        except MissingExtraError as error:
            self.missing = error
            return Shown(str(error), script=_refused(code))
        except GradlabError as error:
            if raises:
                return Shown(f"{type(error).__module__}.{type(error).__name__}: {error}", script=_refused(code))
            raise RuntimeError(f"{self.page}, line {line}: {type(error).__name__}: {error}") from error
        except Exception as error:
            if self.missing and isinstance(error, NameError):
                return Shown(str(self.missing))
            raise RuntimeError(f"{self.page}, line {line}: {type(error).__name__}: {error}") from error
        if raises:
            raise RuntimeError(f"{self.page}, line {line}: the code should have raised an error of gradlab.")
        shown = _shown(value, printed.getvalue())
        return replace(shown, script=code if value is None else _showing(code, file if shown.picture else ""))

    def value(self, expression: str) -> str:
        """An expression between the words, as text; says so where a missing extra left it unknown.

        Raises:
            RuntimeError: it failed.
        """
        try:
            return str(eval(expression, self.names))
        except Exception as error:
            if self.missing and isinstance(error, NameError):
                return "(not known here)"
            raise RuntimeError(f"{self.page}: {expression}: {type(error).__name__}: {error}") from error

    def _run(self, code: str, line: int) -> Any:
        """Execute, and return the value of the last statement where that is an expression."""
        # Blank lines before it: functions keep the number of their line in the page.
        tree = ast.parse("\n" * (line - 1) + code)
        last = tree.body.pop() if tree.body else None
        if not isinstance(last, ast.Expr):
            tree.body += [last] if last else []
            last = None
        exec(compile(tree, f"{self.page}.md", "exec"), self.names)
        return last and eval(compile(ast.Expression(last.value), f"{self.page}.md", "eval"), self.names)


def _refused(code: str) -> str:
    """Code that gradlab refuses, for a script that goes on after it."""
    return f"try:\n{indent(code, '    ')}except gl.GradlabError as error:\n    print(error)\n"


def _showing(code: str, file: str) -> str:
    """The code with its last expression printed, or saved as a picture where there is a file for it."""
    last = ast.get_source_segment(code, ast.parse(code).body[-1]) or ""
    before, after = code.rsplit(last, 1)
    return before + (f'gl.plots.save({last}, "{file}")' if file else f"print({last})") + after


def _shown(value: Any, printed: str) -> Shown:
    figure = value.figure if isinstance(value, Axes) else value
    if isinstance(figure, Figure):
        return Shown(printed, picture=plots.image(figure, "svg"))
    html = value._repr_html_() if hasattr(value, "_repr_html_") else ""
    return Shown(printed + ("" if value is None or html else repr(value)), html)

"""One page: Markdown in, HTML out, with its code run on the way.

Beyond Markdown and `$formulas$`, a page may hold

- a heading that ends in `{2.1, 2.2}`: what follows shows these rows of the tutorial's equations;
- a block that begins with ```` ```python ````: code, run and shown with what it gives. `alt="…"` says what its picture
  shows, and has to be there where it draws one; `raises` is for code that gradlab refuses;
- ```` ```explore name ````: something to move by hand; see `gradlab.tour.explorables`;
- `{{ expression }}` in the text: its value, with the names of the code above it.
"""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from textwrap import indent
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from gradlab.tour.explorables import EXPLORABLES
from gradlab.tour.running import Session, Shown

FENCE = re.compile(r"^```(\w+)[ ]?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROWS = re.compile(r"^(#+ .*?) \{(.+)\}$", re.MULTILINE)
VALUE = re.compile(r"\{\{(.+?)\}\}")
# What stands for a block of code until the words around it are HTML.
MARK = "<!--block {}-->"


@dataclass(frozen=True)
class Page:
    """A page that has run.

    Attributes:
        name: of its file.
        title: its first heading.
        body: HTML.
        pictures: SVGs by file name.
        script: all of its code.
    """

    name: str
    title: str
    body: str
    pictures: dict[str, bytes]
    script: str


def title_of(text: str) -> str:
    """The first heading of a page."""
    return re.sub(r" \{.+\}$", "", text.lstrip().split("\n")[0].removeprefix("# "))


def rows_of(text: str) -> list[str]:
    """The rows of the tutorial's equations that a page shows."""
    return [row.strip() for _, listed in ROWS.findall(text) for row in listed.split(",")]


def anchor(row: str) -> str:
    """The address of a row within its page."""
    return "row-" + re.sub(r"[^\w.]+", "-", row)


def render(name: str, text: str) -> Page:
    """Run a page and write its HTML.

    Raises:
        RuntimeError: its code failed, or a picture has no words for those who cannot see it.
    """
    session, end = Session(name), 0
    pictures: dict[str, bytes] = {}
    words: list[str] = []
    code: list[str] = []
    blocks: list[str] = []
    for fence in FENCE.finditer(text):
        words.append(_valued(text[end : fence.start()], session))
        end = fence.end()
        line = text[: fence.start()].count("\n") + 2
        kind, options, source = fence.groups()
        if kind == "explore":
            blocks.append(_explorable(options.strip()))
        elif kind == "python":
            raises, alt = _options(options, f"{name}, line {line}")
            shown = session.run(source, line, raises=raises)
            code.append(_refused(source) if raises else source)
            file = f"{name}-{len(pictures) + 1}.svg"
            if shown.picture is not None:
                pictures[file] = shown.picture
            blocks.append(_code(source) + _given(shown, file, alt, name))
        else:
            blocks.append(f"<pre><code>{escape(source)}</code></pre>")
        words.append(f"\n\n{MARK.format(len(blocks) - 1)}\n\n")
    words.append(_valued(text[end:], session))
    body = _markdown().render("".join(words))
    for number, block in enumerate(blocks):
        body = body.replace(MARK.format(number), block)
    return Page(name, title_of(text), body, pictures, "\n".join(code))


def _valued(text: str, session: Session) -> str:
    text = ROWS.sub(lambda found: f"{found[1]} {_tags(found[2])}", text)
    return VALUE.sub(lambda found: session.value(found[1].strip()), text)


def _tags(listed: str) -> str:
    names = [row.strip() for row in listed.split(",")]
    return " ".join(f'<span class="row" id="{anchor(row)}" title="equation {row}">{row}</span>' for row in names)


def _markdown() -> MarkdownIt:
    formula: Callable[[str, dict[str, Any]], str] = lambda content, options: convert(
        content, display="block" if options["display_mode"] else "inline"
    )
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    return markdown.use(dollarmath_plugin, renderer=formula, allow_space=False, double_inline=False)


def _code(source: str) -> str:
    return highlight(source, PythonLexer(), HtmlFormatter(cssclass="code", wrapcode=True))


def _options(given: str, place: str) -> tuple[bool, str]:
    """Whether a block must be refused, and what its picture shows."""
    words = shlex.split(given)
    alt = next((word.removeprefix("alt=") for word in words if word.startswith("alt=")), "")
    if unknown := [word for word in words if word != "raises" and not word.startswith("alt=")]:
        raise RuntimeError(f"{place}: a block of code has no option {unknown[0]!r}; known are raises and alt.")
    return "raises" in words, alt


def _refused(source: str) -> str:
    """Code that gradlab refuses, for a script that goes on after it."""
    return f"try:\n{indent(source, '    ')}except gl.GradlabError as error:\n    print(error)\n"


def _given(shown: Shown, file: str, alt: str, page: str) -> str:
    # Columns are not to be broken; sentences are.
    kind = "given columns" if "   " in shown.text.strip() else "given"
    parts = [f'<pre class="{kind}">{escape(shown.text)}</pre>'] if shown.text.strip() else []
    if shown.html:
        parts.append(f'<div class="given">{shown.html}</div>')
    if shown.picture is not None:
        if not alt:
            raise RuntimeError(f'{page}: a picture has no alt="…" that says what it shows.')
        parts.append(f'<img src="{file}" alt="{escape(alt)}">')
    return "".join(parts)


def _explorable(name: str) -> str:
    one = EXPLORABLES[name]
    data = json.dumps(one.data(), separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return (
        f'<section class="explore" data-explore="{name}" aria-label="{escape(one.title)}">'
        f'<h3>{escape(one.title)}</h3><script type="application/json">{data}</script>'
        f"<noscript><p>{escape(one.alt)} It needs JavaScript.</p></noscript></section>"
    )

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.substitution import substitution_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from gradlab.tour.explorables import EXPLORABLES
from gradlab.tour.running import Session, Shown

ROWS = re.compile(r"^(.*?) \{(.+)\}$")


@dataclass
class Page:
    """A page that has run.

    Attributes:
        name: of its file.
        title: its first heading.
        body: HTML.
        pictures: SVGs by file name.
        code: its blocks, as parts of a script that shows what the page does.
    """

    name: str
    title: str
    body: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)


def title_of(text: str) -> str:
    """The first heading of a page."""
    return next(_split(heading.content)[0] for heading in _headings(_markdown().parse(text)))


def rows_of(text: str) -> list[str]:
    """The rows of the tutorial's equations that a page shows."""
    return [row for heading in _headings(_markdown().parse(text)) for row in _split(heading.content)[1]]


def anchor(row: str) -> str:
    """The address of a row within its page."""
    return "row-" + re.sub(r"[^\w.]+", "-", row)


def render(name: str, text: str) -> Page:
    """Run a page and write its HTML.

    Raises:
        RuntimeError: its code failed, or a picture has no words for those who cannot see it.
    """
    markdown, page, session = _markdown(), Page(name, title_of(text)), Session(name)
    tokens = markdown.parse(text)
    for heading in _headings(tokens):
        _tag(heading)
    # From top to bottom, so that a value between the words has the names of the code above it.
    for token in tokens:
        if token.type == "fence":
            token.type, token.content = "html_block", _block(token, page, session)
        for part in token.children or ():
            if part.type == "substitution_inline":
                part.type, part.content = "text", session.value(part.content)
    page.body = markdown.renderer.render(tokens, markdown.options, {})
    return page


def _markdown() -> MarkdownIt:
    formula: Callable[[str, dict[str, Any]], str] = lambda content, options: convert(
        content, display="block" if options["display_mode"] else "inline"
    )
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    markdown.use(dollarmath_plugin, renderer=formula, allow_space=False, double_inline=False)
    return markdown.use(substitution_plugin).disable("substitution_block")


def _headings(tokens: Sequence[Token]) -> list[Token]:
    return [inside for opening, inside in pairwise(tokens) if opening.type == "heading_open"]


def _split(heading: str) -> tuple[str, list[str]]:
    """The words of a heading, and its rows."""
    found = ROWS.match(heading)
    return (found[1], [row.strip() for row in found[2].split(",")]) if found else (heading, [])


def _tag(heading: Token) -> None:
    """Turn the rows that a heading names into places of the page."""
    last = (heading.children or [])[-1]
    last.content, rows = _split(last.content)
    for row in rows:
        tag = f' <span class="row" id="{anchor(row)}" title="equation {escape(row)}">{escape(row)}</span>'
        heading.children = [*(heading.children or []), Token("html_inline", "", 0, content=tag)]


def _block(fence: Token, page: Page, session: Session) -> str:
    """The HTML of a block of code, which is run if it is Python."""
    kind, _, options = fence.info.partition(" ")
    if kind == "explore":
        return _explorable(options.strip())
    if kind != "python":
        return f"<pre><code>{escape(fence.content)}</code></pre>"
    line = (fence.map or [0])[0] + 2  # of its first statement, counted from 1
    raises, alt = _options(options, f"{page.name}, line {line}")
    file = f"{page.name}-{len(page.pictures) + 1}.svg"
    shown = session.run(fence.content, line, file=file, raises=raises)
    page.code.append(shown.script)
    parts = [highlight(fence.content, PythonLexer(), HtmlFormatter(cssclass="code", wrapcode=True)), _given(shown)]
    if shown.picture is not None:
        if not alt:
            raise RuntimeError(f'{page.name}, line {line}: a picture has no alt="…" that says what it shows.')
        page.pictures[file] = shown.picture
        parts.append(f'<img src="{file}" alt="{escape(alt)}">')
    return "".join(parts)


def _options(given: str, place: str) -> tuple[bool, str]:
    """Whether a block must be refused, and what its picture shows."""
    words = shlex.split(given)
    alt = next((word.removeprefix("alt=") for word in words if word.startswith("alt=")), "")
    if unknown := [word for word in words if word != "raises" and not word.startswith("alt=")]:
        raise RuntimeError(f"{place}: a block of code has no option {unknown[0]!r}; known are raises and alt.")
    return "raises" in words, alt


def _given(shown: Shown) -> str:
    # Columns are not to be broken; sentences are.
    kind = "given columns" if "   " in shown.text.strip() else "given"
    text = f'<pre class="{kind}">{escape(shown.text)}</pre>' if shown.text.strip() else ""
    return text + (f'<div class="given">{shown.html}</div>' if shown.html else "")


def _explorable(name: str) -> str:
    one = EXPLORABLES[name]
    data = json.dumps(one.data(), separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    return (
        f'<section class="explore" data-explore="{name}" aria-label="{escape(one.title)}">'
        f'<h3>{escape(one.title)}</h3><p class="summary">{escape(one.summary)}</p>'
        f'<script type="application/json">{data}</script><noscript><p>It needs JavaScript.</p></noscript></section>'
    )

"""The whole site: pages in their order, what they share, and the reference, written in one go."""

import tempfile
from collections.abc import Callable
from html import escape
from importlib import resources
from pathlib import Path

from gradlab.errors import MissingExtraError, OptionError

# Groups of pages, in the order of reading.
PAGES = {
    "The story": ("one-variable", "several-variables", "descent", "losses", "jacobians", "autodiff", "further"),
    "The tools": ("check", "compare", "graph", "descend", "curvature"),
}
ORDER = ("index", *(name for group in PAGES.values() for name in group))
PARTS = (*ORDER, "reference")
ASSETS = ("tour.css", "stage.js", "explore.js")
# A folder with this file in it was written here, and may be written anew.
SEAL = ".gradlab-tour"


def build(out: str | Path, *, progress: Callable[[str], None] = lambda name: None) -> Path:
    """Run every page and write the site.

    The folder appears when all is done: where a page fails, nothing is written and an older site stays.

    Args:
        out: a folder, which does not exist, is empty, or holds an older tour.
        progress: called with the name of each part before it is made.

    Returns:
        The first page.

    Raises:
        OptionError: the folder holds something else, or cannot be written.
        MissingExtraError: one of the libraries that the tour is made with is not installed.
        RuntimeError: the code of a page failed, or a link leads nowhere.
    """
    out = Path(out).resolve()
    _require_folder(out)
    try:
        from gradlab.tour import links, page, reference
    except ImportError as error:
        raise MissingExtraError(
            f"The tour needs a library that cannot be imported here ({error}). "
            'Install what it takes with: pip install "gradlab-jax[tour]".'
        ) from error
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        made = Path(folder) / "site"
        made.mkdir()
        titles = {name: page.title_of(source(name)) for name in ORDER} | {"operators": "Operators"}
        for name in ORDER:
            progress(name)
            done = page.render(name, source(name))
            for file, picture in done.pictures.items():
                (made / file).write_bytes(picture)
            (made / f"{name}.py").write_text("\n".join(done.code), encoding="utf-8")
            (made / f"{name}.html").write_text(_page(name, done.body, titles), encoding="utf-8")
        progress("reference")
        operators = _page("operators", reference.operators(), titles)
        (made / "operators.html").write_text(operators, encoding="utf-8")
        reference.write(made / "api")
        for asset in ASSETS:
            (made / asset).write_bytes((_files() / "assets" / asset).read_bytes())
        (made / SEAL).touch()
        if wrong := links.broken(made):
            raise RuntimeError("Links that lead nowhere: " + "; ".join(wrong))
        if out.exists():
            out.rename(Path(folder) / "older")  # it goes with the temporary folder
        made.rename(out)
    return out / "index.html"


def rows() -> dict[str, str]:
    """Where the tour shows each row of the tutorial's equations: `{"2.1": "one-variable.html#row-2.1", …}`."""
    from gradlab.tour import page

    return {row: f"{name}.html#{page.anchor(row)}" for name in ORDER for row in page.rows_of(source(name))}


def source(name: str) -> str:
    """The text of a page."""
    return (_files() / "pages" / f"{name}.md").read_text(encoding="utf-8")


def _files() -> resources.abc.Traversable:
    return resources.files("gradlab.tour")


def _require_folder(out: Path) -> None:
    try:
        foreign = out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / SEAL).exists()))
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass
    except OSError as error:
        raise OptionError(f"The folder {out} cannot be made: {error}. Give another one.") from error
    if foreign:
        raise OptionError(
            f"{out} exists and is no tour that was written before. Give a folder that does not exist yet, or an empty "
            "one: what is in it is replaced."
        )


def _page(name: str, body: str, titles: dict[str, str]) -> str:
    link = lambda to, words, **more: f'<a href="{to}.html"{_attributes(more)}>{escape(words)}</a>'
    here = lambda to: {"aria-current": "page"} if to == name else {}
    groups = "".join(
        f"<h2>{escape(group)}</h2><ul>{''.join(f'<li>{link(to, titles[to], **here(to))}</li>' for to in names)}</ul>"
        for group, names in (PAGES | {"Reference": ("operators",)}).items()
    )
    at = ORDER.index(name) if name in ORDER else len(ORDER)
    before = link(ORDER[at - 1], f"← {titles[ORDER[at - 1]]}", rel="prev") if at else ""
    after = link(ORDER[at + 1], f"{titles[ORDER[at + 1]]} →", rel="next") if at + 1 < len(ORDER) else ""
    script = f'<p class="script"><a href="{name}.py" download>The code of this page as one script</a></p>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(titles[name])} · gradlab</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="tour.css">
<script src="stage.js" defer></script>
<script src="explore.js" defer></script>
</head>
<body>
<a class="skip" href="#text">Skip to the text</a>
<nav aria-label="Pages"><details open><summary>Pages</summary>
<p class="home">{link("index", "gradlab", **here("index"))}</p>{groups}
<ul><li><a href="api/gradlab.html">Every name</a></li></ul></details></nav>
<main id="text">
{body}
{script if name in ORDER else ""}
<footer>{before}<span></span>{after}</footer>
</main>
</body>
</html>
"""


def _attributes(given: dict[str, str]) -> str:
    return "".join(f' {name}="{escape(value)}"' for name, value in given.items())

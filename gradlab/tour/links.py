"""Links of a site of files: each leads to a file that is there, and to a place in it."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.followed: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name" if tag == "a" else "id") if name in given}
        if tag == "a" and "href" in given:
            self.followed.append(given["href"])
        elif tag == "link" and "href" in given:
            self.loaded.append(given["href"])
        self.loaded += [given[name] for name in ("src", "poster") if name in given]
        self.loaded += [given["data"]] if tag == "object" and "data" in given else []
        self.loaded += [one.split()[0] for one in given.get("srcset", "").split(",") if one.strip()]


def broken(folder: Path) -> list[str]:
    """What is wrong with the links of all pages in a folder: `page: link`, one for each.

    Nothing may be loaded from elsewhere; an address to follow may lead there.
    """
    folder = folder.resolve()
    pages = {path: _read(path) for path in sorted(folder.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        for link, loaded in [*((link, True) for link in page.loaded), *((link, False) for link in page.followed)]:
            parts = urlsplit(link)
            if parts.scheme == "data" or (not loaded and parts.scheme in ("http", "https", "mailto")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            inside = target.is_file() and folder in target.parents
            missing = parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids
            if parts.scheme or parts.netloc or not inside or missing:
                wrong.append(f"{path.relative_to(folder)}: {link}")
    return wrong


def _read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader

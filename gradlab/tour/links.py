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
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.followed.append(given["href"])
        elif tag == "link" and "href" in given:
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


def broken(folder: Path) -> list[str]:
    """What is wrong with the links of all pages in a folder: `page: link`, one for each.

    Nothing may be loaded from elsewhere; an address to follow may lead there.
    """
    pages = {path: _read(path) for path in sorted(folder.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        for link in (*page.loaded, *page.followed):
            parts = urlsplit(link)
            if parts.scheme == "data" or (parts.scheme in ("http", "https", "mailto") and link in page.followed):
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            inside = target.is_file() and folder.resolve() in target.resolve().parents
            known = pages.get(target) or pages.get(path.parent / unquote(parts.path))
            missing = parts.fragment and known is not None and unquote(parts.fragment) not in known.ids
            if parts.scheme or not inside or missing:
                wrong.append(f"{path.relative_to(folder)}: {link}")
    return wrong


def _read(path: Path) -> _Reader:
    reader = _Reader()
    reader.feed(path.read_text())
    return reader

"""Check the built pages: ``python docs/check_site.py docs/_build/html``.

Every link to a file of the site must lead to a file, and every ``#anchor`` to an element. Pages must not load scripts,
styles, fonts, pictures or frames from other sites.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser load what they name; all other links wait for a click.
LOADED = {"src", "srcset", "data", "poster"}
STYLE = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


class Page(HTMLParser):
    """The links of a page, the files that it loads, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self._in_style = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.update(found[name] for name in ("id", "name") if found.get(name))
        for name in LOADED & found.keys():
            parts = found[name].split(",") if name == "srcset" else [found[name]]
            self.loaded += [part.split()[0] if name == "srcset" else part for part in parts if part.strip()]
        if "href" in found or "xlink:href" in found:
            target = found.get("href", found.get("xlink:href", ""))
            rel = set(found.get("rel", "").lower().split())
            fetched = tag in ("image", "use") or (
                tag == "link" and not rel & {"canonical", "alternate", "next", "prev"}
            )
            (self.loaded if fetched else self.links).append(target)
        self.loaded += in_style(found.get("style", ""))
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loaded += in_style(data)


def in_style(text: str) -> list[str]:
    return [first or second for first, second in STYLE.findall(text)]


def outside(target: str) -> bool:
    """Return whether a link leaves the site; embedded data does not."""
    parts = urlsplit(target)
    return bool(parts.netloc or parts.scheme not in ("", "data", "javascript"))


def problems(root: Path) -> list[str]:
    """Return one line for each problem of the site in a folder."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    out = []
    for file, page in pages.items():
        name = file.relative_to(root)
        out += [f"{name}: loads {target}" for target in page.loaded if outside(target)]
        for target in [*page.links, *page.loaded]:
            parts = urlsplit(target)
            if outside(target) or parts.scheme:
                continue
            # A leading / means the root of the server, which need not be that of the site.
            path = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            path = path / "index.html" if path.is_dir() else path
            if parts.path.startswith("/") or not path.is_file() or not path.is_relative_to(root.resolve()):
                out.append(f"{name}: no file {target}")
            elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].anchors:
                out.append(f"{name}: no anchor {target}")
    for file in sorted(root.rglob("*.css")):
        for target in in_style(file.read_text(encoding="utf-8")):
            if outside(target):
                out.append(f"{file.relative_to(root)}: loads {target}")
            elif not urlsplit(target).scheme and not (file.parent / unquote(urlsplit(target).path)).is_file():
                out.append(f"{file.relative_to(root)}: no file {target}")
    return out


def main() -> int:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "index.html").is_file():
        print(
            "usage: python docs/check_site.py FOLDER, the folder that contains index.html of the built pages",
            file=sys.stderr,
        )
        return 2
    root = Path(sys.argv[1]).resolve()
    found = problems(root)
    print(
        "\n".join(found)
        or f"{len(list(root.rglob('*.html')))} pages: all links are valid, nothing is loaded from other sites"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

"""Build a tree of HTML elements; text and attributes are escaped when it is written."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

Element = ElementTree.Element

_SHEET = Path(__file__).with_name("report.css")
_NOT_HTML = dict.fromkeys((*range(9), *range(11, 32), 127))  # control characters except tab and line feed


def node(tag: str, *children: Element | str | None, **attributes: str) -> Element:
    """Create an element; in names of attributes, ``class_`` becomes ``class`` and inner underscores become dashes."""
    made = Element(tag, {name.rstrip("_").replace("_", "-"): _clean(value) for name, value in attributes.items()})
    for child in children:
        if child is None:
            continue
        if not isinstance(child, str):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _clean(child)
        else:
            made.text = (made.text or "") + _clean(child)
    return made


def page(title: str, *children: Element | None) -> bytes:
    """Create the whole document, with its style sheet inside."""
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", title),
        node("style", _SHEET.read_text(encoding="utf-8")),
    )
    document = node("html", head, node("body", node("main", *children)), lang="en")
    text = "<!DOCTYPE html>\n" + ElementTree.tostring(document, encoding="unicode", method="html") + "\n"
    return text.encode("utf-8", "replace")


def image(light: bytes, alt: str, *, dark: bytes | None = None, width: int | None = None) -> Element:
    """Embed a PNG, and optionally another one for dark mode."""
    sizes = {} if width is None else {"width": str(width)}
    shown = node("img", src=_data(light), alt=alt, **sizes)
    if dark is None:
        return shown
    return node("picture", node("source", srcset=_data(dark), media="(prefers-color-scheme: dark)"), shown)


def table(heading: Sequence[str], rows: Sequence[Sequence[str | Element]], label: str) -> Element:
    """Create a table with a fixed first column; wide tables scroll in their own box."""
    head = node("tr", *(node("th", name, scope="col") for name in heading))
    body = []
    for name, *cells in rows:
        row = node("tr", node("th", name, scope="row"))
        row.extend(cell if isinstance(cell, Element) else node("td", cell) for cell in cells)
        body.append(row)
    whole = node("table", node("thead", head), node("tbody", *body))
    return scroll(whole, label)


def scroll(content: Element, label: str) -> Element:
    """Put what may be too wide for the window in a box that scrolls."""
    return node("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _clean(text: str) -> str:
    """Remove characters that HTML does not allow."""
    return text.translate(_NOT_HTML)

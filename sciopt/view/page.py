"""The parts of a report that stands in one file: its frame, tables of facts, tables that sort, pictures."""

from __future__ import annotations

import base64
import json
import os
import uuid
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["facts_table", "page", "picture_tag", "sortable_table", "table_cell", "value_text", "write_page"]


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML page that needs no network.

    Args:
        title: of the window; escaped here.
        parts: HTML of the body; empty ones are dropped.

    Example:
        >>> page("a < b", ["<h1>x</h1>"]).count("<title>a &lt; b</title>")
        1
    """
    style, script = (files("sciopt.view").joinpath(name).read_text("utf-8") for name in ("report.css", "report.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, parts))}\n</main><script>{script}</script></body></html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a page in one stroke, through a rename; returns its path."""
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def facts_table(title: str, facts: dict[str, Any]) -> str:
    """Names and values in two columns, under a small heading if there is one; nothing for no facts.

    Example:
        >>> facts_table("", {"n": 3})
        '<table class="facts"><tr><th>n</th><td>3</td></tr></table>'
    """
    if not facts:
        return ""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{value_text(value)}</td></tr>" for name, value in facts.items()
    )
    return (f"<h3>{escape(title)}</h3>" if title else "") + f'<table class="facts">{rows}</table>'


def sortable_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that sorts by the column whose head is pressed.

    Args:
        names: of the columns; escaped here.
        rows: cells as HTML, e.g. made by `table_cell`.

    Example:
        >>> sortable_table(["n"], [[table_cell(1)]]).startswith('<table class="sortable">')
        True
    """
    head = "".join(f"<th><button>{escape(name).replace('_', '_<wbr>')}</button></th>" for name in names)
    body = "".join("<tr>" + "".join(cells) + "</tr>" for cells in rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def table_cell(value: Any) -> str:
    """One ``<td>``; numbers stand at the right and sort by their full value.

    Example:
        >>> table_cell("a<b")
        '<td>a&lt;b</td>'
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f'<td class="n" data-value="{value!r}">{value_text(value)}</td>'
    return f"<td>{value_text(value)}</td>"


def value_text(value: Any) -> str:
    """A value for people, escaped.

    Example:
        >>> value_text(1 / 3), value_text(True), value_text(None)
        ('0.333333', 'yes', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return str(value) if isinstance(value, int) else f"{value:.6g}"
    return escape(value if isinstance(value, str) else json.dumps(value))


def picture_tag(png: bytes, text: str) -> str:
    """A PNG inside the page, with a description for those who do not see it.

    Example:
        >>> picture_tag(b"", "a cat")
        '<img alt="a cat" src="data:image/png;base64,">'
    """
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(text, quote=True)}" src="data:image/png;base64,{data}">'

"""Pieces of HTML that every report is made of: strings and numbers come in, markup goes out.

Everything here survives JupyterLab's sanitizer for untrusted notebooks: inline styles of its allow-list only, colours as
hex or ``rgba()``, no ``var()``, no ids. Text that a user could have written goes through `escape`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: Muted text: the page's own colour, let through; at least 4.5 : 1 on JupyterLab's light and dark background.
MUTED = "opacity:.72"


def clean(text: object) -> str:
    """Text on one line: without control and direction marks a label can neither move a cursor nor reverse what follows."""
    words = str(text)
    if words.isprintable():  # nearly always, and then there is nothing to do
        return words
    return "".join(" " if c.isspace() else c for c in words if c.isspace() or c.isprintable())


def escape(text: object) -> str:
    """`clean` text as HTML, in an attribute or between tags."""
    return html.escape(clean(text))


def prose(text: str) -> str:
    """A sentence of ours: escaped, and what stands between backticks as code."""
    look = style("color:inherit", "background:none")
    return re.sub("`([^`]+)`", rf"<code{look}>\1</code>", escape(text))


def unbroken(text: object) -> str:
    """`escape`, with spaces at which no line ends: a size stays with its name."""
    return escape(text).replace(" ", "\xa0")


def style(*declarations: str) -> str:
    """A ``style`` attribute with a leading space; nothing where there are no declarations."""
    joined = ";".join(d for d in declarations if d)
    return f' style="{joined}"' if joined else ""


class Part(NamedTuple):
    """A stretch of a stacked bar."""

    label: str
    colour: str
    size: float
    text: str  #: the size in words


#: Percent of a bar that any part gets: what is there is seen, however small.
_LEAST_WIDTH = 0.12


def stacked_bar(parts: Sequence[Part], total: float, height_px: int = 18) -> str:
    """Parts side by side, as wide as the page lets them; ``total`` is the whole width. Each tells its size as a tooltip."""
    shown = [part for part in parts if part.size > 0] if total > 0 else []
    widths = [max(100 * part.size / total, _LEAST_WIDTH) for part in shown]
    shrink = min(1.0, 99.9 / sum(widths)) if widths else 1.0  # a float that does not fit would drop below the bar
    spans = "".join(
        f'<span title="{escape(part.label)} {escape(part.text)}"'
        f"{style('float:left', f'height:{height_px}px', f'width:{shrink * width:.2f}%', f'background:{part.colour}')}></span>"
        for part, width in zip(shown, widths, strict=True)
    )
    box = style(f"height:{height_px}px", "overflow:hidden", "border-radius:3px", "background:rgba(128,128,128,0.14)")
    return f"<div{box}>{spans}</div>"


def swatch(colour: str) -> str:
    """A small square of a category's colour, to stand before its name."""
    look = style("display:inline-block", "width:10px", "height:10px", "border-radius:2px", f"background:{colour}")
    return f"<span{look}></span>"


def legend(items: Iterable[tuple[str, str]]) -> str:
    """What colours stand for, on a line: colours and plain words come in. The words are muted, the colours are not."""
    item = style("white-space:nowrap")
    words = (f"<span{item}>{swatch(colour)} <span{style(MUTED)}>{escape(text)}</span></span>" for colour, text in items)
    return f"<div{style('font-size:12px', 'margin:3px 0 8px')}>{' &nbsp; '.join(words)}</div>"


def meter(share: float, colour: str, width_px: int = 64) -> str:
    """A bar for a share in [0, 1]; at least one pixel where the share is not zero."""
    length = max(1, round(share * width_px)) if share > 0 else 0
    look = style(
        "display:inline-block", "height:8px", f"width:{length}px", f"background:{colour}", "border-radius:1px",
        "margin-right:6px",
    )  # fmt: skip
    return f"<span{look}></span>" if length else ""


class Column(NamedTuple):
    """A column of `table`."""

    title: str
    numeric: bool = False
    muted: bool = False
    wrap: bool = False  #: long text that may break
    least_px: int = 0  #: where it breaks no more: the page scrolls the table instead
    spare: bool = False  #: left out on a narrow page (`theme.css`)


_CELL = "padding:2px 12px 2px 0;border:none;vertical-align:baseline;"


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], *, lean: bool = False) -> str:
    """A table of ready markup; the first column of each row is its header.

    Parameters
    ----------
    caption : str
        Plain text, for screen readers.
    rows : iterable of sequences of str
        Cells as markup: escape what is text.
    lean : bool
        Inline styles for the alignment only: a third of the size, for long tables that are folded away.
    """
    look = _lean if lean else _full
    names = [' class="n"' if column.spare and not lean else "" for column in columns]
    heads = "".join(
        f'<th scope="col"{name}{style(look(c, True))}>{escape(c.title)}</th>'
        for name, c in zip(names, columns, strict=True)
    )
    looks = [name + style(look(column, False)) for name, column in zip(names, columns, strict=True)]
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row"{look.replace(chr(34), chr(34) + "font-weight:500;", 1)}>{cell}</th>'
            if i == 0
            else f"<td{look}>{cell}</td>"
            for i, (look, cell) in enumerate(zip(looks, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    hidden = style("height:0", "overflow:hidden", "font-size:0", "line-height:0", "padding:0")
    return (
        f"<div{style('overflow:auto')}><table{style('border-collapse:collapse', 'margin:0', 'font-size:13px', 'border:none', 'color:inherit')}>"
        f"<caption{hidden}>{escape(caption)}</caption><thead{style('background:none')}><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _full(column: Column, head: bool) -> str:
    align = "text-align:right;" if column.numeric else "text-align:left;"
    wrap = "" if column.wrap and not head else "white-space:nowrap;"
    size = f"font-size:12px;font-weight:600;{MUTED}" if head else MUTED if column.muted else ""
    least = f"min-width:{column.least_px}px;" if head and column.least_px else ""
    return (_CELL + align + wrap + least + size).rstrip(";")


def _lean(column: Column, head: bool) -> str:
    return "text-align:right" if column.numeric else "text-align:left"


def folded(summary: str, content: str) -> str:
    """``content`` behind a line that opens it; keyboard-native. ``summary`` is plain text."""
    look = style("margin:2px 0")
    return f"<details{look}><summary{style('cursor:pointer')}>{escape(summary)}</summary>{content}</details>"

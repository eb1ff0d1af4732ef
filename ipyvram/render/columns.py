"""Rows of cells as lines of text in columns: strings come in, one string goes out; nothing in them can move the cursor."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def printable(text: object) -> str:
    """The text on one line, without characters that a terminal would act on (escape, bidirectional marks)."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " if c in "\t\n\r" else "�" for c in str(text))


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), rule: bool = True, widest: int = 40) -> str:
    """Align cells; the first row is the head, with a line under it.

    Parameters
    ----------
    rows : sequence of sequences of str
        Of equal length.
    right : sequence of int
        Columns that are set flush right: figures.
    widest : int
        Characters at which a cell is cut, with an ellipsis.
    """
    cells = [[_cut(printable(cell), widest) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(_pad(c, w, i in right) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in cells
    ]
    if rule:
        lines.insert(1, "  ".join("─" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def display_width(text: str) -> int:
    """Cells of a terminal: East Asian letters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, widest: int) -> str:
    while display_width(text) > widest:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - display_width(text))
    return space + text if right else text + space

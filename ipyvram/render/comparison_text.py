"""A comparison as text for a terminal: a `Comparison` comes in, lines of at most the given width go out."""

from __future__ import annotations

from itertools import compress

from ipyvram.comparison import Comparison
from ipyvram.render.columns import columns, display_width
from ipyvram.render.comparison_words import COLUMNS, FIGURES, Words, columns_shown, heads, put_into_words
from ipyvram.render.text import Pen

#: Left out where the table would be wider than the page: it follows from the column before it.
DISPENSABLE = ("share of best",)

#: Sizes side by side in the table of categories.
SIZES_ACROSS = 5


def text(comparison: Comparison, *, width: int = 80, unicode: bool = True, colour: bool = False) -> str:
    """The comparison as lines of text; parameters as for `render.text.text`."""
    pen, words = Pen(width, unicode, colour), put_into_words(comparison)
    lines = pen.wrap(" · ".join([words.title, *words.context]), "  ")
    lines += pen.wrap(comparison.note, "  ") if comparison.note else []
    for strong, rest in words.headline:
        lines += [pen.bold(line) for line in pen.wrap(f"{strong} · {rest}", "  ")]
    lines += pen.wrap(words.trouble, "  ") if words.trouble else []
    lines += pen.wrap(words.fit, "  ") if words.fit else []
    if words.cells:
        lines += ["", *_table(comparison, words, pen)]
    if words.categories:
        lines += ["", *_categories(words, pen)]
    mark = "→ " if unicode else "> "
    if words.notes:
        lines += ["", *(line for note in words.notes for line in pen.wrap(mark + note, "  "))]
    return "\n".join(line.rstrip() for line in lines)


def _table(comparison: Comparison, words: Words, pen: Pen) -> list[str]:
    shown = list(compress(range(len(COLUMNS)), columns_shown(comparison)))
    names = heads(comparison)
    rows = [[names[i] for i in shown], *map(list, words.cells)]
    if sum(max(display_width(cell) for cell in column) + 2 for column in zip(*rows, strict=True)) - 2 > pen.width:
        kept = [i for i in range(len(shown)) if COLUMNS[shown[i]] not in DISPENSABLE]
        rows, shown = [[row[i] for i in kept] for row in rows], [shown[i] for i in kept]
    lines = _fitted(rows, [i for i, column in enumerate(shown) if column in FIGURES], pen)
    for row, remark in zip(comparison.rows, words.remarks, strict=True):
        if remark:
            lines += pen.wrap(f"{row.batch}: {remark}", "  ")
    return lines


def _categories(words: Words, pen: Pen) -> list[str]:
    lines: list[str] = []
    for start in range(0, len(words.sizes), SIZES_ACROSS):
        part = slice(start, start + SIZES_ACROSS)
        head = ["at peak", *words.sizes[part]]
        rows = [head, *([label, *sizes[part]] for _, label, sizes in words.categories)]
        lines += ([""] if lines else []) + _fitted(rows, range(1, len(head)), pen)
    return lines


def _fitted(rows: list[tuple[str, ...]] | list[list[str]], right: range | list[int], pen: Pen) -> list[str]:
    plain = [[pen.plain(cell) for cell in row] for row in rows]
    return [pen.cut(line, pen.width) for line in columns(plain, right=list(right), rule=pen.unicode).split("\n")]

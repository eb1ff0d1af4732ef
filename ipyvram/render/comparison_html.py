"""A comparison as HTML: a `Comparison` comes in; a fragment of inline styles, a table and a picture goes out.

It survives JupyterLab's sanitizer: what it loses is a style sheet that lets the picture follow the page's theme.
"""

from __future__ import annotations

import base64
from itertools import compress

from ipyvram.comparison import Comparison, Row, reached
from ipyvram.render.comparison_chart import HEIGHT, WIDTH, chart
from ipyvram.render.comparison_words import FIGURES, Words, columns_shown, heads, put_into_words, sentence
from ipyvram.render.framing import framed
from ipyvram.render.markup import MUTED, Column, Part, escape, folded, stacked_bar, style, swatch, table
from ipyvram.render.palette import COLOURS, STACK, TROUBLE_COLOUR
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes

_BAR_PX = 220


def html(comparison: Comparison) -> str:
    """The comparison as a fragment of HTML."""
    words = put_into_words(comparison)
    parts = [
        _head(comparison, words),
        _main_table(comparison, words),
        _legend(words),
        _picture(comparison),
        _notes(words),
        _category_table(words),
    ]
    return framed("".join(parts), sheets=["theme.css"])


def _head(c: Comparison, words: Words) -> str:
    context = " · ".join(escape(part) for part in words.context)
    lines = [f"<div><strong>{escape(words.title)}</strong> <span{style(MUTED)}>{context}</span></div>"]
    if c.note:
        lines.append(f"<div{style(MUTED)}>{escape(c.note)}</div>")
    for i, (strong, rest) in enumerate(words.headline):
        look = style("font-size:17px", "line-height:1.4", "margin:2px 0") if i == 0 else ""
        lines.append(f"<div{look}><strong>{escape(strong)}</strong> <span{style(MUTED)}>· {escape(rest)}</span></div>")
    if words.trouble:
        lines.append(_remark(words.trouble, TROUBLE_COLOUR))
    if words.fit:
        lines.append(f"<div{style(MUTED, 'margin:0 0 8px')}>{escape(words.fit)}</div>")
    return "".join(lines)


def _main_table(c: Comparison, words: Words) -> str:
    if not words.cells:
        return ""
    names = heads(c)
    columns = [Column(names[i], numeric=i in FIGURES) for i in compress(range(len(names)), columns_shown(c))]
    columns.insert(2, Column("by category", spare=True))
    widest = max((r.peak_bytes or 0 for r in c.rows), default=0)
    rows, sizes = [], reached(c.rows)
    for row, cells in zip(c.rows, words.cells, strict=True):
        answer = c.largest is not None and sizes[row.batch] == c.largest.batch
        marked = [f"<strong>{escape(cell)}</strong>" if answer or (row.batch == c.knee and i == 0) else escape(cell) for i, cell in enumerate(cells)]  # fmt: skip
        marked.insert(2, _bar(row, widest))
        rows.append(marked)
    remarks = "".join(
        f"<div{style(MUTED, 'font-size:12px')}>{escape(f'{row.batch}: {remark}')}</div>"
        for row, remark in zip(c.rows, words.remarks, strict=True)
        if remark
    )
    return f'<div class="c">{table("Peak memory and speed at each size", columns, rows)}</div>{remarks}'


def _bar(row: Row, widest: int) -> str:
    if not row.categories:
        return ""
    parts = [
        Part(LABELS[name], COLOURS[name], row.categories[name], format_bytes(row.categories[name]))
        for name in STACK
        if row.categories.get(name)
    ]
    # A little more than all: tiny parts are drawn wider than they are, and what does not fit beside them is not seen.
    bar = stacked_bar(parts, 1.013 * sum(row.categories.values()), height_px=10)
    width = max(1, round(_BAR_PX * (row.peak_bytes or 0) / widest)) if widest else 1
    return f"<div{style(f'width:{width}px')}>{bar}</div>"


def _legend(words: Words) -> str:
    look = style("white-space:nowrap")
    items = " &nbsp; ".join(
        f"<span{look}>{swatch(COLOURS[n])} {escape(label)}</span>" for n, label, _ in words.categories
    )
    return f"<div{style('font-size:12px', 'margin:6px 0')}>{items}</div>" if items else ""


def _picture(c: Comparison) -> str:
    svg = chart(c)
    if not svg:
        return ""
    data = base64.b64encode(svg.encode("ascii", "xmlcharrefreplace")).decode()
    look = style("display:block", "max-width:100%", "height:auto", "margin:6px 0 0")
    return (
        f'<img alt="{escape(sentence(c))}" src="data:image/svg+xml;base64,{data}" '
        f'width="{WIDTH}" height="{HEIGHT}"{look}>'
    )


def _notes(words: Words) -> str:
    return "".join(_remark(note, "rgba(128,128,128,0.6)") for note in words.notes)


def _remark(text: str, colour: str) -> str:
    look = style(f"border-left:3px solid {colour}", "padding:1px 0 1px 10px", "margin:6px 0")
    return f"<div{look}>{escape(text)}</div>"


def _category_table(words: Words) -> str:
    if not words.categories:
        return ""
    columns = [Column("category"), *(Column(size, numeric=True) for size in words.sizes)]
    rows = [
        [f"{swatch(COLOURS[name])} {escape(label)}", *map(escape, sizes)] for name, label, sizes in words.categories
    ]
    return folded("By category at each peak", table("Bytes by category at the peak of each size", columns, rows))

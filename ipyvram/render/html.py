"""A report as HTML: `html` gives the fragment that stands under a cell, `page` a file of its own.

Three layers in one string. The table, the bars and the picture as an image need nothing but inline styles, and stand in
untrusted notebooks and on code hosts; a small style sheet, scoped to this report, and a script make the same picture
interactive where they are allowed to. Nothing is loaded from anywhere and nothing outside the report is touched.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ipyvram.render.framing import framed
from ipyvram.render.markup import (
    MUTED,
    Column,
    Part,
    escape,
    folded,
    meter,
    prose,
    stacked_bar,
    style,
    swatch,
    table,
    unbroken,
)  # fmt: skip
from ipyvram.render.oom import oom_html
from ipyvram.render.palette import ALL_COLOURS, CATEGORIES, COLOURS, TROUBLE_COLOUR
from ipyvram.render.scene import HEIGHT, WIDTH
from ipyvram.render.summary import Line, Summary, summarise, tensor_words
from ipyvram.render.timeline import sentence, timeline
from ipyvram.report import Report
from ipyvram.report_rows import LABELS, GroupRow
from ipyvram.units import format_bytes, format_share

#: Most bytes of a report of one device: it goes into version control with the notebook. One or two further devices share as
#: many; where there are more, each has so many: its account and its picture are always there.
MAX_BYTES = 60_000
MIN_OTHER_BYTES = 24_000

#: What makes a report interactive.
_SHEETS, _SCRIPTS = ("theme.css", "report.css"), ("report.js",)

#: From so many further devices on, each stands behind a line that opens it.
FOLDED_FROM = 3

#: How much to tell, from most to least: rows of the folded tables, groups, allocations to list at a moment, and instants to
#: choose from for the picture, which shows fewer.
_DETAIL = ((20, 14, 60, 2000), (16, 10, 40, 2000), (10, 6, 24, 2000), (6, 4, 0, 2000), (8, 5, 12, 200), (4, 2, 0, 100))


def html(report: Report) -> str:
    """The report as a fragment of HTML.

    Returns
    -------
    str
        At most about 60 KB for one device, twice as much for a few, and 24 KB for each further one, whatever the size of the
        model: detail is left out as far as that needs.
    """
    around = len(framed("", sheets=_SHEETS, scripts=_SCRIPTS))
    main = _within(report, MAX_BYTES - around, _DETAIL)
    return framed(main + "".join(_others(report.others)), sheets=_SHEETS, scripts=_SCRIPTS)


def page(report: Report) -> str:
    """The report as a complete HTML document that needs no network."""
    return page_of(report.label or "ipyvram report", [("", html(report))])


def page_of(title: str, parts: Sequence[tuple[str, str]]) -> str:
    """Fragments of `html` under their headings (plain text, may be empty) as one document."""
    body = "".join(
        (
            f"<h2{style('font:600 14px system-ui,sans-serif', 'margin:28px 0 4px')}>{escape(heading)}</h2>"
            if heading
            else ""
        )
        + fragment
        for heading, fragment in parts
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        ":root{color-scheme:light dark}body{margin:2rem auto;max-width:900px;padding:0 1rem;"
        "background:#fff;color:#1c1c1c}@media(prefers-color-scheme:dark){body{background:#111;color:#e4e4e4}}"
        f"</style></head><body>{body}</body></html>\n"
    )


# -- one device ----------------------------------------------------------------------------------------------------------


def _account(report: Report, lean: bool = False) -> str:
    s = summarise(report)
    parts = [
        _title(s, report),
        "" if report.oom is None else oom_html(report.oom),
        _headline(s),
        _trouble(s),
        _bar(s, report.oom is None or bool(report.card), lean),
        _table(s, lean),
        _picture(report),
        "".join(_remark(text, _accent(report)) for text in s.findings),
        _folded(s, report),
    ]
    return f'<div class="r">{"".join(parts)}</div>'


def _within(report: Report, limit: int, details: Sequence[tuple[int, int, int, int]], lean: bool = False) -> str:
    """One device in at most about ``limit`` bytes: the first of ``details`` that fits, else the last."""
    markup = ""
    for tensors, groups, lifetimes, points in details:
        shown = report.trimmed(tensors=tensors, groups=groups, points=points)
        markup = _account(replace(shown, lifetimes=report.lifetimes[:lifetimes]), lean)
        if len(markup.encode()) <= limit:
            break
    return markup


def _others(others: tuple[Report, ...]) -> Iterator[str]:
    """Further devices: each below a line, or, when there are many, behind one that opens it."""
    if len(others) >= FOLDED_FROM:
        yield from (folded(_in_short(o), _within(o, MIN_OTHER_BYTES, _DETAIL[-2:], lean=True)) for o in others)
        return
    look = style("margin-top:14px", "border-top:1px solid rgba(128,128,128,0.4)", "padding-top:10px")
    for other in others:
        yield f"<div{look}>{_within(other, MAX_BYTES // len(others), _DETAIL)}</div>"


def _in_short(report: Report) -> str:
    s = summarise(report)
    peak = f"peak {s.peak} ({s.how})" if s.how else f"peak {s.peak}"
    return " · ".join((report.device, f"{peak} {s.when}".strip(), *s.remarks))


def _title(s: Summary, report: Report) -> str:
    context = " · ".join(escape(part) for part in s.context)
    note = f"<div{style(MUTED)}>{escape(report.note)}</div>" if report.note else ""
    return f"<div><strong>{escape(s.title)}</strong> <span{style(MUTED)}>{context}</span></div>{note}"


def _headline(s: Summary) -> str:
    pill = _pill(s.how) if s.how else ""
    when = f" {escape(s.when)}" if s.when else ""
    remarks = [f"<span{style(MUTED)}> · {escape(remark)}</span>" for remark in s.remarks]
    if s.over_limit:  # no aside
        remarks[-1] = f" · <strong>{escape(s.remarks[-1])}</strong>"
    look = style("font-size:17px", "line-height:1.4", "margin:2px 0 8px")
    return f"<div{look}><strong>Peak {escape(s.peak)}</strong>{pill}{when}{''.join(remarks)}</div>"


def _pill(how: str) -> str:
    look = style(
        "font-size:11px", "border:1px solid rgba(128,128,128,0.6)", "border-radius:8px", "padding:0 6px", "margin:0 2px",
        "vertical-align:2px",
    )  # fmt: skip
    return f" <span{look}>{escape(how)}</span>"


def _trouble(s: Summary) -> str:
    return "".join(_remark(text, TROUBLE_COLOUR) for text in (s.trouble, *s.verdicts) if text)


def _remark(text: str, colour: str) -> str:
    look = style(f"border-left:3px solid {colour}", "padding:1px 0 1px 10px", "margin:6px 0")
    return f"<div{look}>{prose(text)}</div>"


def _bar(s: Summary, drawn: bool, lean: bool) -> str:
    """The parts of the card, or of the peak; not ``drawn`` where a bar of the same stands above."""
    parts = [Part(LABELS[c], ALL_COLOURS[c], n, format_bytes(n)) for c, n in s.bar if c != "free"]
    muted, together, words = style(MUTED), style("white-space:nowrap"), ""
    for part, piece in s.sum_parts:
        told = f"<span{muted}>{unbroken(piece) if part else escape(piece)}</span>"
        if part not in ("", "free") and not lean:  # behind its colour in the bar
            told = f"<span{together}>{swatch(ALL_COLOURS[part])} {told}</span>"
        words += told
    sums = f"<div{style('font-size:12px', 'margin:3px 0 8px')}>{words}</div>"
    return (stacked_bar(parts, s.bar_total) if parts and drawn else "") + sums


def _table(s: Summary, lean: bool = False) -> str:
    look = style("font-size:12px", MUTED, "margin:2px 0 6px")
    zeros = f"<div{look}>Nothing in: {escape(', '.join(s.zeros))}.</div>" if s.zeros else ""
    if not s.lines:
        return zeros
    columns = [
        Column(s.category_title), Column("start", numeric=True, muted=True, spare=True), Column("peak", numeric=True),
        Column(s.end_title, numeric=True, muted=True, spare=True), Column("share of peak"),
        Column("largest holder", muted=True, wrap=True, least_px=180),
    ]  # fmt: skip
    caption = f"Memory by category at the start, at the peak and at the {s.end_title}"
    return f'<div class="c">{table(caption, columns, [_row(line) for line in s.lines], lean=lean)}</div>{zeros}'


def _row(line: Line) -> list[str]:
    name = f"{swatch(line.colour)} {escape(line.label)}"
    share = meter(line.share, line.colour) + (format_share(line.share, 1) if line.peak else "–")
    sizes = [format_bytes(n) if n else "–" for n in (line.start, line.peak, line.end)]
    return [name, *sizes, share, escape(line.holder)]


def _picture(report: Report) -> str:
    svg, legend = timeline(report)
    if not svg:
        return ""
    data = base64.b64encode(svg.encode("ascii", "xmlcharrefreplace")).decode()
    look = style("display:block", "max-width:100%", "height:auto", "margin:6px 0 0")
    words = f"<div{style('font-size:12px', MUTED)}>{escape(legend)}</div>" if legend else ""
    return (
        f'<div class="p"{style("margin:0 0 8px")}><img alt="{escape(sentence(report))}" src="data:image/svg+xml;base64,{data}" '
        f'width="{WIDTH}" height="{HEIGHT}"{look}>{words}</div>'
    )


def _accent(report: Report) -> str:
    """The colour of the largest category: what the findings are mostly about."""
    return COLOURS[max(CATEGORIES, key=lambda c: report.peak[c])]


# -- folded --------------------------------------------------------------------------------------------------------------


def _folded(s: Summary, report: Report) -> str:
    parts = [
        _tensors(report),
        _groups("By module", "module", "outside any submodule", report.modules_at_peak, report.peak_bytes),
        _groups("By line", "line", "no line known", report.lines_at_peak, report.peak_bytes),
    ]
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in (*s.measured, *([s.sources] if s.sources else [])))
    how = f"<ul{style('margin:2px 0 6px', 'padding-left:20px', 'font-size:12px')}>{facts}</ul>"
    parts.append(folded(f"How it was measured{_how_words(report)}", how))
    return f"<div{style('margin-top:6px')}>{''.join(parts)}</div>"


def _how_words(report: Report) -> str:
    m = report.measurement
    words = [m.source] if m.source else []
    if m.notes:
        words.append(f"{len(m.notes)} note" + ("s" if len(m.notes) > 1 else ""))
    return f" ({', '.join(words)})" if words else ""


def _tensors(report: Report) -> str:
    rows = report.tensors_at_peak
    if not rows:
        return ""
    columns = [
        Column("tensor", wrap=True), Column("size", numeric=True), Column("category"), Column("where", muted=True, wrap=True),
        Column("shape", muted=True),
    ]  # fmt: skip
    cells = []
    for row in rows:
        name, where, shape = tensor_words(row)
        label = f"{swatch(COLOURS[row.category])} {escape(LABELS[row.category])}"
        count = f" ×{row.count}" if row.count > 1 and "smaller" not in name else ""
        cells.append([escape(name) + count, format_bytes(row.bytes), label, escape(where), escape(shape)])
    return folded("Largest tensors at the peak", table("Largest tensors at the peak", columns, cells, lean=True))


def _groups(title: str, key: str, otherwise: str, rows: Sequence[GroupRow], total: int) -> str:
    if not rows or all(not row.key for row in rows):
        return ""
    columns = [
        Column(key, wrap=True),
        Column("size", numeric=True),
        Column("share of peak"),
        Column("mostly", muted=True),
    ]
    cells = []
    for row in rows:
        top = max(row.categories, key=row.categories.__getitem__)
        words = escape(row.key or otherwise)
        if row.source:
            words += f" <code{style('font-size:12px', 'color:inherit', 'background:none')}>{escape(row.source)}</code>"
        share = meter(row.bytes / total if total else 0, COLOURS[top]) + format_share(row.bytes, total)
        cells.append([words, format_bytes(row.bytes), share, escape(LABELS[top])])
    return folded(f"{title}", table(f"{title} at the peak", columns, cells, lean=True))

"""A comparison of reports as text, HTML and JSON: a `Difference` comes in, a MIME bundle goes out."""

from __future__ import annotations

from typing import Any

from ipyvram.difference import Difference, Row, Side
from ipyvram.render.columns import columns
from ipyvram.render.framing import framed
from ipyvram.render.markup import MUTED, Column, Part, escape, meter, stacked_bar, style, swatch, table
from ipyvram.render.palette import ALL_COLOURS, COLOURS, LETTERS
from ipyvram.render.terminal import looks
from ipyvram.render.text import Pen
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes, format_duration, format_share

MIME_TYPE = "application/vnd.ipyvram.difference.v1+json"

#: Cells of the longest bar in text.
BAR = 12

_FACTS = {
    "reserved_bytes": ("reserved", format_bytes),
    "steps": ("steps", lambda n: f"{n:,.0f}"),
    "seconds_per_step": ("time a step", format_duration),
    "duration_s": ("time in all", format_duration),
}


def bundle(d: Difference) -> dict[str, Any]:
    """MIME type → data."""
    return {"text/plain": text(d, Pen(**looks())), "text/html": html(d), MIME_TYPE: d.to_dict()}


def headline(d: Difference) -> str:
    """The change of the peak in one sentence."""
    first = d.sides[0]
    parts = [
        f"{side.name} {_signed(change)} ({_relative(side.peak_bytes, first.peak_bytes)})"
        for side, change in zip(d.sides[1:], d.peak_changes, strict=True)
    ]
    return f"Peak against {first.name} ({format_bytes(first.peak_bytes)}): {', '.join(parts)}"


def _signed(change: int) -> str:
    return f"+{format_bytes(change)}" if change > 0 else format_bytes(change) if change else "no change"


def _relative(now: int, before: int) -> str:
    if not before:
        return "–"
    change = now / before - 1
    return f"{'+' if change > 0 else ''}{change:.0%}".replace("%", " %")


def _facts(d: Difference) -> list[tuple[str, list[str]]]:
    """What else differs: a name and a cell a side; left out where no side has it."""
    told = []
    for key, (name, form) in _FACTS.items():
        values = [(side.facts or {}).get(key) for side in d.sides]
        if any(v is not None for v in values):
            told.append((name, ["–" if v is None else form(v) for v in values]))
    return told


# -- text ----------------------------------------------------------------------------------------------------------------


def text(d: Difference, pen: Pen) -> str:
    """The table with bars; sides have letters where their names are too long for the width."""
    names, legend = [side.name for side in d.sides], list[str]()
    body = _text_table(d, pen, names)
    if _too_wide(body, pen):
        letters = [chr(ord("A") + i % 26) + "'" * (i // 26) for i in range(len(names))]
        told = ", ".join(f"{letter} = {name}" for letter, name in zip(letters, names, strict=True))
        legend, body = pen.wrap(told, "  "), _text_table(d, pen, letters)
        if _too_wide(body, pen):  # many sides: one table for each against the first
            body = [
                line
                for i in range(1, len(names))
                for line in ["", *_text_table(_pair(d, i), pen, [letters[0], letters[i]])]
            ]
    lines = [pen.bold(line) for line in pen.wrap(headline(d), "  ")]
    when = "; ".join(f"{side.name} {side.when}" for side in d.sides if side.when)
    notes = [f"Peak when: {when}"] if when else []
    notes += [f"Note: {remark}" for remark in d.remarks]
    return "\n".join([*lines, *legend, *body, *(line for note in notes for line in pen.wrap(note, "  "))])


def _too_wide(lines: list[str], pen: Pen) -> bool:
    return any(len(line) > pen.width for line in lines)


def _pair(d: Difference, i: int) -> Difference:
    """The first side and one other."""
    rows = tuple(Row(r.category, (r.bytes[0], r.bytes[i]), (r.changes[i - 1],)) for r in d.rows)
    return Difference((d.sides[0], d.sides[i]), rows)


def _text_table(d: Difference, pen: Pen, names: list[str]) -> list[str]:
    most = max((abs(c) for row in d.rows for c in row.changes), default=0)
    change = "Δ" if pen.unicode else "change"
    rows = [["", *names, *(f"{change} {n}" for n in names[1:]), ""]]
    for row in d.rows:
        sizes = [format_bytes(n) if n else "–" for n in row.bytes]
        bar = _bar(row.largest, most)
        rows.append([f"{LETTERS[row.category]} {LABELS[row.category]}", *sizes, *map(_signed, row.changes), bar])
    rows.append(["Peak", *(format_bytes(side.peak_bytes) for side in d.sides), *map(_signed, d.peak_changes), ""])
    blank = [""] * (len(d.peak_changes) + 1)
    rows += [[name, *cells, *blank] for name, cells in _facts(d)]
    figures = range(1, 1 + len(d.sides) + len(d.peak_changes))
    lines = columns(rows, right=figures, widest=24).splitlines()
    if _too_wide(lines, pen):
        lines = columns([row[:-1] for row in rows], right=figures, widest=24).splitlines()
    return [pen.plain(line) for line in lines]


def _bar(change: int, most: int) -> str:
    length = max(1, round(BAR * abs(change) / most)) if change and most else 0
    return ("+" if change > 0 else "-") * length


# -- HTML ----------------------------------------------------------------------------------------------------------------


def html(d: Difference) -> str:
    """A block of markup that survives the sanitizer of untrusted notebooks."""
    widest = max(side.peak_bytes for side in d.sides)
    bars = "".join(_side_bar(side, widest) for side in d.sides)
    remarks = "".join(f"<div{style(MUTED)}>Note: {escape(remark)}</div>" for remark in d.remarks)
    head = f"<div{style('font-size:15px', 'margin:0 0 8px')}><strong>{escape(headline(d))}</strong></div>"
    return framed(f"{head}{bars}{_table(d)}{remarks}", sheets=["theme.css"])


def _side_bar(side: Side, widest: int) -> str:
    parts = [Part(LABELS[c], ALL_COLOURS[c], n, format_bytes(n)) for c, n in side.account.items() if n]
    label = f"<div{style('font-size:12px')}>{escape(side.name)} <span{style(MUTED)}>{format_bytes(side.peak_bytes)}</span></div>"
    return f"<div{style('margin:0 0 6px')}>{label}{stacked_bar(parts, widest, 14)}</div>"


def _table(d: Difference) -> str:
    names = [side.name for side in d.sides]
    heads = [Column("category"), *(Column(name, numeric=True) for name in names)]
    heads += [Column(f"change {name}", numeric=True) for name in names[1:]]
    heads += [Column("largest change"), Column("share", numeric=True, muted=True)]
    most = max((abs(c) for row in d.rows for c in row.changes), default=0)
    total = sum(abs(row.largest) for row in d.rows)
    rows = []
    for row in d.rows:
        colour = COLOURS[row.category]
        sizes = [format_bytes(n) if n else "–" for n in row.bytes]
        bar = meter(abs(row.largest) / most if most else 0, colour, 90)
        share = format_share(abs(row.largest), total) if row.largest else ""
        rows.append(
            [f"{swatch(colour)} {escape(LABELS[row.category])}", *sizes, *map(_signed, row.changes), bar, share]
        )
    peaks = [format_bytes(side.peak_bytes) for side in d.sides]
    rows.append(["<strong>Peak</strong>", *peaks, *map(_signed, d.peak_changes), "", ""])
    blank = [""] * (len(d.peak_changes) + 2)
    facts = _facts(d)
    if any(side.when for side in d.sides):
        facts.append(("peak when", [side.when or "–" for side in d.sides]))
    rows += [[escape(name), *map(escape, cells), *blank] for name, cells in facts]
    return table("Bytes at the peak by category, largest change first", heads, rows)

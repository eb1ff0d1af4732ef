"""What is in memory now, as text, HTML and JSON: `Resident`s come in, a MIME bundle goes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipyvram.render.framing import framed
from ipyvram.render.markup import MUTED, Column, Part, escape, legend, meter, stacked_bar, style, swatch, table
from ipyvram.render.palette import ALL_COLOURS, COLOURS, LETTERS
from ipyvram.render.terminal import looks
from ipyvram.render.text import Pen
from ipyvram.report_rows import LABELS
from ipyvram.resident import RELEASES, Holding, Resident
from ipyvram.units import format_bytes, format_share

MIME_TYPE = "application/vnd.ipyvram.resident.v1+json"

#: Holders shown by ``%vram``; ``%vram who`` shows all that are worth it.
SHORT, LONG = 8, 40

#: A device with less than this part of another's bytes (the step counts of an optimizer, on the CPU) is only mentioned.
SMALL = 1000


def bundle(found: Sequence[Resident], *, everyone: bool) -> dict[str, Any]:
    """MIME type → data.

    Parameters
    ----------
    everyone : bool
        Every holder with what releases it (``%vram who``), or the largest (``%vram``).
    """
    most = max((one.bytes for one in found), default=0)
    told = [one for one in found if one.bytes * SMALL >= most]
    small = ", ".join(f"{format_bytes(one.bytes)} on {one.device}" for one in found if one not in told)
    also = f"besides: {small}" if small else ""
    return {
        "text/plain": "\n\n".join(
            [*(text(one, Pen(**looks()), everyone=everyone) for one in told), *([also] if also else [])]
        ),
        "text/html": "".join(html(one, everyone=everyone, also=also if one is told[-1] else "") for one in told),
        MIME_TYPE: {"schema": 1, "devices": [one.to_dict() for one in found]},
    }


def head(one: Resident) -> list[str]:
    """The sums, the most important first."""
    parts = [f"{one.device} now: {format_bytes(one.bytes)} in tensors"]
    if one.allocated_bytes is not None:
        parts.append(f"{format_bytes(one.unseen_bytes)} more allocated (rounding, workspaces, C++)")
        if one.reserved_bytes is not None:
            parts.append(f"{format_bytes(one.reserved_bytes - one.allocated_bytes)} cached")
    if one.card_bytes:
        parts.append(f"{format_bytes(one.card_bytes)} card")
    return parts


def _rows(one: Resident, everyone: bool) -> tuple[list[Holding], str]:
    rows, most = one.by_holder(), LONG if everyone else SHORT
    rest = rows[most:]
    more = f"and {len(rest)} more holders of {format_bytes(sum(h.bytes for h in rest))}" if rest else ""
    if more and not everyone:
        more += ": %vram who"
    if not one.complete:
        more = (more + "; " if more else "") + "the namespace holds more than was looked through"
    return list(rows[:most]), more


def text(one: Resident, pen: Pen, *, everyone: bool) -> str:
    """Lines of at most the pen's width."""
    lines = [pen.bold(line) for line in pen.wrap(" · ".join(head(one)), "  ")]
    for category, count in one.by_category().items():
        label = (
            f"{LETTERS[category]} {LABELS[category]:<16} {format_bytes(count):>10}  {format_share(count, one.bytes):>5}"
        )
        lines.append("  " + pen.paint(pen.plain(label), category))
    rows, more = _rows(one, everyone)
    if rows:
        lines.append(pen.bold("held by, and how to release it" if everyone else "held by"))
    for row in rows:
        where = f" · {row.example}" if row.example not in ("", row.holder) else ""
        several = f" · {row.count} tensors" if row.count > 1 else ""
        told = pen.cut(f"{row.holder}{where}{several}", pen.width - 14)
        lines.append(f"  {format_bytes(row.bytes):>9} {pen.paint(LETTERS[row.category], row.category)} {told}")
        if everyone and row.kind != "variable":  # in a line of its own: what one came for is never cut off
            lines.append(" " * 14 + f"→ {RELEASES[row.kind]}")
    if everyone and any(row.kind == "variable" for row in rows):
        lines.append(f"  {RELEASES['variable']} where nothing else is said")
    lines += pen.wrap(f"  {more}", "  ") if more else []
    return "\n".join(lines)


def html(one: Resident, *, everyone: bool, also: str = "") -> str:
    """A block of markup that survives the sanitizer of untrusted notebooks."""
    sums = one.by_category()
    parts = [Part(LABELS[c], ALL_COLOURS[c], n, format_bytes(n)) for c, n in sums.items()]
    words = legend((ALL_COLOURS[c], f"{LABELS[c]} {format_bytes(n)}") for c, n in sums.items())
    columns = [Column("holder", wrap=True), Column("size", numeric=True), Column("share"), Column("mostly"), Column("for example", muted=True, wrap=True)]  # fmt: skip
    columns += [Column("release", muted=True)] if everyone else []
    rows, more = _rows(one, everyone)
    cells = [_cells(row, one.bytes, everyone) for row in rows]
    body = table(f"Who holds memory on {one.device}", columns, cells) if cells else ""
    rest = "".join(f"<div{style(MUTED)}>{escape(line)}</div>" for line in (more, also) if line)
    most, *others = map(escape, head(one))
    aside = f"<span{style(MUTED)}>{''.join(f' · {words}' for words in others)}</span>" if others else ""
    first = f"<div{style('font-size:15px', 'margin:0 0 6px')}><strong>{most}</strong>{aside}</div>"
    return framed(f"{first}{stacked_bar(parts, one.bytes)}{words}{body}{rest}", sheets=["theme.css"])


def _cells(row: Holding, total: int, everyone: bool) -> list[str]:
    share = meter(row.bytes / total if total else 0, COLOURS[row.category]) + format_share(row.bytes, total)
    mostly = f"{swatch(COLOURS[row.category])} {escape(LABELS[row.category])}"
    example = escape(row.example if row.example != row.holder else "") + (f" ×{row.count}" if row.count > 1 else "")
    cells = [escape(row.holder), format_bytes(row.bytes), share, mostly, example]
    return [*cells, escape(RELEASES[row.kind])] if everyone else cells

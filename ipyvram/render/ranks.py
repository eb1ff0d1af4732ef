"""Several ranks' reports as text, HTML and JSON: `Ranks` come in, a MIME bundle goes out."""

from __future__ import annotations

from typing import Any

from ipyvram.ranks import Ranks
from ipyvram.render.columns import columns
from ipyvram.render.framing import framed
from ipyvram.render.markup import Column, Part, escape, stacked_bar, style, table
from ipyvram.render.palette import ALL_COLOURS
from ipyvram.render.terminal import looks
from ipyvram.render.text import Pen
from ipyvram.report import Report
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes, format_duration, format_share

MIME_TYPE = "application/vnd.ipyvram.ranks.v1+json"

_HEAD = ("rank", "device", "peak", "of highest", "mostly", "when", "steps", "time")


def bundle(ranks: Ranks) -> dict[str, Any]:
    """MIME type → data."""
    return {"text/plain": text(ranks, Pen(**looks())), "text/html": html(ranks), MIME_TYPE: ranks.to_dict()}


def headline(ranks: Ranks) -> str:
    """Which rank needs most, and how unlike they are."""
    found = [r for r in ranks.reports if r is not None]
    if not found:
        return f"{len(ranks.reports)} ranks, no report"
    highest = ranks.reports[ranks.highest]
    peak = highest.peak_bytes if highest is not None else 0
    spread = f", the lowest {format_share(ranks.spread, 1)} below" if ranks.spread >= 0.005 else ", all alike"
    return f"{len(ranks.reports)} ranks: highest peak {format_bytes(peak)} on rank {ranks.highest}{spread}"


def _row(rank: int, report: Report | None, highest: int) -> list[str]:
    if report is None:
        return [str(rank), "–", "no report", "", "", "", "", ""]
    mostly = max(report.peak, key=report.peak.__getitem__)
    when = report.error.partition(":")[0] if report.error else report.peak_when
    return [
        str(rank), report.device, format_bytes(report.peak_bytes), format_share(report.peak_bytes, highest),
        LABELS[mostly] if report.peak_bytes else "–", when, str(report.steps), format_duration(report.duration_s),
    ]  # fmt: skip


def _rows(ranks: Ranks) -> list[list[str]]:
    highest = max((r.peak_bytes for r in ranks.reports if r is not None), default=0)
    return [_row(rank, report, highest) for rank, report in enumerate(ranks.reports)]


def text(ranks: Ranks, pen: Pen) -> str:
    """The table; a line is cut at the pen's width."""
    lines = columns([_HEAD, *_rows(ranks)], right=(0, 2, 3, 6, 7), widest=24).splitlines()
    return "\n".join([*map(pen.bold, pen.wrap(headline(ranks), "  ")), *(pen.cut(line, pen.width) for line in lines)])


def html(ranks: Ranks) -> str:
    """A block of markup that survives the sanitizer of untrusted notebooks."""
    highest = max((r.peak_bytes for r in ranks.reports if r is not None), default=0)
    heads = [Column(name, numeric=name in ("peak", "of highest", "steps", "time")) for name in _HEAD] + [
        Column("at the peak")
    ]
    rows = []
    for cells, report in zip(_rows(ranks), ranks.reports, strict=True):
        parts = [
            Part(LABELS[c], ALL_COLOURS[c], n, format_bytes(n)) for c, n in (report.peak.items() if report else ())
        ]
        bar = f"<div{style('width:180px')}>{stacked_bar(parts, highest, 12)}</div>" if report else ""
        rows.append([*map(escape, cells), bar])
    body = table("Peak memory by rank", heads, rows)
    head = f"<div{style('font-size:15px', 'margin:0 0 6px')}><strong>{escape(headline(ranks))}</strong></div>"
    return framed(head + body, sheets=["theme.css"])

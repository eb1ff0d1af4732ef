"""``%vram auto``: whether every cell is measured, and what its one line says; a line of options or a `Report` comes in."""

from __future__ import annotations

from ipyvram.report import Report
from ipyvram.units import format_bytes, format_duration, parse_bytes

#: Least change that is worth a line, in bytes; None while the mode is off.
_minimum: int | None = None


def minimum() -> int | None:
    """Bytes from which a cell has its line; None while the mode is off."""
    return _minimum


def switch(rest: str) -> str:
    """``on``, ``on --min 10MiB`` or ``off``; what is told about it.

    Raises
    ------
    ValueError
        Neither of these.
    """
    global _minimum
    words = rest.replace("--min=", "--min ").split()
    if words == ["off"]:
        _minimum = None
        return "cells are no longer measured by themselves"
    if words == ["on"]:
        _minimum = 0
        return "every cell from the next one on is measured; %vram auto off ends that"
    if len(words) >= 3 and words[:2] == ["on", "--min"]:
        size = " ".join(words[2:])
        try:
            _minimum = parse_bytes(size)
        except ValueError as error:
            raise ValueError(f"%vram auto on --min {size}: {error}") from None
        return f"every cell from the next one on is measured, and told where {format_bytes(_minimum)} or more change"
    raise ValueError(f"%vram auto {rest}".rstrip() + ": write on, on --min 10MiB, or off")


def growth(report: Report) -> int:
    """Bytes that the cell left behind, on the report's device."""
    return sum(report.end.values()) - sum(report.start.values())


def rise(report: Report) -> int:
    """Bytes that the peak stood above the start."""
    return report.peak_bytes - sum(report.start.values())


def worth_a_line(report: Report) -> bool:
    """Whether the mode's least change was reached, in any direction, on any device."""
    accounts = (report, *report.others)
    return _minimum is not None and any(max(abs(growth(r)), rise(r)) >= _minimum for r in accounts)


def line(report: Report) -> str:
    """``+12.0 MiB kept · peak 57.0 MiB · 3 steps · 1.2 s``."""
    left = growth(report)
    parts = [
        f"{'+' if left > 0 else ''}{format_bytes(left)} {'kept' if left >= 0 else 'freed'}" if left else "nothing kept"
    ]
    parts.append(f"peak {format_bytes(report.peak_bytes)} (+{format_bytes(rise(report))}) on {report.device}")
    if report.steps:
        parts.append(f"{report.steps:,} step" + ("s" if report.steps > 1 else ""))
    parts.append(format_duration(report.duration_s))
    if report.error:
        parts.append(report.error.partition(":")[0])
    return " · ".join(parts)

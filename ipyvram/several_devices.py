"""Reports of each device of one cell come in; one report, with those of the other devices that were used in it, goes out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ipyvram.report import Report
from ipyvram.units import format_bytes


def together(accounts: Iterable[Report]) -> Report:
    """The report of the device that matters most, the others in `Report.others`.

    An accelerator comes before the CPU, one that was used before one that was not, then the highest peak. A device where
    nothing happened during the cell is a note: what earlier cells left there is no news of this one.
    """
    main, *rest = sorted(accounts, key=_matters, reverse=True)
    idle = [r for r in rest if _idle(r)]
    notes = [f"{r.device} was not used; {format_bytes(r.peak_bytes)} were there before" for r in idle if r.peak_bytes]
    measurement = replace(main.measurement, notes=(*main.measurement.notes, *notes))
    return replace(main, measurement=measurement, others=tuple(r for r in rest if r.peak_bytes and not _idle(r)))


def _matters(report: Report) -> tuple[bool, bool, int]:
    return report.peak_bytes > 0 and report.device != "cpu", not _idle(report), report.peak_bytes


def _idle(report: Report) -> bool:
    return report.measurement.events == 0 and report.start == report.peak == report.end

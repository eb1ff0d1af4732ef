"""The reports of this session, newest last: reports come in, the last one and a table of all come out."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from ipyvram.report import Report

#: Reports kept. Only the newest is whole; older ones are cut to what a notebook's output holds, so a session of
#: hundreds of cells keeps tens of megabytes of host memory and not hundreds.
LENGTH = 200

_reports: deque[tuple[int, Report]] = deque(maxlen=LENGTH)
_lock = threading.Lock()
_count = 0


def add(report: Report) -> None:
    """Keep a report as the newest one."""
    global _count
    with _lock:
        if _reports:
            number, before = _reports[-1]
            _reports[-1] = (number, before.trimmed())
        _count += 1
        _reports.append((_count, report))


def last() -> Report | None:
    """The newest report; None before the first."""
    return _reports[-1][1] if _reports else None


def reports() -> list[Report]:
    """All that are kept, oldest first."""
    return [report for _, report in _reports]


def numbered() -> list[tuple[int, Report]]:
    """All that are kept with their numbers in this session, oldest first."""
    return list(_reports)


def annotate(text: str) -> Report | None:
    """Put a remark on the newest report, in place of the one it had; None before the first."""
    with _lock:
        if not _reports:
            return None
        number, report = _reports[-1]
        _reports[-1] = (number, replace(report, note=text))
        return _reports[-1][1]


def clear() -> None:
    """Forget all reports; numbering starts again."""
    global _count
    with _lock:
        _reports.clear()
        _count = 0


def history() -> pd.DataFrame:
    """One row a report, oldest first; the index is the report's number in this session.

    Returns
    -------
    DataFrame
        ``label``, ``note``, ``kind``, ``device``, ``peak_bytes``, ``peak_reserved_bytes``, ``card_bytes`` (bytes),
        ``growth_bytes`` (what the cell left behind), ``peak_when``, ``steps``, ``duration_s`` (seconds), ``started`` (UTC)
        and ``error``.
    """
    import pandas as pd

    names = (
        "label", "note", "kind", "device", "peak_bytes", "peak_reserved_bytes", "card_bytes",
        "peak_when", "steps", "duration_s", "error",
    )  # fmt: skip
    rows = list(_reports)
    frame = pd.DataFrame(
        [[getattr(report, name) for name in names] for _, report in rows],
        columns=list(names),
        index=pd.Index([number for number, _ in rows], name="report", dtype="int64"),
    )
    started = pd.to_datetime([report.started_at for _, report in rows], unit="s", utc=True)
    frame.insert(10, "started", started)
    frame.insert(7, "growth_bytes", [sum(r.end.values()) - sum(r.start.values()) for _, r in rows])
    whole = {
        "growth_bytes": "Int64",
        "peak_bytes": "Int64",
        "peak_reserved_bytes": "Int64",
        "card_bytes": "Int64",
        "steps": "Int64",
    }
    text = dict.fromkeys(("label", "note", "kind", "device", "peak_when", "error"), "string")
    return frame.astype(whole | text)

"""A `Report` comes in, its figures as pandas frames go out: everything that is drawn is also a DataFrame."""

from __future__ import annotations

import pandas as pd

from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from ipyvram.report_rows import GroupRow, TensorRow


def categories(report: Report) -> pd.DataFrame:
    """Category × (``start``, ``peak``, ``end`` in bytes; ``share`` of the peak; ``holder``), card rows below."""
    rows = {
        c: {
            "start": report.start[c],
            "peak": report.peak[c],
            "end": report.end[c],
            "share": report.peak[c] / report.peak_bytes if report.peak_bytes else 0.0,
            "holder": report.holders.get(c, ""),
        }
        for c in CATEGORIES
    }
    for name, count in report.card.items():
        rows[name] = {"start": None, "peak": count, "end": None, "share": None, "holder": ""}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.astype({"start": "Int64", "peak": "Int64", "end": "Int64", "share": "Float64"}).rename_axis("category")


def timeline(report: Report) -> pd.DataFrame:
    """Seconds since the cell began × categories, ``allocated``, ``reserved``, ``device_used``, in bytes.

    Rows of the exact account have the categories; rows of the sampler have NA there.
    """
    data = report.timeline_data
    exact = pd.DataFrame(
        {c: data.categories.get(c, (0,) * len(data.time_s)) for c in CATEGORIES}, index=list(data.time_s)
    )
    exact["allocated"] = data.allocated
    exact["reserved"] = data.reserved or pd.NA
    exact = exact.astype("Int64")
    for begin, end in data.gaps_s:
        exact.loc[(exact.index >= begin) & (exact.index < end)] = pd.NA
    sampled = pd.DataFrame(dict(data.sampled), index=list(data.sampled_time_s))
    frame = pd.concat([exact, sampled]).sort_index(kind="stable")
    wanted = [*CATEGORIES, "allocated", "reserved", "device_used"]
    wanted += [c for c in frame.columns if c not in wanted]
    return frame.reindex(columns=wanted).astype("Int64").rename_axis("time_s")


def tensors(report: Report) -> pd.DataFrame:
    """What is live at the peak, largest first: bytes, category, name, module, line, source, file, shape, dtype, phase, count, graph_of, in_error."""
    names = list(TensorRow.__slots__)
    return pd.DataFrame([[getattr(row, n) for n in names] for row in report.tensors_at_peak], columns=names).astype(
        {"line": "Int64"}
    )


def groups(rows: tuple[GroupRow, ...], key: str) -> pd.DataFrame:
    """Bytes live at the peak by ``key`` × category."""
    frame = pd.DataFrame(
        [
            {key: row.key, "bytes": row.bytes, "count": row.count, **dict.fromkeys(CATEGORIES, 0), **row.categories}
            for row in rows
        ],
        columns=[key, "bytes", "count", *CATEGORIES],
    )
    if key == "line":
        frame.insert(1, "source", [row.source for row in rows])
    return frame.set_index(key)

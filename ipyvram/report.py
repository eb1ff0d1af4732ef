"""`Report`: everything that is said about one measured cell, frozen; to and from JSON, and out as pandas frames.

`analysis.analyse` makes it from a `Recording`; the renderers see nothing else. Its schema is in `docs/report-schema.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from ipyvram.recording import CATEGORIES

SCHEMA_VERSION = 1

#: Category → what a person reads.
LABELS = {
    "parameters": "Parameters",
    "gradients": "Gradients",
    "optimizer_state": "Optimizer state",
    "inputs": "Batch",
    "activations": "Activations",
    "temporaries": "Temporaries",
    "buffers": "Buffers",
    "outputs": "Outputs",
    "workspaces": "Workspaces",
    "other": "Other",
    "cache": "Cache",
    "context": "CUDA context",
    "other_processes": "Other processes",
    "free": "Free",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the traced steps: ``forward``, ``backward`` or ``optimizer``. Seconds since the cell began."""

    start_s: float
    end_s: float
    name: str
    step: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Two curves on one clock (seconds since the cell began), both thinned so that no peak is lost.

    Attributes
    ----------
    time_s : tuple of float
        Instants of the exact account; a row holds until the next one (memory is stepwise).
    categories : dict of str to tuple of int
        Category → bytes at each instant; a category that stays zero is left out.
    reserved : tuple of int
        Bytes the allocator had reserved at each instant; empty where it was not traced.
    end_s : float
        When the exact account ends.
    sampled_time_s : tuple of float
        Instants of the samples, through the whole cell.
    sampled : dict of str to tuple of int or None
        Column (``allocated``, ``reserved``, ``device_used``, ``process_rss``) → bytes, None where unavailable.
    """

    time_s: tuple[float, ...] = ()
    categories: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reserved: tuple[int, ...] = ()
    end_s: float = 0.0
    sampled_time_s: tuple[float, ...] = ()
    sampled: dict[str, tuple[int | None, ...]] = field(default_factory=dict)

    @property
    def allocated(self) -> tuple[int, ...]:
        """Bytes in all categories together at each instant of the exact account."""
        return (
            tuple(map(sum, zip(*self.categories.values(), strict=True))) if self.categories else (0,) * len(self.time_s)
        )


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A storage that was live at the peak. ``count`` > 1 for a row that stands for several small ones."""

    bytes: int
    category: str
    name: str = ""
    module: str = ""
    line: int | None = None  #: in the measured cell, or in ``file`` where that is not empty
    source: str = ""  #: text of that line
    file: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    phase: str = ""  #: when it was allocated
    count: int = 1


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Bytes live at the peak by module path, or by source line: ``key`` is what they are grouped by."""

    key: str
    bytes: int
    categories: dict[str, int]
    count: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One plain line worth saying. ``kind`` names the rule, ``bytes`` ranks it (0 where it is not about an amount)."""

    kind: str
    text: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """How the figures came about.

    ``source`` is a phrase (``allocator trace``, ``storage trace``, ``sampler only``); ``notes`` say what was unavailable.
    """

    source: str = ""
    events: int = 0
    claims: int = 0
    traced_s: float = 0.0
    ended_by: str = ""
    samples: int = 0
    longest_gap_s: float = 0.0
    period_s: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Where every byte went in one cell, on one device.

    Attributes
    ----------
    kind : str
        ``"measured"``, ``"estimated"`` or ``"snapshot"``.
    device, device_name : str
        ``"cuda:0"``, ``"NVIDIA H200"``.
    peak_bytes : int
        The most that was allocated at one instant; ``sum(peak.values()) == peak_bytes``.
    peak, start, end : dict
        Category → bytes, every category of `recording.CATEGORIES`. ``end`` is the end of the cell where that is
        known, else the end of the trace (`provenance` tells).
    peak_reserved_bytes : int or None
        The most the allocator had reserved; None where there is no such thing (CPU).
    card : dict
        At the peak: ``cache``, ``context``, ``other_processes``, ``free`` in bytes; empty without a card.
        ``peak_bytes + sum(card.values()) == card_bytes``.
    card_bytes, limit_bytes : int or None
        The card's memory, and the part of it the user wants to stay within.
    peak_when : str
        The instant in words: ``"step 3, end of forward"``.
    provenance : dict
        Figure (``peak``, ``categories``, ``end``, ``reserved``, ``context``, ``other_processes``) → ``exact``, ``sampled``,
        ``inferred`` or ``predicted``.
    holders : dict
        Category → its largest holder in words.
    tensors_at_peak : tuple of TensorRow
        Largest first; their bytes add up to `peak_bytes`.
    modules_at_peak, lines_at_peak : tuple of GroupRow
        The same bytes by module path and by source line.
    others : tuple of Report
        The accounts of the other devices the cell used.
    """

    peak_bytes: int
    peak: dict[str, int]
    start: dict[str, int]
    end: dict[str, int]
    label: str | None = None
    note: str | None = None
    kind: str = "measured"
    device: str = "cpu"
    device_name: str = ""
    peak_reserved_bytes: int | None = None
    card: dict[str, int] = field(default_factory=dict)
    card_bytes: int | None = None
    limit_bytes: int | None = None
    peak_time_s: float = 0.0
    peak_when: str = ""
    peak_phase: str = ""
    peak_step: int = 0
    steps: int = 0
    traced_steps: int = 0
    duration_s: float = 0.0
    overhead_s: float = 0.0
    started_at: float = 0.0  #: Unix time, seconds
    provenance: dict[str, str] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    error: str | None = None
    timeline_data: Timeline = field(default_factory=Timeline)
    phases: tuple[Phase, ...] = ()
    tensors_at_peak: tuple[TensorRow, ...] = ()
    modules_at_peak: tuple[GroupRow, ...] = ()
    lines_at_peak: tuple[GroupRow, ...] = ()
    measurement: Measurement = field(default_factory=Measurement)
    environment: dict[str, str] = field(default_factory=dict)
    others: tuple[Report, ...] = ()

    # -- pandas ------------------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """Category × (``start``, ``peak``, ``end`` in bytes; ``share`` of the peak; ``holder``), card rows below."""
        rows = {
            c: {
                "start": self.start[c],
                "peak": self.peak[c],
                "end": self.end[c],
                "share": self.peak[c] / self.peak_bytes if self.peak_bytes else 0.0,
                "holder": self.holders.get(c, ""),
            }
            for c in CATEGORIES
        }
        for name, count in self.card.items():
            rows[name] = {"start": None, "peak": count, "end": None, "share": None, "holder": ""}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        return frame.astype({"start": "Int64", "peak": "Int64", "end": "Int64", "share": "Float64"}).rename_axis(
            "category"
        )

    def timeline(self) -> pd.DataFrame:
        """Seconds since the cell began × categories, ``allocated``, ``reserved``, ``device_used``, in bytes.

        Rows of the exact account have the categories; rows of the sampler have NA there.
        """
        data = self.timeline_data
        exact = pd.DataFrame(
            {c: data.categories.get(c, (0,) * len(data.time_s)) for c in CATEGORIES}, index=list(data.time_s)
        )
        exact["allocated"] = data.allocated
        exact["reserved"] = data.reserved or pd.NA
        sampled = pd.DataFrame(dict(data.sampled), index=list(data.sampled_time_s))
        frame = pd.concat([exact, sampled]).sort_index(kind="stable")
        wanted = [*CATEGORIES, "allocated", "reserved", "device_used"]
        wanted += [c for c in frame.columns if c not in wanted]
        return frame.reindex(columns=wanted).astype("Int64").rename_axis("time_s")

    def tensors(self) -> pd.DataFrame:
        """What is live at the peak, largest first: bytes, category, name, module, line, source, file, shape, dtype, phase, count."""
        names = list(TensorRow.__slots__)
        return pd.DataFrame([[getattr(row, n) for n in names] for row in self.tensors_at_peak], columns=names).astype(
            {"line": "Int64"}
        )

    def by_module(self) -> pd.DataFrame:
        """Bytes live at the peak by module path × category."""
        return _groups(self.modules_at_peak, "module")

    def by_line(self) -> pd.DataFrame:
        """Bytes live at the peak by the source line that allocated them × category."""
        return _groups(self.lines_at_peak, "line")

    # -- JSON --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, with a stable key order (`docs/report-schema.md`)."""
        return {"schema": SCHEMA_VERSION} | {
            name: _ENCODE.get(name, _plain)(getattr(self, name)) for name in self.__dataclass_fields__
        }

    def to_json(self) -> str:
        """`to_dict` as text; NaN never appears."""
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Inverse of `to_dict`.

        Raises
        ------
        ValueError
            Not a report, a damaged one, or one of a newer schema.
        """
        try:
            if data["schema"] > SCHEMA_VERSION:
                raise ValueError(
                    f"its schema is {data['schema']}, newer than {SCHEMA_VERSION}: update ipyvram to read it"
                )
            known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
            report = cls(**{k: _DECODE[k](v) if k in _DECODE else v for k, v in known.items()})
            for account in (report.peak, report.start, report.end):
                if set(account) != set(CATEGORIES) or not all(isinstance(v, int) for v in account.values()):
                    raise ValueError("an account lacks categories")
            return report
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a readable ipyvram report: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`; errors as for `from_dict`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a readable ipyvram report: {error}") from error
        return cls.from_dict(data)

    # -- smaller -----------------------------------------------------------------------------------------------------

    def trimmed(self, tensors: int = 60, groups: int = 40, points: int = 300) -> Report:
        """The same report for a notebook's output: the smallest rows merged, the timeline thinned; every sum stays.

        Parameters
        ----------
        tensors, groups : int
            Rows to keep; the rest of each category becomes one row with its `count`.
        points : int
            Instants of the exact account, and of the samples, to keep at most.
        """
        from ipyvram.thinning import thin_timeline

        return replace(
            self,
            tensors_at_peak=merge_tensors(self.tensors_at_peak, tensors),
            modules_at_peak=_merge_groups(self.modules_at_peak, groups),
            lines_at_peak=_merge_groups(self.lines_at_peak, groups),
            timeline_data=thin_timeline(self.timeline_data, points),
            phases=self.phases[:200],
            others=tuple(other.trimmed(tensors // 2, groups // 2, points // 2) for other in self.others),
        )


def _groups(rows: tuple[GroupRow, ...], key: str) -> pd.DataFrame:
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


def merge_tensors(rows: tuple[TensorRow, ...], keep: int) -> tuple[TensorRow, ...]:
    """The ``keep`` first rows, and one row for the rest of each category."""
    if len(rows) <= keep:
        return rows
    rest: dict[str, list[TensorRow]] = {}
    for row in rows[keep:]:
        rest.setdefault(row.category, []).append(row)
    merged = [
        TensorRow(sum(r.bytes for r in group), category, f"{(n := sum(r.count for r in group))} smaller", count=n)
        for category, group in rest.items()
    ]
    return rows[:keep] + tuple(sorted(merged, key=lambda r: -r.bytes))


def _merge_groups(rows: tuple[GroupRow, ...], keep: int) -> tuple[GroupRow, ...]:
    if len(rows) <= keep:
        return rows
    rest, total = rows[keep:], dict[str, int]()
    for row in rest:
        for category, count in row.categories.items():
            total[category] = total.get(category, 0) + count
    return (
        *rows[:keep],
        GroupRow(f"{len(rest)} smaller", sum(r.bytes for r in rest), total, sum(r.count for r in rest)),
    )


# -- encoding: tuples of records become columns, stepwise columns become (repeat, value) runs ----------------------------


def _plain(value: Any) -> Any:
    return value


def _rows_to_columns(kind: type[Any]) -> Any:
    """Records as ``{field: [values]}``; a column that only holds the field's default is left out."""
    fields_ = kind.__dataclass_fields__

    def encode(rows: tuple[Any, ...]) -> dict[str, Any]:
        columns = {name: [getattr(row, name) for row in rows] for name in fields_}
        return {"n": len(rows)} | {
            name: [list(v) if isinstance(v, tuple) else v for v in column]
            for name, column in columns.items()
            if any(v != fields_[name].default for v in column)
        }

    return encode


def _columns_to_rows(kind: type[Any]) -> Any:
    fields_ = kind.__dataclass_fields__

    def decode(columns: dict[str, Any]) -> tuple[Any, ...]:
        count = columns["n"]
        filled = {name: columns.get(name, [f.default] * count) for name, f in fields_.items()}
        rows = zip(*filled.values(), strict=True)
        return tuple(kind(*(tuple(v) if isinstance(v, list) else v for v in row)) for row in rows)

    return decode


def _runs(column: tuple[int | None, ...]) -> list[int | None]:
    """``(5, 5, 5, 7)`` as ``[3, 5, 1, 7]``."""
    runs: list[Any] = []
    for value in column:
        if runs and runs[-1] == value:
            runs[-2] += 1
        else:
            runs += [1, value]
    return runs


def _unruns(runs: list[Any]) -> tuple[Any, ...]:
    return tuple(value for count, value in zip(runs[::2], runs[1::2], strict=True) for _ in range(count))


def _encode_timeline(t: Timeline) -> dict[str, Any]:
    return {
        "time_us": [round(s * 1e6) for s in t.time_s],
        "categories": {name: _runs(column) for name, column in t.categories.items()},
        "reserved": _runs(t.reserved),
        "end_us": round(t.end_s * 1e6),
        "sampled_time_us": [round(s * 1e6) for s in t.sampled_time_s],
        "sampled": {name: _runs(column) for name, column in t.sampled.items()},
    }


def _decode_timeline(data: dict[str, Any]) -> Timeline:
    return Timeline(
        time_s=tuple(us / 1e6 for us in data["time_us"]),
        categories={name: _unruns(runs) for name, runs in data["categories"].items()},
        reserved=_unruns(data["reserved"]),
        end_s=data["end_us"] / 1e6,
        sampled_time_s=tuple(us / 1e6 for us in data["sampled_time_us"]),
        sampled={name: _unruns(runs) for name, runs in data["sampled"].items()},
    )


def _measurement_to_dict(m: Measurement) -> dict[str, Any]:
    values = {name: getattr(m, name) for name in Measurement.__dataclass_fields__}
    return values | {"notes": list(m.notes)}


def _measurement_from_dict(data: dict[str, Any]) -> Measurement:
    known = {k: v for k, v in data.items() if k in Measurement.__dataclass_fields__}
    return Measurement(**known | {"notes": tuple(data.get("notes", ()))})


_RECORDS = {
    "findings": Finding,
    "phases": Phase,
    "tensors_at_peak": TensorRow,
    "modules_at_peak": GroupRow,
    "lines_at_peak": GroupRow,
}
_ENCODE = {name: _rows_to_columns(kind) for name, kind in _RECORDS.items()} | {
    "timeline_data": _encode_timeline,
    "measurement": _measurement_to_dict,
    "others": lambda others: [other.to_dict() for other in others],
}
_DECODE = {name: _columns_to_rows(kind) for name, kind in _RECORDS.items()} | {
    "timeline_data": _decode_timeline,
    "measurement": _measurement_from_dict,
    "others": lambda others: tuple(Report.from_dict(other) for other in others),
}

"""`Report` to JSON types and back: a report goes in and a dict comes out; a dict of any origin goes in, a report or an error comes out.

Tuples of records become columns and stepwise curves become runs: a report goes into git. What is read may come from a
damaged or hostile notebook: every value is checked against the type its field declares, and no count in it is believed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any

from ipyvram.recording import CATEGORIES, Observation
from ipyvram.report import SCHEMA_VERSION, Report
from ipyvram.report_rows import (
    Finding,
    GroupRow,
    Lifetime,
    Measurement,
    OutOfMemory,
    Phase,
    Remedy,
    StepAccount,
    TensorRow,
    Timeline,
)

MAX_ROWS = 100_000  # rows of one table or points of one curve; a report has 4,000 at most
MAX_DEVICES = 64

#: Keys of accounts, of the card and of `Report.provenance`, in the order they are made and shown in.
_CARD = ("cache", "context", "other_processes", "reserved", "free")
_ORDER = {name: i for i, name in enumerate((*CATEGORIES, "peak", "categories", "end", *_CARD))}


def encode(report: Report) -> dict[str, Any]:
    """A report as JSON types; the order of keys is that of the fields."""
    return {"schema": SCHEMA_VERSION} | {
        name: _ENCODE.get(name, _plain)(getattr(report, name)) for name in Report.__dataclass_fields__
    }


def decode(data: Any) -> Report:
    """Inverse of `encode`; unknown keys are passed over, fields that an older version lacks have their defaults.

    Raises
    ------
    ValueError
        Not a report, a damaged one, or one of a newer schema.
    """
    try:
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise ValueError("it has no schema number")
        if data["schema"] > SCHEMA_VERSION:
            raise ValueError(f"its schema is {data['schema']}, newer than {SCHEMA_VERSION}: update ipyvram to read it")
        known = {k: _in_order(v) for k, v in data.items() if k in Report.__dataclass_fields__}
        report = Report(**{k: _DECODE[k](v) if k in _DECODE else v for k, v in known.items()})
        _check_fields(report)
        _check_sums(report)
        return report
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"not a readable ipyvram report: {error}") from error


# -- checks ------------------------------------------------------------------------------------------------------------


def _check_sums(report: Report) -> None:
    for account in (report.peak, report.start, report.end):
        if set(account) != set(CATEGORIES):
            raise ValueError("an account lacks categories")
    if sum(report.peak.values()) != report.peak_bytes:
        raise ValueError("its categories do not add up to its peak")


def _check_fields(record: Any) -> None:
    for name, kind in typing.get_type_hints(type(record)).items():
        if not _fits(getattr(record, name), kind):
            raise ValueError(f"its {name} is not what it should be")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; records are checked field by field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, k) for k in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) <= MAX_ROWS and all(_fits(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, kind):
        return False
    if kind not in (str, bool, type(None)):
        _check_fields(value)
    return True


def _in_order(value: Any) -> Any:
    """Categories in the order they are shown in: notebooks are saved with the keys of their JSON sorted."""
    if isinstance(value, dict):
        names = sorted(value, key=_ORDER.__getitem__) if value.keys() <= _ORDER.keys() else value
        return {name: _in_order(value[name]) for name in names}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_in_order(v) for v in value]
    return value


# -- values ------------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    return value


def _defaults(kind: type[Any]) -> dict[str, Any]:
    """Field → default of a record class, `MISSING` where there is none."""
    return {name: f.default for name, f in kind.__dataclass_fields__.items()}


def _rows_to_columns(kind: type[Any]) -> Callable[[tuple[Any, ...]], dict[str, Any]]:
    """Records as ``{field: [values]}``; a column that only holds the field's default is left out."""

    def encode_rows(rows: tuple[Any, ...]) -> dict[str, Any]:
        columns = {name: [getattr(row, name) for row in rows] for name in _defaults(kind)}
        return {"n": len(rows)} | {
            name: [list(v) if isinstance(v, tuple) else v for v in column]
            for name, column in columns.items()
            if any(v != _defaults(kind)[name] for v in column)
        }

    return encode_rows


def _columns_to_rows(kind: type[Any]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    def decode_rows(columns: dict[str, Any]) -> tuple[Any, ...]:
        count = columns["n"]
        if not 0 <= count <= MAX_ROWS:
            raise ValueError(f"a table of {count} rows")
        filled = {name: columns.get(name, [default] * count) for name, default in _defaults(kind).items()}
        rows = list(zip(*filled.values(), strict=True))
        if len(rows) != count:
            raise ValueError(f"a table of {count} rows has {len(rows)}")
        return tuple(kind(*(tuple(v) if isinstance(v, list) else v for v in row)) for row in rows)

    return decode_rows


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
    if sum(runs[::2]) > MAX_ROWS or min(runs[::2], default=0) < 0:
        raise ValueError("a curve of too many points")
    return tuple(value for count, value in zip(runs[::2], runs[1::2], strict=True) for _ in range(count))


def _encode_timeline(t: Timeline) -> dict[str, Any]:
    return {
        "time_us": [round(s * 1e6) for s in t.time_s],
        "categories": {name: _runs(column) for name, column in t.categories.items()},
        "reserved": _runs(t.reserved),
        "end_us": round(t.end_s * 1e6),
        "sampled_time_us": [round(s * 1e6) for s in t.sampled_time_s],
        "sampled": {name: _runs(column) for name, column in t.sampled.items()},
        "gaps_us": [[round(begin * 1e6), round(end * 1e6)] for begin, end in t.gaps_s],
    }


def _decode_timeline(data: dict[str, Any]) -> Timeline:
    return Timeline(
        time_s=tuple(us / 1e6 for us in data["time_us"]),
        categories={name: _unruns(runs) for name, runs in data["categories"].items()},
        reserved=_unruns(data["reserved"]),
        end_s=data["end_us"] / 1e6,
        sampled_time_s=tuple(us / 1e6 for us in data["sampled_time_us"]),
        sampled={name: _unruns(runs) for name, runs in data["sampled"].items()},
        gaps_s=tuple((begin / 1e6, end / 1e6) for begin, end in data.get("gaps_us", ())),
    )


def _measurement_to_dict(m: Measurement) -> dict[str, Any]:
    values = {name: getattr(m, name) for name in Measurement.__dataclass_fields__}
    return values | {"notes": list(m.notes)}


def _measurement_from_dict(data: dict[str, Any]) -> Measurement:
    known = {k: v for k, v in data.items() if k in Measurement.__dataclass_fields__}
    return Measurement(**known | {"notes": tuple(data.get("notes", ()))})


def _oom_to_dict(oom: OutOfMemory | None) -> dict[str, Any] | None:
    if oom is None:
        return None
    values = {name: getattr(oom, name) for name in OutOfMemory.__dataclass_fields__}
    shape = None if oom.shape is None else list(oom.shape)
    tables = {"holders": _ENCODE_HOLDERS(oom.holders), "remedies": _ENCODE_REMEDIES(oom.remedies)}
    return values | {"shape": shape} | tables


def _oom_from_dict(data: dict[str, Any] | None) -> OutOfMemory | None:
    if data is None:
        return None
    known = {k: v for k, v in data.items() if k in OutOfMemory.__dataclass_fields__}
    shape = None if known.get("shape") is None else tuple(known["shape"])
    tables = {
        "holders": _columns_to_rows(TensorRow)(known.get("holders", {"n": 0})),
        "remedies": _columns_to_rows(Remedy)(known.get("remedies", {"n": 0})),
    }
    return OutOfMemory(**known | {"shape": shape} | tables)


def _others_from_list(others: list[Any]) -> tuple[Report, ...]:
    if len(others) > MAX_DEVICES or any(isinstance(o, dict) and o.get("others") for o in others):
        raise ValueError("accounts of other devices inside each other")
    return tuple(decode(other) for other in others)


_ENCODE_HOLDERS, _ENCODE_REMEDIES = _rows_to_columns(TensorRow), _rows_to_columns(Remedy)
_RECORDS: dict[str, type[Any]] = {
    "findings": Finding,
    "phases": Phase,
    "tensors_at_peak": TensorRow,
    "modules_at_peak": GroupRow,
    "lines_at_peak": GroupRow,
    "lifetimes": Lifetime,
    "step_accounts": StepAccount,
    "observations": Observation,
}
_ENCODE: dict[str, Callable[[Any], Any]] = {name: _rows_to_columns(kind) for name, kind in _RECORDS.items()} | {
    "timeline_data": _encode_timeline,
    "measurement": _measurement_to_dict,
    "others": lambda others: [encode(other) for other in others],
    "oom": _oom_to_dict,
}
_DECODE: dict[str, Callable[[Any], Any]] = {name: _columns_to_rows(kind) for name, kind in _RECORDS.items()} | {
    "timeline_data": _decode_timeline,
    "measurement": _measurement_from_dict,
    "others": _others_from_list,
    "oom": _oom_from_dict,
}

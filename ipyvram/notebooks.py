"""Reports out of saved notebooks: paths of ``.ipynb`` files come in, reports, comparisons and one DataFrame of all reports come out.

A notebook keeps every report in its cell's outputs. Only their JSON is read, never code; what is damaged, foreign or newer
is skipped and named.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ipyvram.report import Report

if TYPE_CHECKING:
    import pandas as pd

    from ipyvram.comparison import Comparison
    from ipyvram.difference import Difference

#: Any version: `Report.from_dict` reads the older ones and names the newer ones.
PAYLOAD_TYPE = re.compile(r"application/vnd\.ipyvram\.(report|comparison|difference)\.v\d+\+json")


class Found(NamedTuple):
    """A report and where it stands: ``number`` counts the notebook's reports from 1, ``cell`` its cells from 1."""

    report: Report
    notebook: str
    number: int
    cell: int
    execution_count: int | None


class Compared(NamedTuple):
    """A comparison of batch sizes or of reports, and where it stands."""

    made: Comparison | Difference
    notebook: str
    cell: int


class Scan(NamedTuple):
    """What one notebook held: its reports and comparisons, and a line for each that could not be read."""

    found: tuple[Found, ...]
    skipped: tuple[str, ...]
    unread: int = 0  #: files of which nothing could be read
    compared: tuple[Compared, ...] = ()


def scan(path: str | os.PathLike[str]) -> Scan:
    """All reports of one notebook.

    Raises
    ------
    ValueError
        The file is not a notebook.
    OSError
        The file cannot be read.
    """
    path = Path(path)
    found: list[Found] = []
    compared: list[Compared] = []
    skipped: list[str] = []
    for cell, count, kind, data in _payloads(_cells(path)):
        try:
            data = data if isinstance(data, dict) else json.loads(_joined(data))
            if kind != "report":
                compared.append(Compared(_comparison(kind, data), path.name, cell))
                continue
            report = Report.from_dict(data)
        except (ValueError, TypeError, RecursionError) as error:
            skipped.append(f"{path.name}, cell {cell}: skipped a {kind}: {_one_line(error)}")
            continue
        known = next((i for i, f in enumerate(found) if _identity(f.report) == _identity(report)), None)
        if known is None:
            found.append(Found(report, path.name, len(found) + 1, cell, count))
        else:  # shown again, or with a note that came later
            found[known] = found[known]._replace(report=report)
    return Scan(tuple(found), tuple(skipped), compared=tuple(compared))


def _comparison(kind: str, data: dict[str, Any]) -> Comparison | Difference:
    from ipyvram.comparison import Comparison
    from ipyvram.difference import Difference

    made = Comparison.from_dict(data) if kind == "comparison" else Difference.from_dict(data)
    try:
        str(made)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"it cannot be told: {error}") from error
    return made


def scan_all(paths: tuple[str | os.PathLike[str], ...]) -> Scan:
    """All reports of several notebooks; one that cannot be read is skipped and named like a damaged report."""
    found: list[Found] = []
    compared: list[Compared] = []
    skipped: list[str] = []
    unread = 0
    for path in paths:
        try:
            one = scan(path)
        except OSError as error:
            skipped.append(f"{Path(path).name}: skipped: {error.strerror or error}")
            unread += 1
        except ValueError as error:
            skipped.append(f"{_one_line(error)}; skipped")
            unread += 1
        else:
            found += one.found
            compared += one.compared
            skipped += one.skipped
    return Scan(tuple(found), tuple(skipped), unread, tuple(compared))


def read_notebook(path: str | os.PathLike[str]) -> list[Report]:
    """The reports that a saved notebook holds, in the order of its cells.

    Parameters
    ----------
    path : path
        An ``.ipynb`` file, trusted or not: nothing in it is run.

    Returns
    -------
    list of Report
        As trimmed as they are in the notebook (`Report.trimmed`). A report that is damaged, foreign or of a newer version
        is skipped, with a warning that names its cell.

    Raises
    ------
    ValueError
        The file is not a notebook.
    OSError
        The file cannot be read.
    """
    one = scan(path)
    for line in one.skipped:
        warnings.warn(line, stacklevel=2)
    return [f.report for f in one.found]


def read_notebooks(*paths: str | os.PathLike[str]) -> pd.DataFrame:
    """The reports of several notebooks as one DataFrame; unreadable notebooks and reports are skipped with a warning.

    Returns
    -------
    DataFrame
        As `frame`.
    """
    everything = scan_all(paths)
    for line in everything.skipped:
        warnings.warn(line, stacklevel=2)
    return frame(everything.found)


def frame(found: tuple[Found, ...]) -> pd.DataFrame:
    """One row a report; every column has a scalar type, so that it can be written as Parquet.

    Returns
    -------
    DataFrame
        ``notebook``, ``number``, ``cell``, ``execution_count``; ``label``, ``note``, ``kind``, ``device``, ``device_name``,
        ``peak_bytes``, ``peak_reserved_bytes``, ``card_bytes``, ``peak_when``, ``steps``, ``duration_s`` (seconds),
        ``started`` (UTC), ``error``; and ``peak_parameters`` … ``peak_other``, bytes at the peak by category.
    """
    import pandas as pd

    from ipyvram.recording import CATEGORIES

    names = ("label", "note", "kind", "device", "device_name", "peak_bytes", "peak_reserved_bytes", "card_bytes",
             "peak_when", "steps", "duration_s", "error")  # fmt: skip
    rows = [
        {
            "notebook": f.notebook, "number": f.number, "cell": f.cell, "execution_count": f.execution_count,
            **{name: getattr(f.report, name) for name in names},
            "started": f.report.started_at,
            **{f"peak_{c}": f.report.peak[c] for c in CATEGORIES},
        }
        for f in found
    ]  # fmt: skip
    places = ("notebook", "number", "cell", "execution_count")
    columns = [*places, *names, "started", *(f"peak_{c}" for c in CATEGORIES)]
    table = pd.DataFrame(rows, columns=columns)
    table["started"] = pd.to_datetime(table["started"].astype("float64"), unit="s", utc=True)
    text = ("notebook", "label", "note", "kind", "device", "device_name", "peak_when", "error")
    whole = [c for c in columns if c not in (*text, "started", "duration_s")]
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(text, "string") | {"duration_s": "float64"})


def _identity(report: Report) -> tuple[object, ...]:
    """What two copies of one report have in common."""
    return report.started_at, report.duration_s, report.label, report.kind, report.device, report.peak_bytes


def _cells(path: Path) -> list[Any]:
    """The cells of a notebook of any format version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"{path.name} is not a notebook: it is not JSON") from None
    sheets = data.get("worksheets") if isinstance(data, dict) else None
    if isinstance(sheets, list):  # format 3
        return [c for sheet in sheets if isinstance(sheet, dict) for c in _list(sheet.get("cells"))]
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list) or "nbformat" not in data:
        raise ValueError(f"{path.name} is not a notebook: it has no cells")
    return _list(data["cells"])


def _payloads(cells: list[Any]) -> Iterator[tuple[int, int | None, str, Any]]:
    """Cell number, execution count, kind and data of each output that claims to be a report or a comparison."""
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            continue
        count = cell.get("execution_count")
        for output in _list(cell.get("outputs")):
            bundle = output.get("data") if isinstance(output, dict) else None
            for kind, data in bundle.items() if isinstance(bundle, dict) else ():
                if claimed := PAYLOAD_TYPE.fullmatch(kind):
                    yield number, count if isinstance(count, int) else None, claimed[1], data


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _joined(data: Any) -> str:
    """Some tools write JSON payloads as text, whole or in lines."""
    if isinstance(data, list) and all(isinstance(line, str) for line in data):
        return "".join(data)
    if not isinstance(data, str):
        raise ValueError("it is not an object")
    return data


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]

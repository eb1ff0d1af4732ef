"""Reports of notebooks as tables and files: what `notebooks.scan_all` found comes in; DataFrames, text and pages go out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipyvram.difference import Difference, compare
from ipyvram.notebooks import Found, frame

if TYPE_CHECKING:
    import pandas as pd

    from ipyvram.report import Report


def _each(found: tuple[Found, ...], view: Callable[[Found], pd.DataFrame]) -> pd.DataFrame:
    """The views of all reports one below the other, with the report's place in front."""
    import pandas as pd

    parts = []
    for one in found:
        part = view(one).reset_index()
        part.insert(0, "notebook", one.notebook)
        part.insert(1, "number", one.number)
        part.insert(2, "label", one.report.label)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _tensors(one: Found) -> pd.DataFrame:
    table = one.report.tensors()
    table["shape"] = ["×".join(map(str, s)) if s is not None else None for s in table["shape"]]  # a scalar type
    return table


def _findings(one: Found) -> pd.DataFrame:
    import pandas as pd

    rows = [(f.kind, f.bytes, f.text) for f in one.report.findings]
    return pd.DataFrame(rows, columns=["kind", "bytes", "text"]).rename_axis("rank")


def _timeline(one: Found) -> pd.DataFrame:
    return one.report.timeline()


#: Name of a table → its maker; every column of each has a scalar type, as Parquet wants it.
TABLES: dict[str, Callable[[tuple[Found, ...]], pd.DataFrame]] = {
    "reports": frame,
    "categories": lambda found: _each(found, lambda one: one.report.to_frame()),
    "tensors": lambda found: _each(found, _tensors),
    "timeline": lambda found: _each(found, _timeline),
    "findings": lambda found: _each(found, _findings),
}

FORMATS = ("csv", "json", "html", "parquet")


def as_csv(found: tuple[Found, ...], table: str) -> str:
    """A table as CSV. Cells that a spreadsheet would take for a formula are disarmed."""
    made = TABLES[table](found)
    text = [c for c in made.columns if made[c].dtype == object or str(made[c].dtype) in ("string", "str")]
    for column in text:
        made[column] = made[column].map(_disarmed)
    return str(made.to_csv(index=False))


def _disarmed(value: Any) -> Any:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def as_json(found: tuple[Found, ...]) -> str:
    """Every report whole, with its place: a list of objects in the order of the notebooks."""
    rows = [{"notebook": f.notebook, "number": f.number, "cell": f.cell, "report": f.report.to_dict()} for f in found]
    return json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_page(found: tuple[Found, ...]) -> str:
    """One HTML document with all reports; needs no network."""
    from ipyvram.render.html import html, page_of

    parts = []
    for one in found:
        place = f"{one.notebook}, report {one.number}, cell {one.cell}"
        parts.append((place, html(one.report)))
    return page_of("Memory reports", parts)


def write_parquet(found: tuple[Found, ...], table: str, path: Path) -> None:
    """A table as a Parquet file.

    Raises
    ------
    ValueError
        pandas finds no engine for Parquet.
    """
    try:
        TABLES[table](found).to_parquet(path, index=False)
    except ImportError:
        raise ValueError("--format parquet needs pyarrow: pip install pyarrow") from None


# -- comparisons ---------------------------------------------------------------------------------------------------------


def differences(found: tuple[Found, ...], wanted: list[str] | None) -> list[Difference]:
    """What ``compare`` prints: the wanted reports against the first of them; without any named, those that belong together.

    Reports of one notebook are compared with its first; of several notebooks, each label that all of them have.

    Raises
    ------
    ValueError
        A label or number is not there, or there is nothing to compare.
    """
    if wanted:
        from ipyvram.comparing import Numbered, find

        numbered = [Numbered(i, f.report) for i, f in enumerate(found, 1)]
        return [compare(*(find(word, numbered) for word in wanted))]
    notebooks = list(dict.fromkeys(f.notebook for f in found))
    if len(notebooks) < 2:
        if len(found) < 2:
            raise ValueError("one report alone has nothing to be compared with")
        return [compare(*(f.report for f in found))]
    labels = dict.fromkeys(f.report.label for f in found if f.notebook == notebooks[0] and f.report.label)
    result = []
    for label in labels:
        newest = {f.notebook: f.report for f in found if f.report.label == label}
        if len(newest) == len(notebooks):
            result.append(_by_notebook(label, newest, notebooks))
    if not result:
        raise ValueError("no label stands in all of these notebooks; name reports with --reports A B")
    return result


def _by_notebook(label: str, newest: dict[str, Report], notebooks: list[str]) -> Difference:
    """One label across notebooks: the sides have the notebooks' names."""
    named = [replace(newest[n], label=f"{label}, {n}") for n in notebooks]
    return compare(*named)

"""What a check found: rows in, a table and JSON out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One check of one case.

    Attributes
    ----------
    check, case : str
    ok : bool or None
        None where there is nothing to pass, only a figure to report.
    text : str
        What was found, with figures.
    figures : dict
        The same for machines.
    """

    check: str
    case: str
    ok: bool | None
    text: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def expect(check: str, case: str, ok: bool, text: str = "", **figures: Any) -> Row:
    """A row that passes or fails."""
    return Row(check, case, bool(ok), text, figures)


def note(check: str, case: str, text: str, **figures: Any) -> Row:
    """A row that only reports."""
    return Row(check, case, None, text, figures)


_WORDS = {True: "ok", False: "FAIL", None: "–"}


def line(row: Row) -> str:
    return f"{_WORDS[row.ok]:<5}{row.check:<22.21} {row.case:<34.33} {row.text}"


def summary(rows: Iterable[Row]) -> str:
    """How many passed, and which did not."""
    found = list(rows)
    failed = [r for r in found if r.ok is False]
    text = f"{sum(r.ok is True for r in found)} checks passed, {len(failed)} failed"
    return "\n".join([text, *(line(r) for r in failed)])


def write(path: Path, rows: Iterable[Row], about: dict[str, Any]) -> None:
    path.write_text(json.dumps({"about": about, "rows": [asdict(r) for r in rows]}, indent=1, default=str) + "\n")

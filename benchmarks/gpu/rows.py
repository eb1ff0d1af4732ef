"""What a check found: rows in, a table and JSON out."""

from __future__ import annotations

import json
import os
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


# -- on disk -------------------------------------------------------------------------------------------------------------


def path_of(out: Path, part: str) -> Path:
    """Where a part appends its rows."""
    return out / "rows" / f"{part}.jsonl"


def append(path: Path, row: Row) -> None:
    """Add a row to a file; it is there even if the process ends in the next moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(row), default=str) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """The rows of a file; a last line that was cut short is passed over."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(Row(**json.loads(text)))
        except ValueError:
            continue
    return found


def collect(out: Path, seconds: dict[str, float]) -> list[Row]:
    """All rows of a folder; written to its ``results.json``, with the seconds that parts took."""
    parts = {path.stem: read(path) for path in sorted((out / "rows").glob("*.jsonl"))}
    head = out / "about.json"
    before = out / "results.json"
    known = json.loads(before.read_text())["seconds"] if before.exists() else {}
    about = json.loads(head.read_text()) if head.exists() else {}
    value = [{"part": part} | asdict(row) for part, found in parts.items() for row in found]
    written(before, as_text(about, known | seconds, value))
    return [row for found in parts.values() for row in found]


def as_text(about: dict[str, Any], seconds: dict[str, float], found: list[dict[str, Any]]) -> str:
    """JSON with a row on each line."""
    lines = ",\n".join(json.dumps(row, default=str) for row in found)
    return f'{{"about": {json.dumps(about)},\n"seconds": {json.dumps(seconds)},\n"rows": [\n{lines}\n]}}\n'


def written(path: Path, text: str) -> None:
    """Put a file there as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(path.suffix + ".new")
    beside.write_text(text)
    beside.replace(path)

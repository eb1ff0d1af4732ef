"""What changed between reports, or between the steps of one: `Report`s come in, a `Difference` goes out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from ipyvram.report_rows import StepAccount

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

#: Untraced steps from which the time of one is told.
MIN_STEPS = 3


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things compared.

    Attributes
    ----------
    account : dict
        Category → bytes at the peak; their sum is `peak_bytes`.
    facts : dict
        What else differs, as numbers: ``reserved_bytes``, ``duration_s``, ``seconds_per_step``, ``steps``.
    """

    name: str
    peak_bytes: int
    account: dict[str, int]
    when: str = ""
    facts: dict[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A category on every side; ``changes`` are against the first side."""

    category: str
    bytes: tuple[int, ...]
    changes: tuple[int, ...]

    @property
    def largest(self) -> int:
        """The change that is furthest from zero."""
        return max(self.changes, key=abs, default=0)


@dataclass(frozen=True, slots=True)
class Difference:
    """Sides against the first of them.

    Attributes
    ----------
    rows : tuple of Row
        Categories that hold something anywhere, the largest change first.
    remarks : tuple of str
        Why the sides may not be comparable: other device, other kind, an error.
    """

    sides: tuple[Side, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    @property
    def peak_changes(self) -> tuple[int, ...]:
        """Change of the peak of each further side against the first, bytes; the sum of the rows' changes."""
        return tuple(side.peak_bytes - self.sides[0].peak_bytes for side in self.sides[1:])

    def to_frame(self) -> pd.DataFrame:
        """Category × (a column a side; ``change NAME`` for each further one), bytes; the peak in the last row."""
        import pandas as pd

        names = _unique([side.name for side in self.sides])
        columns = [*names, *(f"change {name}" for name in names[1:])]
        rows = {row.category: [*row.bytes, *row.changes] for row in self.rows}
        rows["peak"] = [*(side.peak_bytes for side in self.sides), *self.peak_changes]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype="Int64").rename_axis("category")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with a stable key order."""
        return {
            "schema": SCHEMA_VERSION,
            "sides": [asdict(side) for side in self.sides],
            "rows": [{"category": r.category, "bytes": list(r.bytes), "changes": list(r.changes)} for r in self.rows],
            "remarks": list(self.remarks),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Difference:
        """Inverse of `to_dict`; the rows are made anew of the sides.

        Raises
        ------
        ValueError
            Not such a dict, a damaged one, or one of a newer schema.
        """
        try:
            if data["schema"] > SCHEMA_VERSION:
                raise ValueError(
                    f"its schema is {data['schema']}, newer than {SCHEMA_VERSION}: update ipyvram to read it"
                )
            sides = [
                Side(**{k: v for k, v in side.items() if k in Side.__dataclass_fields__}) for side in data["sides"]
            ]
            if len(sides) < 2 or any(sum(side.account.values()) != side.peak_bytes for side in sides):
                raise ValueError("its sides do not add up")
            return _difference(sides, tuple(map(str, data.get("remarks", ()))))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a readable ipyvram comparison: {error}") from error

    def __str__(self) -> str:
        """The table as text, for ``print`` in a script."""
        from ipyvram.render.difference import text
        from ipyvram.render.terminal import looks
        from ipyvram.render.text import Pen

        return text(self, Pen(**looks()))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        from ipyvram.render.difference import bundle

        return bundle(self)


def compare(*reports: Report) -> Difference:
    """Reports against the first one, by category at their peaks.

    Parameters
    ----------
    *reports : Report
        Two or more; those of equal labels are told apart by their order.

    Raises
    ------
    ValueError
        Fewer than two reports.
    """
    if len(reports) < 2:
        raise ValueError("a comparison needs two reports or more")
    names = _unique([report.label or "unlabelled" for report in reports])
    sides = [_side(name, report) for name, report in zip(names, reports, strict=True)]
    return _difference(sides, _remarks(names, reports))


def compare_steps(report: Report, steps: Sequence[int] = (1, 2)) -> Difference:
    """Traced steps of one report against the first of them.

    Raises
    ------
    ValueError
        A step was not traced; the message says which were.
    """
    known = {account.step: account for account in report.step_accounts}
    missing = [step for step in steps if step not in known]
    if missing:
        traced = ", ".join(map(str, known)) or "none"
        raise ValueError(f"step {missing[0]} of {report.label or 'this report'} was not traced (traced: {traced})")
    if len(steps) < 2:
        raise ValueError("a comparison needs two steps or more")
    return _difference([_step_side(known[step]) for step in steps], ())


def _side(name: str, report: Report) -> Side:
    # Making the model, the first steps and what is traced take longer: what is left is what a step takes from then on.
    untraced = report.steps - report.traced_steps if report.kind == "measured" else 0
    left_s = report.duration_s - report.measurement.traced_s
    per_step = left_s / untraced if untraced >= MIN_STEPS and left_s > 0 else 0.0
    facts = {
        "reserved_bytes": report.peak_reserved_bytes or 0,
        "steps": report.steps,
        "duration_s": report.duration_s,
        "seconds_per_step": per_step,
    }
    return Side(name, report.peak_bytes, report.peak, report.peak_when, {k: v for k, v in facts.items() if v})


def _step_side(account: StepAccount) -> Side:
    full = dict.fromkeys(CATEGORIES, 0) | account.peak
    facts = {"seconds_per_step": account.end_s - account.start_s}
    return Side(f"step {account.step}", account.peak_bytes, full, account.peak_phase, facts)


def _difference(sides: Sequence[Side], remarks: tuple[str, ...]) -> Difference:
    rows = []
    for category in CATEGORIES:
        sizes = tuple(side.account[category] for side in sides)
        if any(sizes):
            rows.append(Row(category, sizes, tuple(n - sizes[0] for n in sizes[1:])))
    rows.sort(key=lambda row: -abs(row.largest))
    return Difference(tuple(sides), tuple(rows), remarks)


def _remarks(names: Sequence[str], reports: Sequence[Report]) -> tuple[str, ...]:
    first, remarks = reports[0], list[str]()
    for name, report in zip(names, reports, strict=True):
        if report.error:
            remarks.append(
                f"{name} did not end well ({report.error.partition(':')[0]}): its peak is that of the part that ran"
            )
        if report.device_name != first.device_name or report.device.partition(":")[0] != first.device.partition(":")[0]:
            remarks.append(
                f"{name} ran on {report.device_name or report.device}, {names[0]} on {first.device_name or first.device}"
            )
        if report.kind != first.kind:
            remarks.append(f"{name} is {report.kind}, {names[0]} is {first.kind}")
    return tuple(remarks)


def _unique(names: Sequence[str]) -> list[str]:
    """Equal names numbered: ``bs32``, ``bs32 (2)``."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique

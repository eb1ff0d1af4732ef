"""When an amount is worth a sentence: bytes and the report they stand in come in, yes or no goes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ipyvram.recording import Observation
from ipyvram.report import Report
from ipyvram.report_rows import Finding

#: A rule of `find`: any number of findings, usually none.
Rule = Callable[[Report], Iterator[Finding]]

#: An amount is worth saying when it is at least this many bytes …
MIN_BYTES = 64 * 2**10
#: … and at least this share of the cell's peak: two percent is about what one notices in a bar.
MIN_SHARE = 0.02


def worth(count: float, report: Report) -> bool:
    """Whether an amount of bytes matters in this report."""
    return count >= MIN_BYTES and count >= MIN_SHARE * report.peak_bytes


def observed(report: Report, kind: str) -> Iterator[Observation]:
    """Observations of one kind that are about this report's device, largest first."""
    mine = [o for o in report.observations if o.kind == kind and o.device in ("", report.device)]
    yield from sorted(mine, key=lambda o: (-o.bytes, o.name))


def keeps_history(report: Report) -> bool:
    """Whether the optimizer's state is as large as its history, which grows until that is full."""
    return "LBFGS" in report.environment.get("optimizer", "")


def release(holder: str) -> str:
    """What to write so that ``holder`` lets go: ``del`` does it for a variable, not for what IPython keeps."""
    if holder.startswith(("Out[", "_")):
        return "%vram free --out"
    return "%vram free --traceback" if holder == "the last traceback" else f"del {holder or 'what holds it'}"


def code(name: str) -> str:
    """A name as it stands in code, cut to what fits a sentence; several, separated by commas, one by one."""
    parts = [part.strip() for part in name.split(",")]
    return ", ".join(f"`{part if len(part) <= 60 else part[:59] + '…'}`" for part in parts)

"""What an estimate has to say: whether the card is too small, and what it has not looked at."""

from __future__ import annotations

from collections.abc import Iterator

from ipyvram.findings.worth import Rule, observed
from ipyvram.report import Report
from ipyvram.report_rows import Finding
from ipyvram.units import format_bytes


def _does_not_fit(report: Report) -> Iterator[Finding]:
    """The observation's ``bytes`` were asked for, its ``count`` were left, its ``holder`` is when."""
    for o in observed(report, "does_not_fit"):
        when = f" in {o.holder}" if o.holder else ""
        over = (
            (report.peak_reserved_bytes or report.peak_bytes) + report.card.get("context", 0) - (report.card_bytes or 0)
        )
        short = f", {format_bytes(over)} more than it has" if over > 0 else ""
        text = (
            f"Does not fit on {o.name}{short}: out of memory{when}, where {format_bytes(o.bytes)} would be asked for and "
            f"{format_bytes(o.count)} left."
        )
        yield Finding("does_not_fit", text, report.peak_bytes)


def _evaluates_later(report: Report) -> Iterator[Finding]:
    """The observation's ``name`` is after what the estimate ended."""
    for o in observed(report, "evaluates_later"):
        text = (
            f"The estimate ends after {o.name}: an evaluation that this cell makes later is not in it, and may need more with a "
            "larger batch. Estimate it in a cell of its own."
        )
        yield Finding("evaluates_later", text)


def _left_on_host(report: Report) -> Iterator[Finding]:
    """The observation's ``name`` has the shapes of ``count`` tensors, its ``holder`` is the operator that met the first."""
    for o in observed(report, "left_on_host"):
        what = f"a tensor ({o.name})" if o.count == 1 else f"{o.count} tensors ({o.name})"
        them, counted = ("it", "it counts") if o.count == 1 else ("them", "they count")
        text = (
            f"The cell leaves {what} on the CPU and uses {them} with tensors on the card, first in {o.holder}: on a card that is an "
            f"error. Move {them} with .to(device): here {counted} only while in use."
        )
        yield Finding("left_on_host", text)


def _nothing_there(report: Report) -> Iterator[Finding]:
    if report.kind == "estimated" and not report.peak_bytes and (report.phases or report.steps):
        text = (
            "Nothing was put on the card: the code computes on the CPU. Move the model and the batch with .to('cuda') or "
            ".to(device): variables called device or dev choose the card in an estimate, also where they say 'cpu' here."
        )
        yield Finding("nothing_on_card", text)


RULES: tuple[Rule, ...] = (_does_not_fit, _evaluates_later, _left_on_host, _nothing_there)

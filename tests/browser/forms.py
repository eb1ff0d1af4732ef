"""One of each form in HTML that there is, for looking at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ipyvram.difference import compare
from ipyvram.ranks import Ranks
from ipyvram.render import comparison_html, difference, ranks, resident
from ipyvram.render.html import html
from ipyvram.report_rows import Finding, OutOfMemory, Remedy
from ipyvram.resident import Holding, Resident
from ipyvram.units import GIB, MIB
from tests import comparisons, reports


def out_of_memory() -> str:
    """A cell that ended with one: it stands first."""
    report = reports.training(error="OutOfMemoryError: tried")
    oom = OutOfMemory(
        512 * MIB, report.peak_bytes, report.peak, limit_bytes=report.peak_bytes + 100 * MIB, free_bytes=100 * MIB, when="step 3, forward",
        step=3, line=4, module="layer4.2.conv3", op="convolution", shape=(64, 2048, 7, 7), dtype="float32",
        holders=report.tensors_at_peak, pinned_bytes=2 * GIB,
        remedies=(Remedy("amp", "torch.autocast(…, dtype=torch.bfloat16): activations in half the bytes", GIB, True),),
    )  # fmt: skip
    return html(replace(report, oom=oom))


def does_not_fit() -> str:
    """An estimate with its verdict, over the limit and over the card."""
    report = reports.training(kind="estimated", limit_bytes=2 * GIB, card_bytes=3 * GIB)
    verdict = Finding("does_not_fit", "Does not fit on a small card, 1.00 GiB more than it has.", report.peak_bytes)
    return html(replace(report, findings=(verdict, *report.findings), card=report.card | {"free": -GIB}))


def named_at_length() -> str:
    """Words of users have no limit."""
    words = "a label that somebody wrote as a sentence, with everything in it "
    return html(reports.training(label=words * 3, note=words * 9, device_name="a card " * 20))


def who() -> str:
    """Holders with what releases them."""
    holdings = (
        Holding("model", "variable", "parameters", 90 * MIB, 160, "model.layer4.2.conv3.weight"),
        Holding("the traceback of OutOfMemoryError", "traceback", "activations", 900 * MIB, 38, "input in forward()"),
        Holding("Out[3], _", "out", "other", 8 * MIB, 1),
    )
    return resident.html(Resident("cuda:0", holdings, 1000 * MIB, 1200 * MIB, 16 * GIB), everyone=True)


def changes() -> str:
    """Three runs beside one another."""
    labels = ("bs64", "bs64 with mixed precision", "bs64 with checkpointing")
    return difference.html(compare(*(reports.training(label=label) for label in labels)))


FORMS: dict[str, Callable[[], str]] = {
    "report": lambda: html(reports.training(lifetimes=reports.lifetimes())),
    "long": lambda: html(reports.long()),
    "devices": lambda: html(reports.training(others=(reports.cpu(), reports.long(), reports.cpu(), reports.cpu()))),
    "out of memory": out_of_memory,
    "does not fit": does_not_fit,
    "named at length": named_at_length,
    "sizes": lambda: comparison_html.html(comparisons.measured()),
    "sizes, interrupted": lambda: comparison_html.html(comparisons.interrupted()),
    "changes": changes,
    "who": who,
    "ranks": lambda: ranks.html(Ranks((reports.training(), None, reports.training()))),
}

"""What is worth saying about a report in one plain line each: a `Report` comes in, `Finding`s with their bytes go out.

A rule is a function of the report alone; it gives a finding or None, and it is silent below its threshold. What a rule
needs beside the account is an `Observation`, made by a probe or by `analysis`: the sentence is written here.
"""

from __future__ import annotations

from ipyvram.findings import allocator, batch, estimates, holding, steps
from ipyvram.report import Report
from ipyvram.report_rows import Finding


def find(report: Report) -> tuple[Finding, ...]:
    """All findings of one report, most bytes first; those that are not about an amount come last."""
    rules = (*estimates.RULES, *holding.RULES, *steps.RULES, *allocator.RULES, *batch.RULES)
    found = [finding for rule in rules for finding in rule(report)]
    if any(f.kind == "growth" for f in found):  # a smaller batch only puts it off
        found = [f for f in found if f.kind != "lever"]
    return tuple(sorted(found, key=lambda f: -f.bytes))

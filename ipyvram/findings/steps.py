"""Findings about how steps differ: the traced steps one by one come in (`Report.step_accounts`).

Observation read here: ``unused_graph``: ``count`` forwards of a root module recorded a graph of up to ``bytes`` that no
backward ran through; ``holder`` is ``a step`` where a step came after one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ipyvram.findings.worth import MIN_BYTES, Rule, keeps_history, observed, worth
from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from ipyvram.report_rows import Finding
from ipyvram.units import format_bytes, format_share

#: One forward without a backward may have its backward in the next cell, unless a step came in between; two are a loop.
MIN_UNUSED = 2
#: Step 2 above step 1: by a twentieth, and at least half of it is optimizer state.
SECOND_ABOVE_FIRST = 0.05
STATE_PART = 0.5
#: The first step counts as far above the steady ones from half as much again.
FIRST_ABOVE_STEADY = 1.5


def _unused_graph(report: Report) -> Iterator[Finding]:
    for o in observed(report, "unused_graph"):
        if (o.count >= MIN_UNUSED or o.holder) and worth(o.bytes, report):
            text = (
                f"{o.count} forwards recorded a graph and no backward followed, {format_bytes(o.bytes)} a forward: "
                "evaluate under torch.no_grad() (or inference_mode)."
            )
            if o.count == 1:
                text = text.replace("1 forwards", "A forward").replace(" a forward:", ":")
            yield Finding("unused_graph", text, o.bytes)


def _second_step(report: Report) -> Iterator[Finding]:
    if len(report.step_accounts) < 2 or (keeps_history(report) and any(_growth(report))):
        return
    first, second = report.step_accounts[:2]
    more = second.peak_bytes - first.peak_bytes
    state = second.peak.get("optimizer_state", 0) - first.peak.get("optimizer_state", 0)
    if first.peak_bytes and more >= SECOND_ABOVE_FIRST * first.peak_bytes and state >= STATE_PART * more:
        above = f"Step 2 peaks {format_bytes(more)} above step 1:"
        if keeps_history(report):
            text = (
                f"{above} L-BFGS has kept more gradients ({format_bytes(state)}), and goes on until its history_size is full. "
                "A smaller one lowers that."
            )
        else:
            text = (
                f"{above} the optimizer's state ({format_bytes(state)} more) exists only from the first step's end. "
                "A batch that fits one step may not fit two."
            )
        yield Finding("second_step", text, more)


def second_step_bytes(report: Report) -> int:
    """What a second step would need where the only one made the optimizer's state at its end; 0 where it would be no more.

    It has the state beside what the first forward and backward took: about so much, as gradients may be there from its begin.
    """
    timeline = report.timeline_data
    update = min((p.start_s for p in report.phases if p.name == "optimizer"), default=0.0)
    if report.steps != 1 or len(report.step_accounts) != 1 or report.error or report.oom or not timeline.categories:
        return 0
    only = report.step_accounts[0]
    before = [(n, i) for i, n in enumerate(timeline.allocated) if only.start_s <= timeline.time_s[i] < update]
    if not before:
        return 0
    most, at = max(before)
    states = timeline.categories.get("optimizer_state", ())
    needs = most + only.end.get("optimizer_state", 0) - (states[at] if states else 0)
    return needs if needs > report.peak_bytes else 0


def _only_step(report: Report) -> Iterator[Finding]:
    needs = second_step_bytes(report)
    if (more := needs - report.peak_bytes) >= max(MIN_BYTES, SECOND_ABOVE_FIRST * report.peak_bytes):
        text = (
            f"This is one step: the optimizer's state exists only from its end, and with it a second step needs about "
            f"{format_bytes(needs)}, {format_bytes(more)} more than this peak. Choose a batch by two steps or more."
        )
        yield Finding("only_step", text, more)


def _first_step(report: Report) -> Iterator[Finding]:
    if len(report.step_accounts) < 2 or report.environment.get("cudnn_benchmark") != "True":
        return
    first, steady = report.step_accounts[0].peak_bytes, max(s.peak_bytes for s in report.step_accounts[1:])
    if steady and first >= FIRST_ABOVE_STEADY * steady and worth(first - steady, report):
        text = (
            f"The first step peaks at {format_bytes(first)}, the steady ones at {format_bytes(steady)}: cuDNN tries its "
            "algorithms then. torch.backends.cudnn.benchmark = False avoids that peak."
        )
        yield Finding("first_step", text, first - steady)


def _growth(report: Report) -> Iterator[Finding]:
    """What every step leaves behind: the least growth between step ends, so that one odd batch is not a trend."""
    ends = report.step_accounts if len(report.step_accounts) <= 3 else report.step_accounts[1:]
    if len(ends) < 3:
        return
    pairs = list(itertools.pairwise(ends))
    grows = min(b.end_bytes - a.end_bytes for a, b in pairs)
    if not worth(grows, report):
        return
    by_category = {c: min(b.end.get(c, 0) - a.end.get(c, 0) for a, b in pairs) for c in CATEGORIES}
    category = max(by_category, key=by_category.__getitem__)
    mostly = f", mostly {category.replace('_', ' ')} ({format_share(min(by_category[category], grows), grows)})"
    why = "something keeps each step's tensors (a list of losses or outputs?). %vram who names the holder"
    if category == "optimizer_state" and 2 * by_category[category] > grows:
        why = "the optimizer keeps more with each, as L-BFGS does up to its history_size. A smaller one lowers that"
    text = f"Memory grows {format_bytes(grows)} a step{mostly if by_category[category] > 0 else ''}: {why}."
    yield Finding("growth", text, grows)


RULES: tuple[Rule, ...] = (_unused_graph, _second_step, _only_step, _first_step, _growth)

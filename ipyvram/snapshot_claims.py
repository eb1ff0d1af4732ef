"""What the steps in a snapshot say of what was there before them: a trace and its phases in, `Claim`s out.

Nobody named a tensor while it was recorded. But a backward leaves a gradient of each parameter's size, and an optimizer keeps so
many tensors of that size for each. So of what was there before the first forward and stayed, as many of a size as there are
gradients are parameters, and one, two or three times as many more are optimizer state. Which of them are which does not
change the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ipyvram.ledger import Ints, Ledger, build
from ipyvram.marks import PhaseSpan, phase_spans
from ipyvram.recording import Claim, Mark, Trace

_STATES = (1, 2, 3)  # momentum; Adam's two moments; with AMSGrad's maximum


def claims_of(trace: Trace, marks: tuple[Mark, ...], not_of: int = 0) -> tuple[Claim, ...]:
    """Claims of parameters and optimizer state, made when the first forward began; none of a block of ``not_of`` bytes."""
    phases = phase_spans(marks, trace.stop_ns)
    forward = next((i for i, p in enumerate(phases) if p.name == "forward"), None)
    if forward is None:
        return ()
    backward = next((p for p in phases[forward:] if p.name == "backward"), None)
    if backward is None:
        return ()
    ledger = build(trace)
    gradients = _sizes(ledger, _kept(ledger, backward))
    made = _sizes(ledger, np.concatenate([_kept(ledger, p) for p in phases if p.name == "optimizer"] or [_NONE]))
    stepped = any(p.name == "optimizer" for p in phases)
    before, after = max(0, _instant(ledger, phases[forward].begin_ns - 1)), _instant(ledger, backward.end_ns)
    there = np.flatnonzero((ledger.born <= before) & (ledger.died > after))
    found = []
    for size, rows in _by_size(ledger, there):
        count = gradients[size] if size != not_of else 0
        found += [(row, "parameters") for row in rows[:count]]
        rest = rows[count:]
        replaced = not made[size] or bool((ledger.died[rest] < ledger.instants).all())
        if stepped and replaced and len(rest) in [n * count for n in _STATES]:
            found += [(row, "optimizer_state") for row in rest]
    when = int(ledger.time_ns[before])
    return tuple(
        Claim(when, trace.device, int(ledger.address[row]), int(ledger.requested[row]), category, "")
        for row, category in found
    )


_NONE: Ints = np.zeros(0, np.int64)


def _instant(ledger: Ledger, time_ns: int) -> int:
    return int(np.searchsorted(ledger.time_ns, time_ns, side="right")) - 1


def _kept(ledger: Ledger, phase: PhaseSpan) -> Ints:
    """Rows of what a phase made and left."""
    begin, end = max(0, _instant(ledger, phase.begin_ns - 1)), _instant(ledger, phase.end_ns)
    return np.flatnonzero((ledger.born > begin) & (ledger.born <= end) & (ledger.died > end))


def _sizes(ledger: Ledger, rows: Ints) -> Counter[int]:
    return Counter(ledger.requested[rows].tolist())


def _by_size(ledger: Ledger, rows: Ints) -> Iterator[tuple[int, list[int]]]:
    """Bytes asked for, and the rows of that size: first what stayed longest, of that the oldest. A model is there before its
    optimizer's state, and outlives it where each step makes a new one."""
    order = rows[np.lexsort((ledger.born[rows], -ledger.died[rows], ledger.requested[rows]))]
    for group in np.split(order, np.flatnonzero(np.diff(ledger.requested[order])) + 1):
        if len(group):
            yield int(ledger.requested[group[0]]), group.tolist()

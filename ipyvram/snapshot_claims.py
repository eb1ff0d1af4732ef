"""What the steps in a snapshot say of what was there before them: a trace and its phases in, `Claim`s out.

Nobody named a tensor while it was recorded. But a backward leaves a gradient of each parameter's size, and an optimizer keeps so
many tensors of that size for each. So of what was there before the first forward and stayed, as many of a size as there are
gradients are parameters, and one, two or three times as many more are optimizer state. Which of them are which does not
change the sums.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from ipyvram.ledger import Ints, Ledger, build
from ipyvram.marks import PhaseSpan, phase_spans
from ipyvram.recording import Claim, Mark, Trace

_STATES = (1, 2, 3)  # momentum; Adam's two moments; with AMSGrad's maximum


def claims_of(trace: Trace, marks: tuple[Mark, ...], not_of: int = 0) -> tuple[Claim, ...]:
    """Claims of parameters and optimizer state, made when the first forward began; none of a block of ``not_of`` bytes."""
    phases = phase_spans(marks, trace.stop_ns)
    first = list(itertools.dropwhile(lambda phase: phase.name != "forward", phases))
    backward = next((phase for phase in first if phase.name == "backward"), None)
    if backward is None:
        return ()
    ledger, steps = build(trace), [phase for phase in phases if phase.name == "optimizer"]
    gradients, made = _left_by(ledger, [backward]), _left_by(ledger, steps)
    del gradients[not_of]
    before, after = max(0, _instant(ledger, first[0].begin_ns - 1)), _instant(ledger, backward.end_ns)
    found = []
    for size, rows in _by_size(ledger, np.flatnonzero((ledger.born <= before) & (ledger.died > after))):
        count = gradients[size]
        found += [(row, "parameters") for row in rows[:count]]
        rest = rows[count:]
        # What a step has made in its place is another state.
        stays = bool(made[size]) and not (ledger.died[rest] < ledger.instants).all()
        if steps and not stays and len(rest) in [n * count for n in _STATES]:
            found += [(row, "optimizer_state") for row in rest]
    when = int(ledger.time_ns[before])
    return tuple(
        Claim(when, trace.device, int(ledger.address[row]), int(ledger.requested[row]), category, "")
        for row, category in found
    )


def _instant(ledger: Ledger, time_ns: int) -> int:
    return int(np.searchsorted(ledger.time_ns, time_ns, side="right")) - 1


def _left_by(ledger: Ledger, phases: Iterable[PhaseSpan]) -> Counter[int]:
    """Sizes of what phases made and left."""
    sizes: Counter[int] = Counter()
    for phase in phases:
        begin, end = max(0, _instant(ledger, phase.begin_ns - 1)), _instant(ledger, phase.end_ns)
        left = (ledger.born > begin) & (ledger.born <= end) & (ledger.died > end)
        sizes.update(ledger.requested[left].tolist())
    return sizes


def _by_size(ledger: Ledger, rows: Ints) -> Iterator[tuple[int, list[int]]]:
    """Bytes asked for, and the rows of that size: first what stayed longest, of that the oldest. A model is there before its
    optimizer's state, and outlives it where each step makes a new one."""
    order = rows[np.lexsort((ledger.born[rows], -ledger.died[rows], ledger.requested[rows]))]
    for group in np.split(order, np.flatnonzero(np.diff(ledger.requested[order])) + 1):
        if len(group):
            yield int(ledger.requested[group[0]]), group.tolist()

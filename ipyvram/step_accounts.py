"""The traced optimizer steps one by one, and forwards that no backward followed: phases and the account over time come in."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from ipyvram.attribution import Attribution
from ipyvram.batches import Batches
from ipyvram.claimed import RELEASED
from ipyvram.ledger import Ints, Ledger
from ipyvram.marks import PhaseSpan, root_forwards
from ipyvram.recording import Claim, Mark, Observation
from ipyvram.report_rows import StepAccount


def step_accounts(
    phases: tuple[PhaseSpan, ...],
    time_ns: Ints,
    accounts: dict[str, Ints],
    start_ns: int,
    batches: Batches,
) -> tuple[StepAccount, ...]:
    """One row for each step that an optimizer finished.

    Parameters
    ----------
    time_ns : int64, shape (instants,)
        When each instant of ``accounts`` began.
    accounts : dict of str to int64, shape (instants,)
        Category → bytes.
    start_ns : int
        What `StepAccount.start_s` counts from.
    batches : Batches
        The inputs of these steps.
    """
    total = sum(accounts.values(), np.zeros(len(time_ns), np.int64))
    ends = {p.step: p.end_ns for p in phases if p.name == "optimizer"}
    begins = [p.begin_ns for p in phases]
    rows, begin = list[StepAccount](), min(begins, default=0)
    for step, end in sorted(ends.items()):
        first = max(0, int(np.searchsorted(time_ns, begin, side="right")) - 1)
        last = max(first, int(np.searchsorted(time_ns, end, side="right")) - 1)
        top = first + int(np.argmax(total[first : last + 1]))
        rows.append(
            StepAccount(
                step=step,
                start_s=round((begin - start_ns) / 1e9, 6),
                end_s=round((end - start_ns) / 1e9, 6),
                peak_bytes=int(total[top]),
                end_bytes=int(total[last]),
                peak=_at(accounts, top),
                end=_at(accounts, last),
                peak_phase=_phase_at(phases, begins, int(time_ns[top])),
                batch=batches.size(begin if rows else 0, int(time_ns[top])) or batches.size(begin, end),
            )
        )
        begin = end
    return tuple(rows)


def _at(accounts: dict[str, Ints], instant: int) -> dict[str, int]:
    return {c: int(column[instant]) for c, column in accounts.items() if column[instant]}


def _phase_at(phases: tuple[PhaseSpan, ...], begins: list[int], time_ns: int) -> str:
    i = bisect_right(begins, time_ns) - 1
    return phases[i].name if i >= 0 and time_ns <= phases[i].end_ns else ""


def unused_graphs(marks: tuple[Mark, ...], ledger: Ledger, attribution: Attribution, device: str) -> list[Observation]:
    """Root forwards under autograd whose graph no backward ran through, and the most that one of them saved.

    ``holder`` is ``a step`` where an optimizer stepped after one of them: its backward is not to come.
    """
    forwards = [(begin, end) for begin, end, grad in root_forwards(marks) if grad]
    ends, is_used = [end for _, end in forwards], _use(marks)
    saved, good = [0] * len(forwards), set[int]()
    for row, claims in attribution.claims.items():
        graph = [c for c in claims if c.category in ("activations", RELEASED)]
        if not graph or ledger.born[row] == 0:
            continue
        forward = bisect_right(ends, graph[0].time_ns) - 1  # the graph is read when the root module has returned
        if forward < 0 or int(ledger.time_ns[ledger.born[row]]) < forwards[forward][0]:
            continue
        if any(map(is_used, graph)):
            good.add(forward)
        saved[forward] += int(ledger.bytes[row])
    unused = [forward for forward, count in enumerate(saved) if count and forward not in good]
    if not unused:
        return []
    stepped = max((m.time_ns for m in marks if m.kind == "optimizer"), default=0) > ends[unused[0]]
    most = max(saved[forward] for forward in unused)
    return [Observation("unused_graph", most, count=len(unused), device=device, holder="a step" if stepped else "")]


def _use(marks: tuple[Mark, ...]) -> Callable[[Claim], bool]:
    """Whether a claim tells that a backward used what a graph saved.

    Then the graph let go of it after a backward, or it was claimed by the walk that precedes one: the claim's next mark is the
    beginning of that backward.
    """
    phases = [m for m in marks if m.kind != "module"]
    borders, begins = [m.time_ns for m in phases], [m.kind == "backward" and m.begin for m in phases]

    def is_used(claim: Claim) -> bool:
        following = bisect_right(borders, claim.time_ns)
        return claim.category == RELEASED or (following < len(borders) and begins[following])

    return is_used

"""An instant in words: the phases of a cell and a time come in, ``step 3, end of forward`` goes out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ipyvram.marks import PhaseSpan

_WORDS = {"forward": "forward", "backward": "backward", "optimizer": "optimizer step"}


class Instant(NamedTuple):
    """``words``, and the phase and step in it (empty and 0 outside)."""

    words: str
    phase: str
    step: int


def instant(
    phases: tuple[PhaseSpan, ...],
    time_ns: int,
    *,
    steps: bool,
    parts: bool = True,
    last: int = 0,
    events_ns: NDArray[np.int64] | None = None,
) -> Instant:
    """Where a time lies.

    Parameters
    ----------
    steps : bool
        Whether the cell has optimizer steps to count.
    parts : bool
        Whether to say ``start of`` and ``end of``; a phase that an error cut short has no end.
    last : int
        The step after which there was no other: what follows is an evaluation, say. 0 where that is not known.
    events_ns : int64, ascending, optional
        Times of what happened. With them a phase's start and end are its first and last events, as in the picture: the same
        in every run, whatever made one of them wait.
    """
    for p in phases:
        if p.begin_ns <= time_ns < max(p.end_ns, p.begin_ns + 1):
            part = _part(p, time_ns, events_ns)
            where = "" if not parts else "start of " if part < 0.1 else "end of " if part > 0.9 else ""
            step = f"{_after(p.step, last) or f'step {p.step}'}, " if steps else ""
            return Instant(f"{step}{where}{_WORDS[p.name]}", p.name, p.step if steps else 0)
    if not phases:
        return Instant("", "", 0)
    following = next((p for p in phases if p.begin_ns > time_ns), None)
    if following is None:
        ended = phases[-1]
        if not steps:
            return Instant(f"after the last {ended.name}", "", 0)
        return Instant(
            f"after step {ended.step}" if ended.name == "optimizer" else f"after the last traced {ended.name}", "", 0
        )
    by_hand = following.begin_ns == following.end_ns  # a step that no optimizer told of ends here
    of_step = f"{'in the update' if by_hand else f'before the {following.name}'} of step {following.step}"
    if after := _after(following.step, last):
        of_step = f"{after}, before {following.name}"
    return Instant(of_step if steps else f"before {following.name}", "", 0)


def _part(p: PhaseSpan, time_ns: int, events_ns: NDArray[np.int64] | None) -> float:
    """How far a time is within a phase, from 0 to 1."""
    begin, at, end = p.begin_ns, time_ns, p.body_end_ns
    if events_ns is not None and len(events_ns):
        begin, at, end = (int(i) for i in np.searchsorted(events_ns, (begin, at, end)))
        end -= 1  # the last event in it
        if end <= begin:
            return 0.5
    return (at - begin) / max(1, end - begin)


def _after(step: int, last: int) -> str:
    return f"after step {last}" if 0 < last < step else ""

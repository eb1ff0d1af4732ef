"""An instant in words: the phases of a cell and a time come in, ``step 3, end of forward`` goes out."""

from __future__ import annotations

from typing import NamedTuple

from ipyvram.marks import PhaseSpan

_WORDS = {"forward": "forward", "backward": "backward", "optimizer": "optimizer step"}


class Instant(NamedTuple):
    """``words``, and the phase and step in it (empty and 0 outside)."""

    words: str
    phase: str
    step: int


def instant(phases: tuple[PhaseSpan, ...], time_ns: int, *, steps: bool, parts: bool = True) -> Instant:
    """Where a time lies.

    Parameters
    ----------
    steps : bool
        Whether the cell has optimizer steps to count.
    parts : bool
        Whether to say ``start of`` and ``end of``; a phase that an error cut short has no end.
    """
    for p in phases:
        if p.begin_ns <= time_ns < max(p.end_ns, p.begin_ns + 1):
            part = (time_ns - p.begin_ns) / max(1, p.body_end_ns - p.begin_ns)
            where = "" if not parts else "start of " if part < 0.1 else "end of " if part > 0.9 else ""
            step = f"step {p.step}, " if steps else ""
            return Instant(f"{step}{where}{_WORDS[p.name]}", p.name, p.step if steps else 0)
    if not phases:
        return Instant("", "", 0)
    following = next((p for p in phases if p.begin_ns > time_ns), None)
    if following is None:
        return Instant("after the last traced phase", "", 0)
    of_step = f"before the {following.name} of step {following.step}"
    return Instant(of_step if steps else f"before {following.name}", "", 0)

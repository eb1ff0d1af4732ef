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


def instant(phases: tuple[PhaseSpan, ...], time_ns: int, *, steps: bool, parts: bool = True, last: int = 0) -> Instant:
    """Where a time lies.

    Parameters
    ----------
    steps : bool
        Whether the cell has optimizer steps to count.
    parts : bool
        Whether to say ``start of`` and ``end of``; a phase that an error cut short has no end.
    last : int
        The step after which there was no other: what follows is an evaluation, say. 0 where that is not known.
    """
    for p in phases:
        if p.begin_ns <= time_ns < max(p.end_ns, p.begin_ns + 1):
            part = (time_ns - p.begin_ns) / max(1, p.body_end_ns - p.begin_ns)
            where = "" if not parts else "start of " if part < 0.1 else "end of " if part > 0.9 else ""
            step = f"{_after(p.step, last) or f'step {p.step}'}, " if steps else ""
            return Instant(f"{step}{where}{_WORDS[p.name]}", p.name, p.step if steps else 0)
    if not phases:
        return Instant("", "", 0)
    following = next((p for p in phases if p.begin_ns > time_ns), None)
    if following is None:
        return Instant("after the last traced phase", "", 0)
    of_step = f"before the {following.name} of step {following.step}"
    if after := _after(following.step, last):
        of_step = f"{after}, before {following.name}"
    return Instant(of_step if steps else f"before {following.name}", "", 0)


def _after(step: int, last: int) -> str:
    return f"after step {last}" if 0 < last < step else ""

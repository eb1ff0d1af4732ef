"""Puts the times of the CUDA allocator's history onto our clock.

Torch stamps events with the processor's own counter and turns it into Unix time when a snapshot is taken, which is off by
some microseconds, or by more after the system's clock was stepped. The history also notes when `record_function` scopes
begin and end, on that same clock: an anchor is such a scope, with our clock read on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ipyvram.probes.clock import Clock

_NAME = "ipyvram clock "
_TIMES = 3  # scopes an anchor: the tightest counts


class _Bounds(NamedTuple):
    """Somewhere between, in ns of our clock, a scope began and ended."""

    before_ns: int
    after_ns: int


class Anchors:
    """Drops scopes while the history is on, and finds them again in its annotations."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._dropped: list[_Bounds] = []
        self._at: NDArray[np.float64] = np.empty(0)  # times of anchors on the history's clock
        self._shift: NDArray[np.float64] = np.empty(0)  # what to add there

    def drop(self) -> None:
        """Make a scope that says what time it is here; microseconds."""
        for _ in range(_TIMES):
            before = self._clock()
            with torch.autograd.profiler.record_function(f"{_NAME}{len(self._dropped)}"):
                pass
            self._dropped.append(_Bounds(before, self._clock()))

    def read(self, annotations: Iterable[Mapping[str, Any]]) -> None:
        """Learn the shift between the clocks from what the history noted of our scopes."""
        seen: dict[str, dict[str, int]] = {}
        for note in annotations:
            name = str(note.get("name", ""))
            if name.startswith(_NAME):
                seen.setdefault(name, {})[str(note.get("stage"))] = int(note["time_us"]) * 1000
        best: dict[int, tuple[float, float, float]] = {}  # group of scopes → (uncertainty, history's time, shift)
        for i, bounds in enumerate(self._dropped):
            stages = seen.get(f"{_NAME}{i}", {})
            if "START" in stages and "END" in stages:
                low, high = bounds.before_ns - stages["START"] - 999, bounds.after_ns - stages["END"]
                found = (float(high - low), float(stages["START"]), (low + high) / 2)
                best[i // _TIMES] = min(best.get(i // _TIMES, found), found)
        ordered = sorted(best.values(), key=lambda b: b[1])
        self._at, self._shift = np.array([b[1] for b in ordered]), np.array([b[2] for b in ordered])

    def to_ours(self, time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of the history on our clock; unchanged where no anchor was found."""
        if not len(self._at):
            return time_ns
        return time_ns + np.interp(time_ns.astype(np.float64), self._at, self._shift).astype(np.int64)

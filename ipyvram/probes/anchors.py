"""Puts the times of the CUDA allocator's history onto our clock.

Torch stamps events with the processor's own counter and turns it into Unix time when a snapshot is taken, which is off by
some microseconds, or by more after the system's clock was stepped. The history also notes when `record_function` scopes
begin and end, on that same clock: an anchor is such a scope, with our clock read on both sides.

Newer torch can also put an event of ours between the allocator's own (`_annotate_tensor`): such a pin needs no clock, it
says what came before and what after.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ipyvram.probes.clock import Clock
from ipyvram.snapshot_parts import KNOWN_ACTIONS

_NAME = "ipyvram clock "
_TIMES = 3  # scopes an anchor: the tightest counts
_PIN = "ipyvram pin "
_MAX_PINS = 20_000  # they take room in the history


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
        self._annotate = _annotation()
        self._pinned: list[int] = []  # our time of each pin

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

    def pin(self, pointer: int) -> bool:
        """Put an event of ours into the history, on the block at ``pointer``; False where torch cannot."""
        if self._annotate is None or len(self._pinned) >= _MAX_PINS:
            return False
        self._pinned.append(self._clock())
        try:
            self._annotate(pointer, f"{_PIN}{len(self._pinned) - 1}")
        except Exception as error:
            if "no live allocation" not in str(error):  # only this one is not the allocator's: a library's memory
                self._annotate = None
            return False
        return True

    def settle(self, entries: Iterable[Mapping[str, Any]], time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of events, moved where pins among them tell that they were earlier or later.

        Parameters
        ----------
        entries : iterable of mapping
            The history of a device, pins included.
        time_ns : int64, shape (events,)
            Of those entries that are events of a recording.
        """
        low = np.full(len(time_ns) + 1, np.iinfo(np.int64).min)
        high = np.full(len(time_ns) + 1, np.iinfo(np.int64).max)
        for place, number in _pins(entries):
            if number < len(self._pinned) and place <= len(time_ns):
                low[place] = max(low[place], self._pinned[number])  # events from here on are later
                high[place] = min(high[place], self._pinned[number])  # those before are earlier
        low = np.maximum.accumulate(low)[:-1]
        high = np.minimum.accumulate(high[::-1])[::-1][1:]
        return np.clip(time_ns, low, high)


def _annotation() -> Any:
    supported = getattr(torch._C, "_cuda_memoryMetadataSupported", None)
    if supported is None or not supported():
        return None
    return getattr(torch._C, "_cuda_annotateMemory", None)


def _pins(entries: Iterable[Mapping[str, Any]]) -> Iterable[tuple[int, int]]:
    """Before which event a pin lies, and its number."""
    place = 0
    for entry in entries:
        if entry["action"] in KNOWN_ACTIONS:
            place += 1
        elif entry["action"] == "annotate" and str(entry.get("user_metadata", "")).startswith(_PIN):
            yield place, int(entry["user_metadata"].removeprefix(_PIN))

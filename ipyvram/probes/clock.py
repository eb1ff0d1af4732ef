"""One clock for all probes: Unix nanoseconds that never stand still or step back.

The CUDA allocator's history is stamped with Unix time, so ours is too; but `time.time_ns` may be stepped by NTP and
repeats within its resolution, and records of several probes must keep their order.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Call it for the time in ns; every call returns more than any call before, from any thread."""

    def __init__(self, ticks: Callable[[], int] = time.perf_counter_ns, unix: Callable[[], int] = time.time_ns) -> None:
        self._ticks, self._offset, self._last = ticks, unix() - ticks(), 0

    def __call__(self) -> int:
        # No lock, which would take longer than all the rest: the interpreter changes threads at calls and loops, and
        # there is neither between the comparison and what is kept.
        now = self._ticks() + self._offset
        if now <= self._last:
            now = self._last + 1
        self._last = now
        return now

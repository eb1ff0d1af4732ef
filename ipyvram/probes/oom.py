"""The instant of an out-of-memory on CUDA: what was asked for and how full the allocator was, before anything is freed.

Torch's observer cannot be detached. It is attached once in the life of the process, and does nothing between cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ipyvram.probes import counters, snapshots
from ipyvram.probes.beginning import when_in_use
from ipyvram.probes.clock import Clock
from ipyvram.recording import OomEvent

_attached = False
_listener: Callable[[int, int, int, int], None] | None = None


def _observe(device: int, requested: int, limit: int, free: int) -> None:
    """Called by torch on the failing thread: a failure of ours must not replace the user's error."""
    listener = _listener
    if listener is not None:
        try:
            listener(device, requested, limit, free)
        except Exception:
            pass


def _attach() -> None:
    """Nothing where torch has no observer: a build without CUDA, an allocator other than its own."""
    global _attached
    attach: Any = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    backend: Any = getattr(torch.cuda, "get_allocator_backend", lambda: "native")
    if attach is not None and not _attached and backend() == "native":
        attach(_observe)
        _attached = True


class OomWatch:
    """Keeps the last `OomEvent` between `start` and `stop`; a cell may catch earlier ones and go on.

    Attributes
    ----------
    event : OomEvent or None
    """

    def __init__(self, clock: Clock, stacks: Callable[[], int]) -> None:
        self._clock, self._stacks = clock, stacks
        self._cancel: Callable[[], None] = lambda: None
        self.event: OomEvent | None = None

    def start(self) -> None:
        """Listen from now on; the observer itself is attached when CUDA is in use, perhaps by the cell itself."""
        global _listener
        _listener = self._see
        if not _attached:
            self._cancel = when_in_use(_attach)

    def stop(self) -> None:
        """No longer listen."""
        global _listener
        self._cancel()
        if _listener == self._see:
            _listener = None

    def _see(self, device: int, requested: int, limit: int, free: int) -> None:
        name = f"cuda:{device}"
        figures = counters.read(name)
        self.event = OomEvent(
            time_ns=self._clock(),
            device=name,
            requested_bytes=requested,
            limit_bytes=limit,
            allocated_bytes=figures.get("allocated"),
            reserved_bytes=figures.get("reserved"),
            free_bytes=free,
            largest_free_bytes=_largest_free(device),
            stack=self._stacks(),
        )


def _largest_free(device: int) -> int | None:
    """The largest free block among the allocator's segments of a device; None where to ask would take seconds."""
    if not snapshots.segments_alone() and torch._C._cuda_isHistoryEnabled():
        return None
    blocks = [b for s in snapshots.segments() if s["device"] == device for b in s["blocks"]]
    return max((int(b["size"]) for b in blocks if b["state"] == "inactive"), default=0)

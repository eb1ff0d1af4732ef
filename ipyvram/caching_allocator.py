"""Model of torch's CUDA caching allocator: what a program asks for in, addresses, segments and out-of-memory out.

`replay` and `replay_trace` follow what a real allocator did; `CachingAllocator` predicts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ipyvram.allocator.model import CachingAllocator, OutOfMemory
from ipyvram.allocator.replay import TraceReplay, replay_events, replay_trace
from ipyvram.allocator.rules import Settings
from ipyvram.recording import Action, Events
from ipyvram.snapshot_parts import events_of, private_pools_of, segments_of

__all__ = ["CachingAllocator", "OutOfMemory", "Replay", "Settings", "TraceReplay", "replay", "replay_trace"]


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """Every device of a snapshot, replayed; counts are sums over devices, peaks are of the device with the highest.

    Attributes
    ----------
    allocations : int
        Allocation events.
    address_mismatches, segment_mismatches, final_mismatches : int
        See `TraceReplay`.
    peak_allocated_bytes, peak_reserved_bytes : int
    devices : dict of int to TraceReplay
        Devices that the snapshot says something about, by index.
    """

    allocations: int
    address_mismatches: int
    segment_mismatches: int
    final_mismatches: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    devices: dict[int, TraceReplay]


def replay(snapshot: Mapping[str, Any]) -> Replay:
    """Replay every event of ``torch.cuda.memory._snapshot()`` through the model.

    Raises
    ------
    ValueError
        The snapshot has no ``segments`` and ``device_traces``.
    """
    if "segments" not in snapshot or "device_traces" not in snapshot:
        raise ValueError("a snapshot of torch.cuda.memory has 'segments' and 'device_traces'; this has not")
    settings = Settings.from_snapshot(snapshot.get("allocator_settings") or {})
    devices: dict[int, TraceReplay] = {}
    allocations = peak = 0
    for index, trace in enumerate(snapshot["device_traces"]):
        segments, events = segments_of(snapshot["segments"], index), events_of(trace)
        if len(events) or segments:
            devices[index] = replay_events(events, segments, settings, {}, private_pools_of(trace))
            allocations += int(np.count_nonzero(events.action == Action.ALLOC))
            peak = max(peak, _peak_allocated(events, devices[index]))
    every = devices.values()
    return Replay(
        allocations=allocations,
        address_mismatches=sum(d.address_mismatches for d in every),
        segment_mismatches=sum(d.segment_mismatches for d in every),
        final_mismatches=sum(d.final_mismatches for d in every),
        peak_allocated_bytes=peak,
        peak_reserved_bytes=max((max(d.reserved_start, int(d.reserved.max(initial=0))) for d in every), default=0),
        devices=devices,
    )


def _peak_allocated(events: Events, replayed: TraceReplay) -> int:
    sign = np.select([events.action == Action.ALLOC, events.action == Action.FREE_REQUESTED], [1, -1], 0)
    change = np.cumsum(sign * replayed.block_bytes)
    return replayed.allocated_start + max(0, int(change.max(initial=0)))

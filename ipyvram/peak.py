"""The peak of a device: the highest instant of its trace, and what the allocator's counters or the samples prove beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ipyvram.recording import Recording, Samples
from ipyvram.report_rows import AFTER_TRACE, TensorRow
from ipyvram.stretches import Stretch

_GRAIN = 512  #: the allocator serves multiples of it (CUDACachingAllocator.cpp, `kMinBlockSize`)
_HANDLES = 2  #: of cuBLAS, each with a workspace: the program's thread and the thread of backward


@dataclass(frozen=True, slots=True)
class Peak:
    """``bytes`` at the ``instant`` of the trace, of which ``unseen`` rows stand for what the trace itself did not see."""

    instant: int
    bytes: int
    account: dict[str, int]
    provenance: str
    unseen: tuple[TensorRow, ...] = ()

    @property
    def later(self) -> int:
        """Bytes by which it was higher after the traced part."""
        return sum(row.bytes for row in self.unseen if row.name == AFTER_TRACE)


def peak_of(stretch: Stretch, device: str, samples: Samples | None, traced: bool) -> Peak:
    """The highest instant of a stretch; more only when a counter or a sample proves that there was more."""
    at = int(np.argmax(stretch.total))
    account, seen = stretch.at(at), int(stretch.total[at])
    whole, how = _proven(stretch.recording, device, samples, seen, "exact" if traced else "sampled")
    unseen = _unseen(stretch, device, at, whole - seen)
    for row in unseen:
        account[row.category] += row.bytes
    return Peak(at, whole, account, how, unseen)


def _proven(recording: Recording, device: str, samples: Samples | None, seen: int, how: str) -> tuple[int, str]:
    before, after = (c.get(device, {}) for c in (recording.counters_start, recording.counters_end))
    if after.get("allocated_peak", 0) > max(before.get("allocated_peak", 0), seen):
        return after["allocated_peak"], "exact"  # it rose during the cell: the allocator's own high-water mark
    if samples is not None and "allocated" in samples.columns:
        sampled = int(np.nanmax(samples.columns["allocated"], initial=0))
        if sampled > seen:
            return sampled, "sampled"
    return seen, how


def _unseen(stretch: Stretch, device: str, at: int, left: int) -> tuple[TensorRow, ...]:
    """What stands for the bytes that nothing in the trace accounts for.

    A trace of storages, which is all there is where the allocator keeps no history (`cudaMallocAsync`), sees neither the
    workspaces that torch allocates for cuBLAS and cuBLASLt nor that the allocator rounds up.
    """
    rows, environment = [], stretch.recording.environment
    if device.startswith("cuda") and stretch.trace.source == "storages" and len(stretch.trace.events):
        handles, rounding = _HANDLES, _GRAIN * len(stretch.attribution.category_at(at))
        # Where each product has its own workspace: less than one, when what the trace saw was lower at that product.
        product = min(left, int(environment.get("product_workspace_bytes", "0") or 0))
        if product >= rounding:
            rows.append(TensorRow(product, "temporaries", "cuBLAS workspace"))
            left -= product
        for library in ("cuBLAS", "cuBLASLt"):  # a workspace of the second's own lies beside one of the first
            size = int(environment.get(f"{library.lower()}_workspace_bytes", "0") or 0)
            handles = min(left // size, handles) if size else 0
            if handles:
                rows.append(TensorRow(handles * size, "workspaces", f"{library} workspace", count=handles))
                left -= handles * size
        if 0 < left < rounding:
            rows.append(TensorRow(left, "other", "rounding of the allocator"))
            left = 0
    return (*rows, TensorRow(left, "other", AFTER_TRACE)) if left else tuple(rows)

"""The model against real traces: not one block elsewhere, not one segment of another size."""

from __future__ import annotations

import pytest

from ipyvram.caching_allocator import replay
from tests.traces import FILES, load, needs_traces

#: Peaks of allocated and reserved memory in MiB, as published beside the traces.
PEAKS_MIB = {
    "niu_f_100": (397.012, 442), "niu_f_200": (841.780, 902), "niu_f_200_mixed": (669.104, 708),
    "niu_fb_100": (663.448, 750), "niu_fb_200": (1177.440, 1326),
    "wedson_medium_128_inference": (1658.371, 1682), "wedson_medium_512_train": (11858.458, 12074),
    "sil_mem_snapshot": (3098.626, 3606), "sil_forward_bf16_128": (777.992, 822),
    "bcrafton_memory_snapshot": (3682.790, 4042), "magma_memory_snapshot": (13282.616, 13524),
}  # fmt: skip


@needs_traces
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name.split(".")[0])
def test_replays_a_real_trace_without_a_difference(path):
    snapshot = load(path)
    replayed = replay(snapshot)
    assert replayed.allocations == sum(e["action"] == "alloc" for t in snapshot["device_traces"] for e in t)
    assert (replayed.address_mismatches, replayed.segment_mismatches, replayed.final_mismatches) == (0, 0, 0)
    allocated, reserved = PEAKS_MIB[path.name.split(".")[0]]
    assert round(replayed.peak_allocated_bytes / 2**20, 3) == allocated
    assert replayed.peak_reserved_bytes == reserved * 2**20


def test_says_what_a_snapshot_is():
    with pytest.raises(ValueError, match="device_traces"):
        replay({"segments": []})

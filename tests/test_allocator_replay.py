"""A trace that the model does not explain is counted, followed, and does not spoil what comes after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ipyvram.allocator.replay import replay_events
from ipyvram.caching_allocator import CachingAllocator, Settings, replay_trace
from ipyvram.recording import Action, Events, Trace

MIB = 1 << 20


def recorded(*steps, **options):
    """A trace of allocations (positive sizes) and frees (negative: which one)."""
    rows, addresses = [], []

    def record(action, address, size, stream, private):
        rows.append((action, address, size, stream, len(rows) + 1, -1, -1))

    allocator = CachingAllocator(record=record, **options)
    for step in steps:
        if step > 0:
            addresses.append(allocator.alloc(step))
        else:
            allocator.free(addresses[-step - 1])
    return Trace("cuda:0", "history", 0, 1, Events.from_rows(rows), segments_end=allocator.segments()), allocator


STEPS = (3 * MIB, 5 * MIB, 700, -2, 4 * MIB, 30 * MIB, -1, 2 * MIB)


def test_sizes_of_blocks_and_of_the_cache():
    trace, allocator = recorded(*STEPS)
    replayed = replay_trace(trace)
    allocs = trace.events.action == Action.ALLOC
    # the last one takes the 3 MiB that were freed: a remainder of 1 MiB is not split off
    assert replayed.block_bytes[allocs].tolist() == [3 * MIB, 5 * MIB, 1024, 4 * MIB, 30 * MIB, 3 * MIB]
    assert replayed.reserved[-1] == allocator.reserved
    assert (replayed.allocated_start, replayed.reserved_start, replayed.mismatches) == (0, 0, 0)


def test_a_moved_block_is_one_mismatch_and_not_many():
    trace, _ = recorded(*STEPS)
    address = trace.events.address.copy()
    row = int(np.flatnonzero(trace.events.action == Action.ALLOC)[-1])
    address[row] += 4 * MIB
    moved = replace(trace, events=replace(trace.events, address=address))
    replayed = replay_trace(moved)
    assert replayed.address_mismatches == 1
    assert replayed.final_mismatches > 0
    assert replayed.block_bytes[row] == 2 * MIB


def test_of_two_free_blocks_of_one_size_either_is_explained():
    """Torch takes the one at the lowest address, or from 2.12 on the one made first, which a driver may put above the other."""
    trace, _ = recorded(30 * MIB, 30 * MIB, -1, -2, 30 * MIB)
    low, high = sorted({row.address for row in trace.segments_end})
    moved = {low: high, high: low}
    address = np.array([moved[a] for a in trace.events.address.tolist()])
    segments = tuple(
        s._replace(address=moved[s.address], blocks=tuple(b._replace(address=moved[b.address]) for b in s.blocks))
        for s in trace.segments_end
    )
    assert address[-1] == high
    replayed = replay_trace(replace(trace, events=replace(trace.events, address=address), segments_end=segments))
    assert (replayed.mismatches, replayed.final_mismatches) == (0, 0)
    assert replayed.block_bytes.tolist() == replay_trace(trace).block_bytes.tolist()


def test_a_segment_of_another_size_is_a_mismatch():
    trace, _ = recorded(*STEPS)
    size = trace.events.size.copy()
    row = int(np.flatnonzero(trace.events.action == Action.SEGMENT_ALLOC)[0])
    size[row] += 2 * MIB
    assert replay_trace(replace(trace, events=replace(trace.events, size=size))).segment_mismatches == 1


def test_a_block_outside_every_segment_is_followed_to_its_end():
    trace, _ = recorded(3 * MIB)
    lost = [
        (Action.ALLOC, 7, 5000, 0, 50, -1, -1),
        (Action.FREE_REQUESTED, 7, 5000, 0, 51, -1, -1),
        (Action.FREE_COMPLETED, 7, 5000, 0, 52, -1, -1),
    ]
    columns = zip(*(getattr(trace.events, n).tolist() for n in Events.__dataclass_fields__), strict=True)
    replayed = replay_trace(replace(trace, events=Events.from_rows([*columns, *lost])))
    assert replayed.address_mismatches == 1
    assert replayed.block_bytes[-3:].tolist() == [5120, 5120, 5120]
    assert replayed.final_mismatches == 0


@pytest.mark.parametrize("conf", ["roundup_power2_divisions:2", "expandable_segments:True", "large_segment_size_mb:40"])
def test_the_settings_of_the_trace_are_used(conf):
    trace, _ = recorded(*STEPS, 90 * MIB + 512, settings=Settings.from_conf(conf))
    told = replace(trace, allocator_settings={"PYTORCH_CUDA_ALLOC_CONF": conf} | _written(conf))
    assert replay_trace(told).mismatches == 0
    if "expandable" not in conf:  # that one shows in the trace itself
        assert replay_trace(trace).mismatches > 0


def _written(conf):
    divisions = Settings.from_conf(conf).roundup_power2_divisions
    return {"roundup_power2_divisions": {str(1 << i): d for i, d in enumerate(divisions)}}


def test_a_private_pool_that_ends_within_the_trace_is_told_by_its_events():
    rows, pools = [], {}

    def record(action, address, size, stream, private):
        if private != (0, 0) and action >= Action.SEGMENT_ALLOC:
            pools[len(rows)] = private
        rows.append((action, address, size, stream, len(rows) + 1, -1, -1))

    allocator = CachingAllocator(record=record)
    shared = allocator.alloc(2 * MIB)
    private = [allocator.alloc(2 * MIB, private=(0, 1)) for _ in range(2)]  # though the shared pool has room
    for address in private:
        allocator.free(address)
    allocator.alloc(3 * MIB)
    allocator.release_pool((0, 1), at_once=True)
    allocator.free(shared)
    events, end = Events.from_rows(rows), allocator.segments()
    told, untold = (replay_events(events, end, Settings(), {}, p) for p in (pools, {}))
    assert (told.mismatches, told.final_mismatches) == (0, 0)
    assert untold.mismatches


@pytest.mark.parametrize("first", [False, True])
def test_expandable_segments_switched_on_or_off_within_the_trace(first):
    rows = []
    allocator = CachingAllocator(
        100 * MIB,
        Settings(expandable_segments=first),
        record=lambda *row: rows.append((*row[:4], len(rows) + 1, -1, -1)),
    )
    allocator.alloc(3 * MIB)
    allocator.settings = Settings(expandable_segments=not first)
    kept = [allocator.alloc(size * MIB) for size in (4, 15, 2)]
    allocator.free(kept[1])
    allocator.alloc(5 * MIB)
    found = replay_events(Events.from_rows(rows), allocator.segments(), allocator.settings, {})
    assert (found.mismatches, found.final_mismatches) == (0, 0)

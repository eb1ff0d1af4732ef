"""Laws of the allocator: nothing overlaps, nothing is lost, and replaying what it did gives the same again."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipyvram.caching_allocator import CachingAllocator, OutOfMemory, Settings, replay_trace
from ipyvram.recording import Action, Events, Trace

MIB = 1 << 20
SIZES = st.one_of(
    st.integers(1, 4096), st.integers(4096, MIB), st.integers(MIB, 10 * MIB), st.integers(10 * MIB, 80 * MIB),
    st.sampled_from([512, 513, MIB, MIB + 1, 2 * MIB, 9 * MIB + 512, 10 * MIB, 20 * MIB, 20 * MIB + 1, 32 * MIB]),
)  # fmt: skip
CONFIGURATIONS = {
    "default": Settings(),
    "expandable": Settings(expandable_segments=True),
    "max split": Settings(max_split_size=24 * MIB),
    "max split, expandable": Settings(max_split_size=24 * MIB, expandable_segments=True),
    "power of two": Settings.from_conf("roundup_power2_divisions:[1:2,4:8,>:4]"),
    "garbage collection": Settings(garbage_collection_threshold=0.5),
    "large segments": Settings.from_conf("large_segment_size_mb:12,expandable_segments:True"),
}
#: What a program may do: allocate, free, free while another stream still reads, let that stream finish, empty the cache.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["alloc"] * 6 + ["free"] * 4 + ["lend", "settle", "empty"]), SIZES, st.integers(0, 1 << 20)
    ),
    max_size=60,
)


class Program:
    """Runs steps on an allocator, and keeps its own account of them."""

    def __init__(self, configuration, capacity=400 * MIB, streams=(0,), privates=((0, 0),)):
        self.rows = []
        self.allocator = CachingAllocator(
            capacity,
            configuration,
            allowed=capacity if configuration.garbage_collection_threshold else None,
            record=self.record,
        )
        self.live, self.waiting, self.failed = {}, [], 0
        self.streams, self.privates = streams, privates

    def record(self, action, address, size, stream, private):
        self.rows.append((action, address, size, stream, len(self.rows) + 1, -1, -1))

    def run(self, steps):
        for kind, size, pick in steps:
            if kind == "alloc":
                self.alloc(size, pick)
            elif kind in ("free", "lend") and self.live:
                address = sorted(self.live)[pick % len(self.live)]
                del self.live[address]
                self.allocator.free(address, awaiting=kind == "lend")
                if kind == "lend":
                    self.waiting.append(address)
            elif kind == "settle" and self.waiting:
                self.allocator.complete_free(self.waiting.pop(pick % len(self.waiting)))
            elif kind == "empty":
                self.allocator.empty_cache()
                self.waiting.clear()

    def alloc(self, size, pick):
        stream, private = self.streams[pick % len(self.streams)], self.privates[pick % len(self.privates)]
        retries = self.allocator.retries
        try:
            address = self.allocator.alloc(size, stream, private)
        except OutOfMemory:
            self.failed += 1
        else:
            assert address not in self.live
            self.live[address] = size
        if self.allocator.retries > retries:  # the cache was emptied: every stream was waited for
            self.waiting.clear()

    def trace(self, cut=0):
        """The trace as if recording had begun at about event ``cut``: a request and its segments are recorded together."""
        while cut and self.rows[cut - 1][0] in (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP):
            cut -= 1
        return Trace(
            "cuda:0", "history", 0, 1, Events.from_rows(self.rows[cut:]), segments_end=self.allocator.segments()
        )


def check_whole(program):
    """Blocks tile their segments without gap or overlap, and the counters are their sums."""
    allocator, blocks = program.allocator, [b for s in program.allocator.segments() for b in s.blocks]
    end = 0
    for segment in allocator.segments():
        assert segment.address >= end
        end = segment.address
        for block in segment.blocks:
            assert block.address == end
            end += block.size
        assert end == segment.address + segment.size
    live = {b.address: b for b in blocks if b.state == "active_allocated"}
    assert {a: b.requested for a, b in live.items()} == program.live
    assert all(b.size >= b.requested for b in live.values())
    assert allocator.allocated == sum(b.size for b in live.values())
    assert allocator.reserved == sum(b.size for b in blocks) <= allocator.capacity
    assert {b.address for b in blocks if b.state == "active_awaiting_free"} == set(program.waiting)
    assert allocator.allocated_peak >= allocator.allocated
    assert allocator.reserved_peak >= allocator.reserved
    free_neighbours = [
        (a, b)
        for s in allocator.segments()
        for a, b in zip(s.blocks, s.blocks[1:], strict=False)
        if a.state == b.state == "inactive"
    ]
    assert not free_neighbours


@pytest.mark.parametrize("name", CONFIGURATIONS)
@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_nothing_overlaps_and_nothing_is_lost(name, steps):
    program = Program(CONFIGURATIONS[name], streams=(0, 7), privates=((0, 0), (0, 0), (0, 1)))
    program.run(steps)
    check_whole(program)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@given(steps=STEPS, part=st.floats(0, 1))
@example(  # a private pool that grows in the middle of what it will be: its first range is as near, and does not touch
    steps=[("alloc", 9623553, 182), ("alloc", 16159233, 182), ("alloc", 1, 0), ("alloc", 16159233, 182)], part=0.25
)
@settings(max_examples=60, deadline=None)
def test_replaying_its_own_trace_finds_no_difference(name, steps, part):
    program = Program(CONFIGURATIONS[name], streams=(0, 7), privates=((0, 0), (0, 0), (0, 1)))
    program.run(steps)
    cut = int(part * len(program.rows))
    replayed = replay_trace(program.trace(cut), CONFIGURATIONS[name])
    found = (replayed.address_mismatches, replayed.segment_mismatches, replayed.final_mismatches)
    assert found == (0, 0, 0)


def events_of(allocator_kwargs, steps):
    """Names of the events of a list of ``(size or address index to free)``."""
    seen = []
    allocator = CachingAllocator(
        record=lambda action, address, size, *_: seen.append((action.name, size)), **allocator_kwargs
    )
    addresses = []
    for step in steps:
        if step > 0:
            addresses.append(allocator.alloc(step))
        else:
            allocator.free(addresses[-step])
    return allocator, seen


def test_a_full_card_gives_back_its_cache_and_tries_again():
    allocator, seen = events_of({"capacity": 100 * MIB}, [60 * MIB, -0, 70 * MIB])
    assert [e for e in seen if e[0].startswith("SEGMENT")] == [
        ("SEGMENT_ALLOC", 60 * MIB), ("SEGMENT_FREE", 60 * MIB), ("SEGMENT_ALLOC", 70 * MIB),
    ]  # fmt: skip
    assert (allocator.retries, allocator.ooms, allocator.reserved) == (1, 0, 70 * MIB)


def test_out_of_memory_tells_what_is_there():
    allocator, _ = events_of({"capacity": 100 * MIB}, [60 * MIB])
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        allocator.alloc(41 * MIB)
    assert (caught.value.requested, caught.value.allocated, caught.value.free) == (42 * MIB, 60 * MIB, 40 * MIB)
    assert allocator.ooms == 1


def test_the_share_of_the_process_is_a_limit_too():
    allocator, _ = events_of({"capacity": 100 * MIB, "allowed": 50 * MIB}, [40 * MIB])
    with pytest.raises(OutOfMemory):
        allocator.alloc(12 * MIB)


def test_garbage_collection_gives_back_the_oldest_segments_first():
    allocator, seen = events_of(
        {"capacity": 400 * MIB, "allowed": 400 * MIB, "settings": Settings(garbage_collection_threshold=0.3)},
        [40 * MIB, 50 * MIB, -0, 60 * MIB, -1, 110 * MIB],
    )
    assert ("SEGMENT_FREE", 40 * MIB) in seen
    assert ("SEGMENT_FREE", 50 * MIB) not in seen
    assert allocator.retries == 0


def test_expandable_segments_do_not_fragment():
    """Four freed neighbours serve one request of their sum; plain segments cannot be joined."""
    steps = [30 * MIB] * 4 + [0, -1, -2, -3] + [120 * MIB]
    plain, _ = events_of({}, steps)
    expandable, _ = events_of({"settings": Settings(expandable_segments=True)}, steps)
    assert plain.reserved == 240 * MIB
    assert expandable.reserved == 120 * MIB


def test_a_private_pool_is_kept_until_it_is_released():
    allocator = CachingAllocator()
    allocator.free(allocator.alloc(30 * MIB, private=(0, 1)))
    allocator.alloc(30 * MIB)
    allocator.empty_cache()
    assert allocator.reserved == 60 * MIB
    allocator.release_pool((0, 1))
    allocator.empty_cache()
    assert allocator.reserved == 30 * MIB


def test_inactive_split_is_the_rest_of_segments_in_use():
    allocator = CachingAllocator()
    allocator.alloc(3 * MIB)
    allocator.free(allocator.alloc(30 * MIB))
    assert allocator.inactive_split == 17 * MIB


def test_the_peak_of_memory_counts_what_a_request_that_failed_had_mapped():
    allocator = CachingAllocator(40 * MIB, Settings(expandable_segments=True))
    first = allocator.alloc(15 * MIB)
    allocator.alloc(2 * MIB)
    allocator.free(first)
    with pytest.raises(OutOfMemory):
        allocator.alloc(36 * MIB)
    assert allocator.reserved_peak == allocator.reserved == 20 * MIB


def test_a_private_pool_that_ends_gives_back_what_it_caches_at_once_where_asked():
    rows = []
    allocator = CachingAllocator(record=lambda *row: rows.append(row[0]))
    used, lent, free = (allocator.alloc(12 * MIB, private=(0, 1)) for _ in range(3))
    allocator.free(lent, awaiting=True)
    allocator.free(free)
    allocator.release_pool((0, 1), at_once=True)
    assert rows[-3:] == [Action.FREE_COMPLETED, Action.SEGMENT_FREE, Action.SEGMENT_FREE]
    allocator.free(used)
    assert allocator.reserved == 12 * MIB
    allocator.empty_cache()
    assert allocator.reserved == 0

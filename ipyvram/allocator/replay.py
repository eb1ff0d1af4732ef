"""Follows a trace of the CUDA caching allocator through the model: block sizes, cache, fragmentation, mismatches.

In goes a `recording.Trace` (or what `torch.cuda.memory._snapshot` gives); out come the size of every block and the bytes
reserved after every event. The events say where each block lies; the model predicts the same, and every difference is
counted and then followed, so that one does not cause the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ipyvram.allocator.blocks import Blocks
from ipyvram.allocator.pools import SHARED, Live, Pool, is_small
from ipyvram.allocator.ranges import cause
from ipyvram.allocator.rules import SMALL_SEGMENT, Settings
from ipyvram.allocator.undo import ADDRESS_SPACE, Start, undo
from ipyvram.recording import Action, Block, Events, Segment, Trace

Ints = NDArray[np.int64]

_ALLOC, _FREE = int(Action.ALLOC), int(Action.FREE_REQUESTED)
_GIVE_UP = 10_000  # mismatches after which blocks are no longer searched for: the trace is of another allocator


@dataclass(frozen=True, slots=True, eq=False)
class TraceReplay:
    """One device's trace, replayed.

    Attributes
    ----------
    block_bytes : int64, shape (events,)
        Size of the block that an event makes or frees; the event's own size for segments.
    baseline : tuple of Block
        Blocks that were live, or awaiting their free, when the trace began, with their sizes.
    allocated_start, reserved_start : int
        Bytes in live blocks, and in segments, when the trace began.
    reserved : int64, shape (events,)
        Bytes in segments after each event.
    address_mismatches, segment_mismatches : int
        Blocks that the model would have put elsewhere, into one of another size; segments it would not have asked for, or of another size.
    final_mismatches : int
        Blocks of the end state that differ from the model's.
    """

    block_bytes: Ints
    baseline: tuple[Block, ...]
    allocated_start: int
    reserved_start: int
    reserved: Ints
    address_mismatches: int
    segment_mismatches: int
    final_mismatches: int

    @property
    def mismatches(self) -> int:
        """Events that the model does not explain."""
        return self.address_mismatches + self.segment_mismatches


def replay_trace(trace: Trace, settings: Settings | None = None) -> TraceReplay:
    """Replay a recorded trace; the blocks of its baseline give the sizes that its events cannot tell.

    ``settings`` default to the trace's own, and without them to torch's defaults.
    """
    hints = {b.address: b for b in trace.baseline if b.state != "inactive"} if trace.complete else {}
    return replay_events(trace.events, trace.segments_end, settings or settings_of(trace), hints, trace.private_pools)


def settings_of(trace: Trace) -> Settings:
    """What the allocator of a trace was set to: as the trace says it, and as its segments show."""
    settings = Settings.from_snapshot(trace.allocator_settings)
    if "expandable_segments" not in trace.allocator_settings and any(s.expandable for s in trace.segments_end):
        return replace(settings, expandable_segments=True)
    return settings


def replay_events(
    events: Events,
    segments_end: Sequence[Segment],
    settings: Settings,
    hints: Mapping[int, Block],
    private_pools: Mapping[int, tuple[int, int]] | None = None,
) -> TraceReplay:
    """Replay the events that led to ``segments_end``; see `allocator.undo.undo` for the rest."""
    private = private_pools or {}
    grown = events.action[np.isin(events.action, (Action.SEGMENT_ALLOC, Action.SEGMENT_MAP))] == Action.SEGMENT_MAP
    first = bool(grown[0]) if len(grown) else settings.expandable_segments
    switched = bool(np.any(grown != first)) or first != settings.expandable_segments
    settings = replace(settings, expandable_segments=first)
    start = undo(events, segments_end, settings, hints, private)
    allocated, reserved = start.blocks.allocated, start.blocks.reserved
    follower = _Follower(start, settings, events, segments_end, private)
    follower.switched = switched
    block_bytes, reserved_after = follower.follow()
    return TraceReplay(
        block_bytes=block_bytes,
        baseline=start.in_use,
        allocated_start=allocated,
        reserved_start=reserved,
        reserved=reserved_after,
        address_mismatches=follower.address_mismatches,
        segment_mismatches=follower.segment_mismatches,
        final_mismatches=_differences(start.blocks, segments_end),
    )


def _differences(blocks: Blocks, segments_end: Sequence[Segment]) -> int:
    """Blocks that only one of the two has."""
    want = {(b.address, b.size, b.state) for s in segments_end for b in s.blocks}
    have = {(a, b.size, "active_allocated") for a, b in blocks.live.items()}
    have |= {(a, b.size, "active_awaiting_free") for a, b in blocks.awaiting.items()}
    have |= {(a, s, "inactive") for pool in blocks.pools.values() for a, s in pool.free_blocks()}
    return len(want ^ have)


class _Follower:
    """Applies events to blocks, comparing each with what the model would do."""

    def __init__(
        self,
        start: Start,
        settings: Settings,
        events: Events,
        segments_end: Sequence[Segment],
        private_pools: Mapping[int, tuple[int, int]],
    ) -> None:
        self.blocks, self.settings, self.events = start.blocks, settings, events
        self._spaces = start.spaces
        self.rounded: list[int] = settings.round_all(events.size).tolist()
        self.address_mismatches = self.segment_mismatches = 0
        self.switched = False  # whether the program switched expandable segments on or off
        self._private = {s.address: s.private_pool for s in segments_end if s.private_pool != SHARED}
        self._told = private_pools
        self._only_shared = not self._private and not private_pools
        self._fresh: tuple[int, int] | None = None  # the free block that a new segment has just made
        self._lost: dict[int, int] = {}  # blocks that could not be placed → their size
        self._reserved_start = start.blocks.reserved
        self._rare: dict[int, Callable[[int, int, int, int], int]] = {
            Action.FREE_REQUESTED: self._request_free,
            Action.FREE_COMPLETED: self._complete_free,
            Action.SEGMENT_ALLOC: self._segment_alloc,
            Action.SEGMENT_FREE: self._segment_free,
            Action.SEGMENT_MAP: self._segment_map,
            Action.SEGMENT_UNMAP: self._segment_unmap,
        }

    def follow(self) -> tuple[Ints, Ints]:
        """Block size, and reserved bytes afterwards, for every event."""
        events, live = self.events, self.blocks.live
        sizes: list[int] = events.size.tolist()
        actions, addresses, streams = events.action.tolist(), events.address.tolist(), events.stream.tolist()
        pairs = self._pairs()
        skip = -1
        for i, action in enumerate(actions):
            if action == _ALLOC:
                sizes[i] = self._alloc(i, addresses[i], streams[i], sizes[i])
            elif i == skip:  # done together with the event before it
                continue
            elif action == _FREE and pairs[i] and addresses[i] in live:
                sizes[i] = sizes[i + 1] = self.blocks.free(addresses[i])
                skip = i + 1
            elif action in self._rare:
                sizes[i] = self._rare[action](i, addresses[i], streams[i], sizes[i])
        return np.array(sizes, np.int64), self._reserved()

    def _pairs(self) -> list[bool]:
        """Whether an event is a free that is completed by the next: nearly all are."""
        action, address = self.events.action, self.events.address
        followed = (action[:-1] == _FREE) & (action[1:] == Action.FREE_COMPLETED) & (address[:-1] == address[1:])
        return [*followed.tolist(), False]

    def _reserved(self) -> Ints:
        action, size = self.events.action, self.events.size
        more = (action == Action.SEGMENT_ALLOC) | (action == Action.SEGMENT_MAP)
        less = (action == Action.SEGMENT_FREE) | (action == Action.SEGMENT_UNMAP)
        return self._reserved_start + np.cumsum(np.where(more, size, np.where(less, -size, 0)))

    def _pool(self, rounded: int, stream: int, address: int, i: int = -1) -> Pool:
        """The pool of a block, or of the segment that event ``i`` is about."""
        if self._only_shared:
            return self.blocks.pool(is_small(rounded), stream)
        segment = self.blocks.segment_of(address)
        if segment is not None:
            private = segment[1].pool.private
        elif self._told:
            private = self._told.get(i, SHARED)
        else:
            private = self._private.get(address, SHARED)
        return self.blocks.pool(is_small(rounded), stream, private)

    def _alloc(self, i: int, address: int, stream: int, requested: int) -> int:
        rounded, blocks = self.rounded[i], self.blocks
        pool = self._pool(rounded, stream, address)
        fit = self._fresh or self._find(pool, rounded)
        if fit is not None and fit[0] != address and blocks.is_free(address, fit[1], pool):
            # As good: the first of its size is by address up to torch 2.11, then by when it was made.
            fit = (address, fit[1])
        if self.switched and (fit is None or fit[0] != address):
            fit = self._find_switched(pool, rounded, address) or fit
        self._fresh = None
        if fit is None or fit[0] != address:
            self.address_mismatches += 1
            return self._force(address, rounded, requested)
        block = fit[1]
        taken = rounded if self.settings.may_split(block, rounded, pool.small) else block
        blocks.take(address, taken, block, requested, pool)
        return taken

    def _find(self, pool: Pool, rounded: int) -> tuple[int, int] | None:
        return self.blocks.find(pool, rounded, self.settings) or self._grown(pool, rounded)

    def _find_switched(self, pool: Pool, rounded: int, address: int) -> tuple[int, int] | None:
        """Where the block is found once expandable segments are switched on, or off: then they have been."""
        before = self.settings
        self._switch(not before.expandable_segments)
        fit = self._find(pool, rounded)
        if fit is None or fit[0] != address:
            self.settings = before
            return None
        return fit

    def _switch(self, expandable: bool) -> None:
        if self.switched and self.settings.expandable_segments != expandable:
            self.settings = replace(self.settings, expandable_segments=expandable)

    def _grown(self, pool: Pool, rounded: int) -> tuple[int, int] | None:
        """A block refused as too large to be split serves all the same where an expandable segment would grow."""
        begin = self.blocks.room_to_grow(pool, rounded) if self.settings.expandable_segments else None
        block = 0 if begin is None else self.blocks.free_at(begin) or 0
        return None if begin is None or block < rounded else (begin, block)

    def _force(self, address: int, rounded: int, requested: int) -> int:
        """Put a block where the trace has it although the model disagrees."""
        blocks = self.blocks
        around = blocks.free_around(address, rounded) if self.address_mismatches < _GIVE_UP else None
        if around is None:
            self._lost[address] = rounded
            return rounded
        begin, pool = around
        whole = blocks.remove_free(begin, pool)
        if begin < address:
            blocks.add_free(begin, address - begin, pool)
        block = begin + whole - address
        taken = rounded if self.settings.may_split(block, rounded, pool.small) else block
        blocks.place(address, Live(taken, requested, pool))
        if taken < block:
            blocks.add_free(address + taken, block - taken, pool)
        return taken

    def _request_free(self, i: int, address: int, stream: int, requested: int) -> int:
        if address in self.blocks.live:
            return self.blocks.request_free(address).size
        if address not in self._lost:
            self.address_mismatches += 1
        return self._lost.get(address, self.rounded[i])

    def _complete_free(self, i: int, address: int, stream: int, requested: int) -> int:
        waiting = self.blocks.awaiting.get(address)
        if waiting is None:
            return self._lost.pop(address, self.rounded[i])
        self.blocks.complete_free(address)
        return waiting.size

    # -- segments ----------------------------------------------------------------------------------------------------

    def _wanted(self, i: int) -> int | None:
        """Rounded size of the allocation that a new segment is for."""
        j = cause(self.events, i)
        return None if j is None else self.rounded[j]

    def _segment_alloc(self, i: int, address: int, stream: int, size: int) -> int:
        self._switch(expandable=False)
        wanted = self._wanted(i)
        pool = self._pool(size - SMALL_SEGMENT if wanted is None else wanted, stream, address, i)
        if wanted is not None:
            missed = self.blocks.find(pool, wanted, self.settings) is None
            self.segment_mismatches += not missed or self.settings.segment_size(wanted) != size
        self.blocks.reserve(address, size, pool)
        fresh = self.blocks.add_free(address, size, pool)
        self._fresh = None if wanted is None else fresh
        return size

    def _segment_free(self, i: int, address: int, stream: int, size: int) -> int:
        try:
            self.blocks.release(address)
        except ValueError:
            self.segment_mismatches += 1
        return size

    def _segment_map(self, i: int, address: int, stream: int, size: int) -> int:
        self._switch(expandable=True)
        wanted = self._wanted(i)
        segment = self.blocks.segment_of(address)
        if segment is None:
            pool = self._pool(size % self.settings.large_segment if wanted is None else wanted, stream, address, i)
            following = bisect_right(self._spaces, address)
            end = self._spaces[following] if following < len(self._spaces) else address + ADDRESS_SPACE
            self.blocks.reserve(address, end - address, pool, expandable=True)
        else:
            pool = segment[1].pool
        if wanted is not None:
            granule = self.settings.granule(pool.small)
            expected = -(-(wanted - self.blocks.free_before(address)) // granule) * granule
            room = self.blocks.unmapped.get(address, 0)
            # After memory was taken away for it, the request grows a segment without another search.
            missed = self._after_unmap(i) or self.blocks.find(pool, wanted, self.settings) is None
            self.segment_mismatches += not missed or size != min(expected, room)
        fresh = self.blocks.map(address, size)
        self._fresh = fresh if wanted is not None and fresh[1] >= wanted else None
        return size

    def _after_unmap(self, i: int) -> bool:
        before = self.events.action[:i]
        while len(before) and before[-1] == Action.SEGMENT_MAP:
            before = before[:-1]
        return bool(len(before)) and before[-1] in (Action.SEGMENT_UNMAP, Action.SEGMENT_FREE)

    def _segment_unmap(self, i: int, address: int, stream: int, size: int) -> int:
        try:
            self.blocks.unmap(address, size)
            self.blocks.release_unused_space(address)
        except ValueError:
            self.segment_mismatches += 1
        return size

"""From events and the segments after them to the blocks before them.

Most traces begin mid-process, and an event carries the size that was requested, not the block's. What undoing the events
leaves of the end state is where every block lay at the start; the rules of the allocator tell how large it was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from ipyvram.allocator_blocks import SHARED, Blocks, Live
from ipyvram.allocator_rules import LARGE_SEGMENT, SMALL_SEGMENT, SMALL_SIZE, Settings
from ipyvram.recording import Action, Block, Events, Segment

_ADDRESS_SPACE = 1 << 40  # of an expandable segment: more than any card, so that its end is never reached


def undo(
    events: Events, segments_end: Sequence[Segment], settings: Settings, hints: Mapping[int, Block]
) -> tuple[Blocks, tuple[Block, ...]]:
    """Blocks and segments from which ``events`` lead to ``segments_end``, and those of them that are in use.

    Parameters
    ----------
    hints : mapping of int to Block
        Blocks whose size at the start is known, by address.
    """
    start = _Start(events, settings, hints)
    start.build(segments_end)
    return start.blocks, tuple(start.in_use)


class _Start:
    def __init__(self, events: Events, settings: Settings, hints: Mapping[int, Block]) -> None:
        self.events, self.settings, self.hints = events, settings, hints
        self.blocks = Blocks()
        self.in_use: list[Block] = []
        allocs = np.flatnonzero(events.action == Action.ALLOC)
        order = np.argsort(events.address[allocs], kind="stable")
        self._alloc_at, self._alloc_index = events.address[allocs][order], allocs[order]
        self._freed_at: dict[int, int] = {}

    def build(self, segments_end: Sequence[Segment]) -> None:
        live = self._live_before(segments_end)
        occupied = sorted(live)
        ranges = _ranges_before(self.events, segments_end)
        self._reserve_expandable([*ranges, *segments_end])
        for segment in ranges:
            low, high = (bisect_left(occupied, a) for a in (segment.address, segment.address + segment.size))
            self._settle(segment, [live[a] for a in occupied[low:high]])

    def _live_before(self, segments_end: Sequence[Segment]) -> dict[int, Block]:
        """Blocks in use at the start by address; size 0 where only the request is known."""
        events = self.events
        found = {b.address: b for s in segments_end for b in s.blocks if b.state != "inactive"}
        picked = np.flatnonzero(events.action <= Action.FREE_COMPLETED)
        addresses, first = np.unique(events.address[picked], return_index=True)
        for address, i in zip(addresses.tolist(), picked[first].tolist(), strict=True):
            found.pop(address, None)
            if events.action[i] != Action.ALLOC:
                requested = events.action[i] == Action.FREE_REQUESTED
                state = "active_allocated" if requested else "active_awaiting_free"
                found[address] = Block(address, 0, int(events.size[i]), state)
                self._freed_at[address] = i
        return found

    def _reserve_expandable(self, ranges: list[Segment]) -> None:
        """Address spaces of expandable segments: from a pool's first mapped range to where another segment begins."""
        begins: list[Segment] = []
        for s in sorted(ranges, key=lambda s: s.address):
            if not begins or not (s.expandable and begins[-1].expandable and _pool_of(s) == _pool_of(begins[-1])):
                begins.append(s)
        ends = [*(s.address for s in begins[1:]), 1 << 62]
        for s, end in zip(begins, ends, strict=True):
            if s.expandable:
                size = min(end - s.address, _ADDRESS_SPACE)
                self.blocks.reserve(s.address, size, self.blocks.pool(*_pool_of(s)), expandable=True)

    def _settle(self, segment: Segment, inside: list[Block]) -> None:
        """Fill a segment with the blocks that lie in it; what is left is free."""
        blocks, end = self.blocks, segment.address + segment.size
        pool = blocks.pool(*_pool_of(segment))
        if segment.expandable:
            begin, size = blocks.map(segment.address, segment.size)
            blocks.remove_free(begin, pool)
        else:
            blocks.reserve(segment.address, segment.size, pool)
        cursor = segment.address
        for block, limit in zip(inside, [*(b.address for b in inside), end][1:], strict=True):
            if cursor < block.address:
                blocks.add_free(cursor, block.address - cursor, pool)
            size = block.size or self._size_of(block, limit, segment)
            self.in_use.append(block._replace(size=size))
            blocks.place(block.address, Live(size, block.requested, pool), awaiting=block.state != "active_allocated")
            cursor = block.address + size
        if cursor < end:
            blocks.add_free(cursor, end - cursor, pool)

    def _size_of(self, block: Block, limit: int, segment: Segment) -> int:
        """Size of a block that was freed during the trace: at least its rounded request, at most up to ``limit``.

        Blocks of the large pool keep a remainder of up to 1 MiB, and no free block there is that small: a short gap
        belongs to the block before it. In a longer one the first allocation made there while the block was live shows
        where the block ended.
        """
        hint, rounded = self.hints.get(block.address), self.settings.round(block.requested)
        if hint is not None and hint.requested == block.requested and block.address + hint.size <= limit:
            return hint.size
        room = limit - block.address
        if segment.pool == "small" or segment.expandable or room <= rounded:
            return min(rounded, room)
        if room - rounded <= SMALL_SIZE or rounded >= self.settings.max_split_size:
            return room
        window = [block.address + rounded, block.address + rounded + SMALL_SIZE + 1]
        low, high = np.searchsorted(self._alloc_at, window)
        seen = self._alloc_at[low:high][self._alloc_index[low:high] < self._freed_at[block.address]]
        return int(seen.min()) - block.address if len(seen) else rounded


def _pool_of(segment: Segment) -> tuple[bool, int, tuple[int, int]]:
    return segment.pool == "small", segment.stream, segment.private_pool


def _ranges_before(events: Events, segments_end: Sequence[Segment]) -> list[Segment]:
    """Segments at the start, from those at the end by undoing the events of segments, last first."""
    plain = {s.address: s for s in segments_end if not s.expandable}
    mapped = [s for s in segments_end if s.expandable]
    of_segments = (events.action >= Action.SEGMENT_ALLOC) & (events.action <= Action.SEGMENT_UNMAP)
    for i in reversed(np.flatnonzero(of_segments).tolist()):
        action, address, size = events.action[i], int(events.address[i]), int(events.size[i])
        if action == Action.SEGMENT_ALLOC:
            plain.pop(address, None)
        elif action == Action.SEGMENT_FREE:
            pool = "small" if size == SMALL_SEGMENT else "large"
            plain[address] = Segment(address, size, int(events.stream[i]), pool, False, ())
        elif action == Action.SEGMENT_MAP:
            mapped = _without(mapped, address, size)
        else:
            mapped.append(_like_nearest([*mapped, *segments_end], address, size, int(events.stream[i])))
    return sorted([*plain.values(), *_joined(mapped)], key=lambda s: s.address)


def _without(mapped: list[Segment], address: int, size: int) -> list[Segment]:
    left: list[Segment] = []
    for s in mapped:
        end, cut = s.address + s.size, address + size
        if end <= address or cut <= s.address:
            left.append(s)
            continue
        if s.address < address:
            left.append(s._replace(size=address - s.address))
        if cut < end:
            left.append(s._replace(address=cut, size=end - cut))
    return left


def _like_nearest(known: Sequence[Segment], address: int, size: int, stream: int) -> Segment:
    """A mapped range of the same expandable segment as the nearest one known."""
    candidates = [s for s in known if s.expandable and s.stream == stream]
    nearest = min(candidates, key=lambda s: abs(s.address - address), default=None)
    if nearest is not None:
        return nearest._replace(address=address, size=size, blocks=())
    return Segment(address, size, stream, "small" if size % LARGE_SEGMENT else "large", True, (), SHARED)


def _joined(mapped: list[Segment]) -> list[Segment]:
    """Mapped ranges of one pool that touch are one, as in a snapshot."""
    ordered = sorted(mapped, key=lambda s: s.address)
    joined = ordered[:1]
    for _, s in pairwise(ordered):
        last = joined[-1]
        if last.address + last.size == s.address and _pool_of(last) == _pool_of(s):
            joined[-1] = last._replace(size=last.size + s.size)
        else:
            joined.append(s)
    return joined

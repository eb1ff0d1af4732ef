"""From events and the segments after them to the blocks before them.

Most traces begin mid-process, and an event carries the size that was requested, not the block's. What undoing the events
leaves of the end state is where every block lay at the start; the rules of the allocator tell how large it was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ipyvram.allocator.blocks import Blocks
from ipyvram.allocator.pools import Live
from ipyvram.allocator.ranges import Ranges, pool_key
from ipyvram.allocator.rules import SMALL_SIZE, Settings
from ipyvram.recording import Action, Block, Events, Segment

ADDRESS_SPACE = 1 << 40  #: of an expandable segment: more than any card, so that its end is never reached


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The state from which events lead to known segments.

    Attributes
    ----------
    blocks : Blocks
    in_use : tuple of Block
        Blocks that are live or awaited by another stream.
    spaces : tuple of int
        Where address spaces of expandable segments, and other segments, begin; sorted.
    """

    blocks: Blocks
    in_use: tuple[Block, ...]
    spaces: tuple[int, ...]


def undo(
    events: Events,
    segments_end: Sequence[Segment],
    settings: Settings,
    hints: Mapping[int, Block],
    private_pools: Mapping[int, tuple[int, int]] | None = None,
) -> Start:
    """The state from which ``events`` lead to ``segments_end``.

    Parameters
    ----------
    hints : mapping of int to Block
        Blocks whose size at the start is known, by address.
    private_pools : mapping of int to (int, int)
        See `recording.Trace`.
    """
    undoing = _Undoing(events, settings, hints)
    undoing.build(segments_end, private_pools or {})
    return Start(undoing.blocks, tuple(undoing.in_use), tuple(undoing.spaces))


class _Undoing:
    def __init__(self, events: Events, settings: Settings, hints: Mapping[int, Block]) -> None:
        self.events, self.settings, self.hints = events, settings, hints
        self.blocks = Blocks()
        self.in_use: list[Block] = []
        self.spaces: list[int] = []
        allocs = np.flatnonzero(events.action == Action.ALLOC)
        order = np.argsort(events.address[allocs], kind="stable")
        self._alloc_at, self._alloc_index = events.address[allocs][order], allocs[order]
        self._freed_at: dict[int, int] = {}

    def build(self, segments_end: Sequence[Segment], private_pools: Mapping[int, tuple[int, int]]) -> None:
        live = self._live_before(segments_end)
        occupied = sorted(live)
        ranges = Ranges(self.events, self.settings, segments_end, private_pools)
        self._reserve_spaces(ranges)
        for segment in ranges.before:
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

    def _reserve_spaces(self, ranges: Ranges) -> None:
        for begin, following, segment in ranges.spaces():
            self.spaces.append(begin)
            if segment.expandable:
                size = min(following - begin, ADDRESS_SPACE) if following else ADDRESS_SPACE
                self.blocks.reserve(begin, size, self.blocks.pool(*pool_key(segment)), expandable=True)

    def _settle(self, segment: Segment, inside: list[Block]) -> None:
        """Fill a segment with the blocks that lie in it; what is left is free."""
        blocks, end = self.blocks, segment.address + segment.size
        pool = blocks.pool(*pool_key(segment))
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

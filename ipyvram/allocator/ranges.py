"""From events and the segments after them to the segments before them, and where address spaces lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ipyvram.allocator.pools import SHARED, is_small
from ipyvram.allocator.rules import SMALL_SEGMENT, Settings
from ipyvram.recording import Action, Events, Segment


def cause(events: Events, i: int) -> int | None:
    """The allocation that the segment event ``i`` makes room for; None when it is for none."""
    for j in range(i + 1, len(events)):
        action = events.action[j]
        if action == Action.ALLOC:
            return j
        if action in (Action.FREE_REQUESTED, Action.OOM):
            break
    return None


def pool_key(segment: Segment) -> tuple[bool, int, tuple[int, int]]:
    """Arguments of `Blocks.pool` for the pool that a segment belongs to."""
    return segment.pool == "small", segment.stream, segment.private_pool


class Ranges:
    """Segments at the start of a trace; of expandable ones the ranges that memory backed.

    Attributes
    ----------
    before : list of Segment
        In order of address, without blocks.
    """

    def __init__(
        self,
        events: Events,
        settings: Settings,
        segments_end: Sequence[Segment],
        private_pools: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:
        self._events, self._settings, self._end = events, settings, segments_end
        self._told = private_pools or {}
        picked = np.flatnonzero(events.action <= Action.FREE_COMPLETED)
        order = np.argsort(events.address[picked], kind="stable")
        self._block_at, self._block_event = events.address[picked][order], picked[order]
        self.before = self._undo()

    def _undo(self) -> list[Segment]:
        """What is left of the segments at the end when their events are undone, last first."""
        events = self._events
        plain = {s.address: s for s in self._end if not s.expandable}
        mapped = [s for s in self._end if s.expandable]
        of_segments = (events.action >= Action.SEGMENT_ALLOC) & (events.action <= Action.SEGMENT_UNMAP)
        for i in reversed(np.flatnonzero(of_segments).tolist()):
            action, address, size = events.action[i], int(events.address[i]), int(events.size[i])
            if action == Action.SEGMENT_ALLOC:
                plain.pop(address, None)
            elif action == Action.SEGMENT_FREE:
                pool = "small" if size == SMALL_SEGMENT else "large"
                private = self._told.get(i, SHARED)
                plain[address] = Segment(address, size, int(events.stream[i]), pool, False, (), private)
            elif action == Action.SEGMENT_MAP:
                mapped = _without(mapped, address, size)
            else:
                mapped.append(self._mapped(i, [*mapped, *self._end]))
        return sorted([*plain.values(), *_joined(mapped)], key=lambda s: s.address)

    def _mapped(self, i: int, known: Sequence[Segment]) -> Segment:
        """The range that event ``i`` maps or unmaps, of the pool that the blocks in it belong to."""
        events = self._events
        address, size, stream = int(events.address[i]), int(events.size[i]), int(events.stream[i])
        same = [s for s in known if s.expandable and s.stream == stream]
        nearest = min(same, key=lambda s: _gap(s, address, size), default=None)
        beside = nearest is not None and _gap(nearest, address, size) <= 0
        at = int(np.searchsorted(self._block_at, address))
        if at < len(self._block_at) and self._block_at[at] < address + size:
            small = is_small(self._settings.round(int(events.size[self._block_event[at]])))
        elif nearest is not None and beside:
            small = nearest.pool == "small"
        else:
            small = bool(size % self._settings.large_segment)
        private = nearest.private_pool if nearest is not None and beside else SHARED
        private = self._told.get(i, SHARED) if self._told else private
        return Segment(address, size, stream, "small" if small else "large", True, (), private)

    def spaces(self) -> Iterator[tuple[int, int, Segment]]:
        """Address spaces in which segments lie: begin, the next one's begin (0: none), and a segment in it.

        An expandable segment's space is taken to begin at its first range that is ever mapped.
        """
        known = [*self.before, *self._end]
        mapped = np.flatnonzero(self._events.action == Action.SEGMENT_MAP).tolist()
        begins: list[Segment] = []
        for s in sorted([*known, *(self._mapped(i, known) for i in mapped)], key=lambda s: s.address):
            if not begins or not (s.expandable and begins[-1].expandable and pool_key(s) == pool_key(begins[-1])):
                begins.append(s)
        for s, end in zip(begins, [*(b.address for b in begins), 0][1:], strict=True):
            yield s.address, end, s


def _gap(segment: Segment, address: int, size: int) -> int:
    """Bytes between a segment and a range: 0 where they touch, less where they overlap."""
    return max(segment.address - address - size, address - segment.address - segment.size)


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


def _joined(mapped: list[Segment]) -> list[Segment]:
    """Mapped ranges of one pool that touch are one, as in a snapshot."""
    ordered = sorted(mapped, key=lambda s: s.address)
    joined = ordered[:1]
    for _, s in pairwise(ordered):
        last = joined[-1]
        if last.address + last.size == s.address and pool_key(last) == pool_key(s):
            joined[-1] = last._replace(size=last.size + s.size)
        else:
            joined.append(s)
    return joined

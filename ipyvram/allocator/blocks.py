"""The memory of one device as the caching allocator sees it: segments cut into live and free blocks.

Knows where blocks are and how they split and merge. Which segment to ask the driver for, and when, is decided by
`caching_allocator` (predicting) and `allocator.replay` (following a trace).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from ipyvram.allocator.pools import ADDRESS, SHARED, SHIFT, Live, Pool, Range
from ipyvram.allocator.rules import Settings

_new = tuple.__new__  # what Live(…) comes down to, at half the time: there is one for every allocation


class Blocks:
    """Segments, live blocks and free blocks; neighbours are found by address.

    Attributes
    ----------
    live, awaiting : dict of int to Live
        By address. ``awaiting`` blocks are freed but still used by another stream.
    segments : dict of int to Range
        By address.
    unmapped : dict of int to int
        Parts of expandable segments that no memory backs: address → size.
    allocated, reserved : int
        Bytes, as torch counts them.
    """

    def __init__(self) -> None:
        self.pools: dict[tuple[bool, int, tuple[int, int]], Pool] = {}
        self.live: dict[int, Live] = {}
        self.awaiting: dict[int, Live] = {}
        self.segments: dict[int, Range] = {}
        self.unmapped: dict[int, int] = {}
        self.allocated = self.reserved = 0
        self._starts: list[int] = []  # of segments, sorted
        self._size: dict[int, int] = {}  # free block → its size
        self._by_end: dict[int, int] = {}  # end of a free block → its address
        self._unmapped_by_end: dict[int, int] = {}

    def pool(self, small: bool, stream: int, private: tuple[int, int] = SHARED) -> Pool:
        """The pool that serves such requests, made when it is first asked for."""
        try:
            return self.pools[small, stream, private]
        except KeyError:
            found = self.pools[small, stream, private] = Pool(small, stream, private)
            return found

    # -- free blocks -------------------------------------------------------------------------------------------------

    def add_free(self, address: int, size: int, pool: Pool) -> tuple[int, int]:
        """Put a range into a pool, merged with its free neighbours; gives the merged block."""
        sizes, by_end, keys = self._size, self._by_end, pool.keys
        end = address + size
        if address not in self.segments:
            before = by_end.pop(address, None)
            if before is not None:
                del keys[bisect_left(keys, sizes.pop(before) << SHIFT | before)]
                address = before
        if end not in self.segments:
            after = sizes.pop(end, None)
            if after is not None:
                del keys[bisect_left(keys, after << SHIFT | end)]
                end += after
        size = end - address
        sizes[address] = size
        by_end[end] = address
        insort(keys, size << SHIFT | address)
        return address, size

    def remove_free(self, address: int, pool: Pool) -> int:
        """Take the free block at ``address`` out of its pool; gives its size."""
        size = self._size.pop(address)
        del self._by_end[address + size]
        del pool.keys[bisect_left(pool.keys, size << SHIFT | address)]
        return size

    def find(self, pool: Pool, size: int, settings: Settings) -> tuple[int, int] | None:
        """The free block that serves ``size`` bytes: its address and size, None on a miss.

        The smallest that fits, at the lowest address. A block at the end of what is mapped of an expandable segment
        counts with the room it can grow into, so that others are taken first.
        """
        keys = pool.keys
        at = bisect_left(keys, size << SHIFT)
        if at == len(keys):
            return None
        if self.unmapped:
            found = self._find_expandable(keys, at, settings)
            if found is None:
                return None
            at = found
        block = keys[at] >> SHIFT
        if size < settings.max_split_size:
            if block >= settings.max_split_size:
                return None
        elif block >= size + settings.max_non_split_rounding:
            return None
        return keys[at] & ADDRESS, block

    def _find_expandable(self, keys: list[int], at: int, settings: Settings) -> int | None:
        if not settings.expandable_segments:  # switched off meanwhile: only blocks of plain segments
            while at < len(keys) and self.is_expandable(keys[at] & ADDRESS):
                at += 1
            return at if at < len(keys) else None
        while at + 1 < len(keys) and self.is_expandable(keys[at] & ADDRESS):
            if self._room(keys[at + 1]) >= self._room(keys[at]):
                break
            at += 1
        return at

    def _room(self, key: int) -> int:
        size = key >> SHIFT
        return size + self.unmapped.get((key & ADDRESS) + size, 0)

    def is_free(self, address: int, size: int, pool: Pool) -> bool:
        """Whether a free block of this size begins at ``address`` in the pool."""
        key = size << SHIFT | address
        at = bisect_left(pool.keys, key)
        return at < len(pool.keys) and pool.keys[at] == key

    def free_at(self, address: int) -> int | None:
        """Size of the free block that begins at ``address``."""
        return self._size.get(address)

    def free_before(self, address: int) -> int:
        """Size of the free block that ends at ``address``, 0 if there is none."""
        before = self._by_end.get(address)
        return 0 if before is None else self._size[before]

    def free_around(self, address: int, size: int) -> tuple[int, Pool] | None:
        """The free block that covers a range, and its pool (slow: looks at every free block)."""
        for pool in self.pools.values():
            for begin, whole in pool.free_blocks():
                if begin <= address and address + size <= begin + whole:
                    return begin, pool
        return None

    # -- live blocks -------------------------------------------------------------------------------------------------

    def take(self, address: int, taken: int, block: int, requested: int, pool: Pool) -> None:
        """Make the first ``taken`` bytes of the free block at ``address`` live; ``block`` is its whole size."""
        keys, end = pool.keys, address + block
        del self._size[address], keys[bisect_left(keys, block << SHIFT | address)]
        if taken < block:
            rest = block - taken
            self._size[address + taken] = rest
            self._by_end[end] = address + taken
            insort(keys, rest << SHIFT | (address + taken))
        else:
            del self._by_end[end]
        self.live[address] = _new(Live, (taken, requested, pool))
        self.allocated += taken

    def place(self, address: int, block: Live, awaiting: bool = False) -> None:
        """Enter a block where nothing is free or live."""
        (self.awaiting if awaiting else self.live)[address] = block
        self.allocated += 0 if awaiting else block.size

    def free(self, address: int) -> int:
        """`request_free` and `complete_free` in one; gives the block's size."""
        size, _, pool = self.live.pop(address)
        self.allocated -= size
        self.add_free(address, size, pool)
        return size

    def request_free(self, address: int) -> Live:
        """The program lets go of a block; it can be reused only after `complete_free`."""
        block = self.awaiting[address] = self.live.pop(address)
        self.allocated -= block.size
        return block

    def complete_free(self, address: int) -> tuple[int, int]:
        """The last stream is done with a block; gives the free block it became part of."""
        block = self.awaiting.pop(address)
        return self.add_free(address, block.size, block.pool)

    # -- segments ----------------------------------------------------------------------------------------------------

    def reserve(self, address: int, size: int, pool: Pool, expandable: bool = False) -> None:
        """A segment, as yet neither free nor live; the address space of an expandable one is not memory yet."""
        self.segments[address] = Range(size, pool, expandable)
        insort(self._starts, address)
        if expandable:
            self._add_unmapped(address, size)
        else:
            self.reserved += size

    def release(self, address: int) -> Range:
        """Give back a segment that is free as a whole.

        Raises
        ------
        ValueError
            Part of it is in use, or it is none.
        """
        segment = self.segments.get(address)
        if segment is None or segment.expandable or self._size.get(address) != segment.size:
            raise ValueError(f"no unused segment at {address:#x}")
        self.remove_free(address, segment.pool)
        self._forget(address)
        self.reserved -= segment.size
        return segment

    def release_unused_space(self, address: int) -> None:
        """Give back the address space of an expandable segment if no memory backs any of it."""
        found = self.segment_of(address)
        if found is not None and self.unmapped.get(found[0]) == found[1].size:
            start, space = found
            del self.unmapped[start], self._unmapped_by_end[start + space.size]
            self._forget(start)

    def _forget(self, address: int) -> None:
        del self.segments[address]
        del self._starts[bisect_left(self._starts, address)]

    def segment_of(self, address: int) -> tuple[int, Range] | None:
        """The segment in which an address lies."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        start = self._starts[at]
        found = self.segments[start]
        return (start, found) if address < start + found.size else None

    def is_expandable(self, address: int) -> bool:
        """Whether an address lies in an expandable segment."""
        found = self.segment_of(address)
        return found is not None and found[1].expandable

    # -- memory behind expandable segments -----------------------------------------------------------------------------

    def _add_unmapped(self, address: int, size: int) -> None:
        end = address + size
        before = self._unmapped_by_end.pop(address, None) if address not in self.segments else None
        if before is not None:
            del self.unmapped[before]
            address = before
        after = self.unmapped.pop(end, None) if end not in self.segments else None
        if after is not None:
            end += after
        self.unmapped[address] = end - address
        self._unmapped_by_end[end] = address

    def room_to_grow(self, pool: Pool, size: int) -> int | None:
        """Where free and unmapped blocks in a row first reach the size; None if nowhere in the pool's segments."""
        for address in sorted(self.unmapped):
            found = self.segment_of(address)
            if found is None or found[1].pool is not pool:
                continue
            end_of_space = found[0] + found[1].size
            begin = at = address - (self.free_before(address) if address > found[0] else 0)
            while at - begin < size and at < end_of_space:
                step = self.free_at(at) or self.unmapped.get(at, 0)
                if not step:
                    break
                at += step
            if at - begin >= size:
                return begin
        return None

    def map(self, address: int, size: int) -> tuple[int, int]:
        """Back a range of an expandable segment with memory; gives the free block that it became part of.

        Raises
        ------
        ValueError
            The range is not an unmapped part of an expandable segment.
        """
        segment = self.segment_of(address)
        around = next((a for a, s in self.unmapped.items() if a <= address and address + size <= a + s), None)
        if segment is None or around is None:
            raise ValueError(f"nothing to map at {address:#x}")
        end = around + self.unmapped.pop(around)
        del self._unmapped_by_end[end]
        if around < address:
            self._add_unmapped(around, address - around)
        if address + size < end:
            self._add_unmapped(address + size, end - address - size)
        self.reserved += size
        return self.add_free(address, size, segment[1].pool)

    def unmap(self, address: int, size: int) -> None:
        """Take the memory behind a free range of an expandable segment away.

        Raises
        ------
        ValueError
            The range is in use or not mapped.
        """
        found = self.free_around(address, size)
        if found is None:
            raise ValueError(f"the range at {address:#x} is in use")
        around, pool = found
        end = around + self.remove_free(around, pool)
        self.reserved -= size
        if around < address:
            self.add_free(around, address - around, pool)
        if address + size < end:
            self.add_free(address + size, end - address - size, pool)
        self._add_unmapped(address, size)

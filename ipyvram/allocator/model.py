"""Predicts torch's CUDA caching allocator: requests in, addresses out, and out of memory when the card is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NoReturn

from ipyvram.allocator.blocks import Blocks
from ipyvram.allocator.pools import SHARED, Pool, Range, is_small
from ipyvram.allocator.rules import NO_LIMIT, Settings
from ipyvram.allocator.state import segments
from ipyvram.recording import Action, Segment
from ipyvram.units import format_bytes

#: Called with every event, as torch's history records it: action, address, size, stream, private pool.
Recorder = Callable[[Action, int, int, int, tuple[int, int]], None]

_BASE = 0x7F00_0000_0000  # where Linux puts device memory; only the order of addresses matters
_PAGE = 2 << 20  # cudaMalloc's own granularity


class OutOfMemory(Exception):
    """The card is full, also after everything cached was given back.

    Attributes
    ----------
    requested, allocated, reserved, free : int
        Bytes, at the moment of the request.
    """

    def __init__(self, requested: int, allocated: int, reserved: int, free: int) -> None:
        self.requested, self.allocated, self.reserved, self.free = requested, allocated, reserved, free
        super().__init__(
            f"CUDA out of memory. Tried to allocate {format_bytes(requested)}: {format_bytes(free)} is free, "
            f"{format_bytes(allocated)} is allocated by PyTorch, and {format_bytes(reserved - allocated)} is reserved by "
            "PyTorch but unallocated."
        )


class CachingAllocator:
    """One device's allocator, with torch's own policy.

    Parameters
    ----------
    capacity : int
        Bytes that the driver can hand out: the card without context and other processes.
    settings : Settings
    allowed : int or None
        Bytes that the process may reserve (``set_per_process_memory_fraction``); None: no limit.
    record : callable or None
        Receives every event; see `Recorder`.
    card : int or None
        Bytes of the whole card, which the address space of an expandable segment depends on; ``capacity`` unless given.
    blocks : Blocks or None
        What is there already; new segments come behind it. None: nothing.

    Attributes
    ----------
    allocated_peak, reserved_peak : int
    retries, ooms : int
        As in ``memory_stats``: ``num_alloc_retries`` and ``num_ooms``.
    """

    def __init__(
        self,
        capacity: int = NO_LIMIT,
        settings: Settings | None = None,
        allowed: int | None = None,
        record: Recorder | None = None,
        card: int | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self.blocks, self.settings = blocks or Blocks(), settings or Settings()
        self.capacity, self.allowed, self.card = capacity, allowed, card or capacity
        self.allocated_peak, self.reserved_peak = self.allocated, self.reserved
        self.retries = self.ooms = 0
        self._record = record or (lambda action, address, size, stream, private: None)
        ends = (address + segment.size for address, segment in self.blocks.segments.items())
        self._next = max(_BASE, *(-(-end // _PAGE) * _PAGE for end in ends)) if self.blocks.segments else _BASE
        self._lookups: Counter[bool] = Counter()  # searches of the shared pools: the clock of garbage collection
        self._cached_at: dict[int, int] = {}  # unsplit free block → clock when it became that
        self._freeable: set[tuple[int, int]] = set()

    @property
    def allocated(self) -> int:
        """Bytes in live blocks."""
        return self.blocks.allocated

    @property
    def reserved(self) -> int:
        """Bytes in segments."""
        return self.blocks.reserved

    @property
    def active(self) -> int:
        """Bytes in blocks that are live or awaited by another stream."""
        return self.allocated + sum(b.size for b in self.blocks.awaiting.values())

    @property
    def inactive_split(self) -> int:
        """Bytes of free blocks in segments that are partly in use; expandable segments do not count."""
        segments = self.blocks.segments
        found = (
            size
            for pool in self.blocks.pools.values()
            for address, size in pool.free_blocks()
            if not self.blocks.is_expandable(address) and (address not in segments or segments[address].size != size)
        )
        return sum(found)

    # -- what a program does -----------------------------------------------------------------------------------------

    def alloc(self, size: int, stream: int = 0, private: tuple[int, int] = SHARED) -> int:
        """Address of a new block for ``size`` bytes.

        Raises
        ------
        OutOfMemory
            Nothing that can be given back makes room.
        """
        rounded = self.settings.round(size)
        pool = self.blocks.pool(is_small(rounded), stream, private)
        found = self._find(pool, rounded) or self._make_room(pool, rounded)
        if found is None:
            self._fail(pool, rounded)
        address, block = found
        self._cached_at.pop(address, None)
        taken = rounded if self.settings.may_split(block, rounded, pool.small) else block
        self.blocks.take(address, taken, block, size, pool)
        self.allocated_peak = max(self.allocated_peak, self.allocated)
        self._record(Action.ALLOC, address, size, stream, private)
        return address

    def free(self, address: int, awaiting: bool = False) -> None:
        """Let go of a block; with ``awaiting``, another stream still uses it until `complete_free`."""
        block = self.blocks.request_free(address)
        self._record(Action.FREE_REQUESTED, address, block.requested, block.pool.stream, block.pool.private)
        if not awaiting:
            self.complete_free(address)

    def complete_free(self, address: int) -> None:
        """The last stream is done with a block."""
        block = self.blocks.awaiting[address]
        self._record(Action.FREE_COMPLETED, address, block.requested, block.pool.stream, block.pool.private)
        begin, size = self.blocks.complete_free(address)
        if self.settings.garbage_collection_threshold and self._is_whole(begin, size):
            self._cached_at[begin] = self._lookups[block.pool.small]

    def empty_cache(self) -> None:
        """Give back what is cached: unsplit segments, and whole granules of expandable ones."""
        for address in list(self.blocks.awaiting):
            self.complete_free(address)
        self._release(SHARED)
        for private in sorted(self._freeable):
            self._release(private)

    def release_pool(self, private: tuple[int, int], at_once: bool = False) -> None:
        """Nobody needs a private pool any more (its graph is gone): `empty_cache` may give it back.

        With ``at_once``, as when a ``MemPool`` ends, what of it is cached is given back now.
        """
        self._freeable.add(private)
        if at_once:
            for address in [a for a, b in self.blocks.awaiting.items() if b.pool.private == private]:
                self.complete_free(address)
            self._release(private)

    def segments(self) -> tuple[Segment, ...]:
        """The state as torch's snapshot shows it: segments, or contiguous mapped ranges, with their blocks."""
        return segments(self.blocks)

    # -- finding room ------------------------------------------------------------------------------------------------

    def _find(self, pool: Pool, rounded: int) -> tuple[int, int] | None:
        if pool.private == SHARED:
            self._lookups[pool.small] += 1
        return self.blocks.find(pool, rounded, self.settings)

    def _make_room(self, pool: Pool, rounded: int) -> tuple[int, int] | None:
        if self.allowed is not None and self.settings.garbage_collection_threshold:
            self._collect_garbage(int(self.settings.garbage_collection_threshold * self.allowed))
        found = self._grow(pool, rounded)
        if found is None and self._release_oversize(pool, rounded):
            found = self._grow(pool, rounded)
        if found is None:
            self.empty_cache()
            self.retries += 1
            found = self._grow(pool, rounded)
        return found

    def _fail(self, pool: Pool, rounded: int) -> NoReturn:
        self.ooms += 1
        free = self.capacity - self.reserved
        self._record(Action.OOM, free, rounded, pool.stream, pool.private)
        raise OutOfMemory(self.settings.segment_size(rounded), self.allocated, self.reserved, free)

    def _grow(self, pool: Pool, rounded: int) -> tuple[int, int] | None:
        """Ask the driver; gives the free block that serves the request."""
        size = self.settings.segment_size(rounded)
        if self.allowed is not None and self.reserved + size > self.allowed:
            return None
        if self.settings.expandable_segments:
            return self._expand(pool, rounded)
        if self.reserved + size > self.capacity:
            return None
        address = self._addresses(size)
        self.blocks.reserve(address, size, pool)
        self._grown(Action.SEGMENT_ALLOC, address, size, pool)
        return self.blocks.add_free(address, size, pool)

    def _grown(self, action: Action, address: int, size: int, pool: Pool) -> None:
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        self._record(action, address, size, pool.stream, pool.private)

    def _addresses(self, size: int) -> int:
        address = self._next
        self._next += -(-size // _PAGE) * _PAGE
        return address

    # -- expandable segments -------------------------------------------------------------------------------------------

    def _expand(self, pool: Pool, size: int) -> tuple[int, int] | None:
        """Map memory at the lowest address where the request fits."""
        begin = self.blocks.room_to_grow(pool, size)
        if begin is None:
            granule = self.settings.granule(pool.small)
            space = -(-min(self.card, 1 << 40) * 9 // 8 // granule) * granule  # as torch: 9/8 of the card
            begin = self._addresses(space)
            self.blocks.reserve(begin, space, pool, expandable=True)
        block = (begin, self.blocks.free_at(begin) or 0)
        while block[1] < size:
            mapped = self._map(pool, block[0] + block[1], size - block[1])
            if mapped is None:
                return None
            block = mapped
        return block

    def _map(self, pool: Pool, address: int, wanted: int) -> tuple[int, int] | None:
        granule = self.settings.granule(pool.small)
        size = -(-min(wanted, self.blocks.unmapped[address]) // granule) * granule
        if self.reserved + size > self.capacity:
            return None
        block = self.blocks.map(address, size)
        self._grown(Action.SEGMENT_MAP, address, size, pool)
        return block

    # -- giving back -------------------------------------------------------------------------------------------------

    def _is_whole(self, address: int, size: int) -> bool:
        segment = self.blocks.segments.get(address)
        return segment is not None and not segment.expandable and segment.size == size

    def _free_blocks(self, small: bool, private: tuple[int, int]) -> list[tuple[int, int, Pool]]:
        pools = [p for p in self.blocks.pools.values() if p.small == small and p.private == private]
        return [(a, s, p) for p in sorted(pools, key=lambda p: p.stream) for a, s in p.free_blocks()]

    def _release(self, private: tuple[int, int]) -> None:
        for small in (False, True) if private == SHARED else (True, False):
            free = self._free_blocks(small, private)
            for address, size, _ in free:
                if self._is_whole(address, size):
                    self._release_segment(address)
            for address, size, pool in free:
                if self.blocks.is_expandable(address):
                    self._unmap(address, size, pool)

    def _release_segment(self, address: int) -> Range:
        segment = self.blocks.release(address)
        self._cached_at.pop(address, None)
        self._record(Action.SEGMENT_FREE, address, segment.size, segment.pool.stream, segment.pool.private)
        return segment

    def _unmap(self, address: int, size: int, pool: Pool) -> None:
        found = self.blocks.segment_of(address)
        assert found is not None
        start = found[0]
        granule = self.settings.granule(pool.small)
        begin = start + -(-(address - start) // granule) * granule
        end = start + (address + size - start) // granule * granule
        if begin < end:
            self.blocks.unmap(begin, end - begin)
            self._record(Action.SEGMENT_UNMAP, begin, end - begin, pool.stream, pool.private)
            self.blocks.release_unused_space(start)

    def _release_oversize(self, pool: Pool, rounded: int) -> bool:
        """Only with ``max_split_size``: give back one unsplit block that is large enough, or several large ones."""
        limit = self.settings.max_split_size
        if limit == NO_LIMIT:
            return False
        wanted = max(rounded, limit)
        large = [(a, s) for a, s in pool.free_blocks() if s >= limit and self._is_whole(a, s)]
        fitting = next((a for a, s in large if s >= wanted), None)
        if fitting is not None:
            self._release_segment(fitting)
            return True
        released = 0
        for address, size in reversed(large):
            if released >= wanted:
                break
            self._release_segment(address)
            released += size
        return released >= wanted

    def _collect_garbage(self, threshold: int) -> None:
        """Give back unsplit blocks of the large pool that are older than the average, until below the threshold."""
        target = self.reserved - threshold
        clock, reclaimed = self._lookups[False], 0
        while reclaimed < target:
            ages = {
                address: clock - self._cached_at.get(address, 0)
                for address, size, _ in self._free_blocks(False, SHARED)
                if self._is_whole(address, size)
            }
            if not ages:
                break
            average = sum(ages.values()) / len(ages)
            for address in [a for a, age in ages.items() if age >= average]:
                reclaimed += self._release_segment(address).size

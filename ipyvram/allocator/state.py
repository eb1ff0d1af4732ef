"""Blocks of the model in, segments out as torch's snapshot shows them."""

from __future__ import annotations

from collections.abc import Iterator

from ipyvram.allocator.blocks import Blocks
from ipyvram.recording import Block, Segment


def segments(blocks: Blocks) -> tuple[Segment, ...]:
    """Segments, and contiguous mapped ranges of expandable ones, in order of address."""
    return tuple(_rows(blocks))


def _rows(blocks: Blocks) -> Iterator[Segment]:
    pieces = [Block(a, b.size, b.requested) for a, b in blocks.live.items()]
    pieces += [Block(a, b.size, b.requested, "active_awaiting_free") for a, b in blocks.awaiting.items()]
    pieces += [Block(a, s, 0, "inactive") for pool in blocks.pools.values() for a, s in pool.free_blocks()]
    row: list[Block] = []
    start = -1
    for piece in sorted(pieces):
        found = blocks.segment_of(piece.address)
        assert found is not None
        if row and (found[0] != start or row[-1].address + row[-1].size != piece.address):
            yield _segment(blocks, row)
            row = []
        start = found[0]
        row.append(piece)
    if row:
        yield _segment(blocks, row)


def _segment(blocks: Blocks, row: list[Block]) -> Segment:
    found = blocks.segment_of(row[0].address)
    assert found is not None
    pool, size = found[1].pool, sum(b.size for b in row)
    kind = "small" if pool.small else "large"
    return Segment(row[0].address, size, pool.stream, kind, found[1].expandable, tuple(row), pool.private)

"""How large was a block that was freed during the trace? Only its request is recorded; these are the ways to tell."""

from __future__ import annotations

import pytest

from ipyvram.allocator.ranges import Ranges
from ipyvram.allocator.rules import MIB, Settings
from ipyvram.allocator.undo import undo
from ipyvram.recording import Action, Block, Events, Segment

ALLOC, FREE, DONE = Action.ALLOC, Action.FREE_REQUESTED, Action.FREE_COMPLETED


def events(*rows):
    return Events.from_rows(
        [(action, address, size, 0, i + 1, -1, -1) for i, (action, address, size) in enumerate(rows)]
    )


def segment(address, size, *blocks, expandable=False):
    return Segment(address, size, 0, "large" if size > 2 * MIB else "small", expandable, blocks)


def start(trace, *segments, hints=None, settings=None):
    return undo(trace, segments, settings or Settings(), hints or {}).in_use


def test_a_short_gap_belongs_to_the_block_before_it():
    """19.5 MiB in a segment of 20: free blocks of the large pool are never that small."""
    trace = events((FREE, 0, 19 * MIB + MIB // 2), (DONE, 0, 19 * MIB + MIB // 2))
    (block,) = start(trace, segment(0, 20 * MIB, Block(0, 20 * MIB, 0, "inactive")))
    assert block == Block(0, 20 * MIB, 19 * MIB + MIB // 2)


def test_a_long_gap_was_free():
    trace = events((FREE, 0, 5 * MIB), (DONE, 0, 5 * MIB))
    (block,) = start(trace, segment(0, 20 * MIB, Block(0, 20 * MIB, 0, "inactive")))
    assert block.size == 5 * MIB


def test_an_allocation_made_while_it_was_live_shows_where_it_ended():
    """A remainder of half a MiB belonged to the block, or the next one could not begin there."""
    end = 5 * MIB + MIB // 2
    trace = events((ALLOC, end, 2 * MIB), (FREE, 0, 5 * MIB), (DONE, 0, 5 * MIB))
    last = segment(
        0, 20 * MIB, Block(0, end, 0, "inactive"), Block(end, 2 * MIB, 2 * MIB), Block(end + 2 * MIB, 0, 0, "inactive")
    )
    assert start(trace, last)[0].size == end


def test_a_known_block_settles_it():
    trace = events((FREE, 0, 5 * MIB), (DONE, 0, 5 * MIB))
    end = segment(0, 20 * MIB, Block(0, 20 * MIB, 0, "inactive"))
    known = Block(0, 5 * MIB + MIB // 4, 5 * MIB)
    assert start(trace, end, hints={0: known})[0].size == known.size
    other = Block(0, 9 * MIB, 9 * MIB)  # something else lay there before
    assert start(trace, end, hints={0: other})[0].size == 5 * MIB


def test_small_and_expandable_blocks_are_their_rounded_size():
    trace = events((FREE, 0, 1000), (DONE, 0, 1000))
    assert start(trace, segment(0, 2 * MIB, Block(0, 2 * MIB, 0, "inactive")))[0].size == 1024
    large = events((FREE, 0, 19 * MIB), (DONE, 0, 19 * MIB))
    mapped = segment(0, 20 * MIB, Block(0, 20 * MIB, 0, "inactive"), expandable=True)
    assert start(large, mapped, settings=Settings(expandable_segments=True))[0].size == 19 * MIB


def test_a_block_awaited_by_another_stream():
    trace = events((DONE, 0, 1000))
    (block,) = start(trace, segment(0, 2 * MIB, Block(0, 2 * MIB, 0, "inactive")))
    assert block.state == "active_awaiting_free"


@pytest.mark.parametrize("size", [2 * MIB, 20 * MIB])
def test_segments_come_and_go_backwards(size):
    trace = events((Action.SEGMENT_FREE, 0, size), (Action.SEGMENT_ALLOC, 64 * MIB, size))
    (before,) = Ranges(trace, Settings(), [segment(64 * MIB, size)]).before
    assert (before.address, before.size, before.pool) == (0, size, "large" if size > 2 * MIB else "small")


def test_mapped_ranges_are_cut_and_joined():
    trace = events((Action.SEGMENT_UNMAP, 20 * MIB, 20 * MIB), (Action.SEGMENT_MAP, 60 * MIB, 20 * MIB))
    end = [segment(0, 20 * MIB, expandable=True), segment(40 * MIB, 40 * MIB, expandable=True)]
    found = Ranges(trace, Settings(expandable_segments=True), end)
    assert [(s.address, s.size) for s in found.before] == [(0, 60 * MIB)]
    assert [begin for begin, _, _ in found.spaces()] == [0]

"""Splitting, merging and finding, one rule at a time."""

from __future__ import annotations

import pytest

from ipyvram.allocator.blocks import Blocks
from ipyvram.allocator.rules import MIB, Settings

EXPANDABLE = Settings(expandable_segments=True)


@pytest.fixture
def blocks():
    """Two plain segments of 20 MiB that touch each other, all free."""
    found = Blocks()
    pool = found.pool(False, 0)
    for address in (100 * MIB, 120 * MIB):
        found.reserve(address, 20 * MIB, pool)
        found.add_free(address, 20 * MIB, pool)
    return found, pool


def free(pool):
    return sorted(pool.free_blocks())


def test_neighbours_merge_but_never_across_segments(blocks):
    found, pool = blocks
    found.take(100 * MIB, 8 * MIB, 20 * MIB, 8 * MIB, pool)
    found.take(120 * MIB, 8 * MIB, 20 * MIB, 8 * MIB, pool)
    assert free(pool) == [(108 * MIB, 12 * MIB), (128 * MIB, 12 * MIB)]
    found.free(120 * MIB)
    found.free(100 * MIB)
    assert free(pool) == [(100 * MIB, 20 * MIB), (120 * MIB, 20 * MIB)]
    assert (found.allocated, found.reserved) == (0, 40 * MIB)


def test_a_block_that_another_stream_uses_is_not_free_yet(blocks):
    found, pool = blocks
    found.take(100 * MIB, 20 * MIB, 20 * MIB, 20 * MIB, pool)
    found.request_free(100 * MIB)
    assert (found.allocated, free(pool)) == (0, [(120 * MIB, 20 * MIB)])
    assert found.complete_free(100 * MIB) == (100 * MIB, 20 * MIB)


def test_the_smallest_that_fits_at_the_lowest_address(blocks):
    found, pool = blocks
    assert found.find(pool, 5 * MIB, Settings()) == (100 * MIB, 20 * MIB)
    found.take(100 * MIB, 8 * MIB, 20 * MIB, 8 * MIB, pool)
    assert found.find(pool, 5 * MIB, Settings()) == (108 * MIB, 12 * MIB)
    assert found.find(pool, 13 * MIB, Settings()) == (120 * MIB, 20 * MIB)
    assert found.find(pool, 21 * MIB, Settings()) is None


def test_oversize_blocks_serve_only_requests_of_about_their_size(blocks):
    found, pool = blocks
    assert found.find(pool, 5 * MIB, Settings(max_split_size=20 * MIB)) is None
    near = Settings(max_split_size=10 * MIB, max_non_split_rounding=4 * MIB)
    assert found.find(pool, 17 * MIB, near) == (100 * MIB, 20 * MIB)
    assert found.find(pool, 16 * MIB, near) is None


def test_a_block_that_can_grow_is_taken_last():
    found = Blocks()
    pool = found.pool(False, 0)
    found.reserve(0, 1000 * MIB, pool, expandable=True)
    found.map(0, 60 * MIB)
    found.take(0, 50 * MIB, 60 * MIB, 50 * MIB, pool)
    found.take(50 * MIB, 3 * MIB, 10 * MIB, 3 * MIB, pool)
    found.free(0)  # 50 MiB before a live block, 7 MiB with unmapped room behind it
    assert found.find(pool, 5 * MIB, EXPANDABLE) == (0, 50 * MIB)
    assert found.find(pool, 5 * MIB, Settings()) is None  # switched off meanwhile


def test_mapping_and_unmapping():
    found = Blocks()
    pool = found.pool(False, 0)
    found.reserve(0, 100 * MIB, pool, expandable=True)
    assert found.map(0, 20 * MIB) == (0, 20 * MIB)
    assert found.map(20 * MIB, 20 * MIB) == (0, 40 * MIB)
    found.unmap(20 * MIB, 20 * MIB)
    assert (found.reserved, found.unmapped) == (20 * MIB, {20 * MIB: 80 * MIB})
    found.release_unused_space(0)
    assert found.is_expandable(0)
    found.unmap(0, 20 * MIB)
    found.release_unused_space(0)
    assert (found.segment_of(0), found.unmapped) == (None, {})


def test_what_is_in_use_is_not_given_back(blocks):
    found, pool = blocks
    found.take(100 * MIB, 8 * MIB, 20 * MIB, 8 * MIB, pool)
    with pytest.raises(ValueError, match="no unused segment"):
        found.release(100 * MIB)
    with pytest.raises(ValueError, match="in use"):
        found.unmap(100 * MIB, 8 * MIB)
    with pytest.raises(ValueError, match="nothing to map"):
        found.map(100 * MIB, 8 * MIB)
    found.release(120 * MIB)
    assert found.reserved == 20 * MIB

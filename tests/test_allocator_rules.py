"""Rounding, and settings read from text and from snapshots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.allocator.rules import NO_LIMIT, Settings

MIB = 1 << 20


@given(st.integers(0, 1 << 38))
def test_rounds_up_to_512_bytes(size):
    rounded = Settings().round(size)
    assert rounded % 512 == 0
    assert max(size, 512) <= rounded < max(size, 1) + 512


@given(st.integers(1, 1 << 36), st.sampled_from([2, 4, 8, 16]))
def test_power_of_two_divisions_waste_at_most_one_step(size, divisions):
    rounded = Settings.from_conf(f"roundup_power2_divisions:{divisions}").round(size)
    assert rounded >= size
    if size > 512 * divisions:
        floor = 1 << (size.bit_length() - 1)
        assert rounded % (floor // divisions) == 0
        assert rounded - size < floor // divisions


def test_1200_with_four_divisions_is_the_documented_example():
    """The documentation of torch: 1200 lies between 1024 and 2048; of 1024, 1280, 1536, 1792 the next is 1280."""
    assert Settings.from_conf("roundup_power2_divisions:4").round(1200 * MIB) == 1280 * MIB


@given(st.lists(st.integers(0, 1 << 34)), st.sampled_from(["", "roundup_power2_divisions:[2:4,64:2,>:1]"]))
def test_a_column_rounds_as_its_numbers_do(sizes, conf):
    settings = Settings.from_conf(conf)
    assert settings.round_all(np.array(sizes, np.int64)).tolist() == [settings.round(s) for s in sizes]


def test_divisions_by_interval():
    found = Settings.from_conf("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]").roundup_power2_divisions
    assert found == (1,) * 9 + (2, 4) + (8,) * 5


def test_reads_the_text_of_the_environment_variable():
    found = Settings.from_conf(
        "expandable_segments:True, large_segment_size_mb:12,max_split_size_mb:128,backend:native"
    )
    assert (found.expandable_segments, found.large_segment, found.max_split_size) == (True, 12 * MIB, 128 * MIB)


def test_reads_the_settings_of_a_snapshot():
    found = Settings.from_snapshot(
        {
            "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64,large_segment_size_mb:32",
            "max_split_size": 64 * MIB,
            "garbage_collection_threshold": 0.8,
            "expandable_segments": False,
            "roundup_power2_divisions": {str(1 << i): 4 for i in range(16)},
        }
    )
    assert found == Settings(False, 64 * MIB, 32 * MIB, (4,) * 16, 0.8, 32 * MIB)
    assert Settings.from_snapshot({"max_split_size": -1}).max_split_size == NO_LIMIT


def test_a_wrong_value_is_named():
    with pytest.raises(ValueError, match="PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:big"):
        Settings.from_conf("max_split_size_mb:big")


def test_a_block_may_be_larger_by_a_large_segment_unless_set():
    assert Settings.from_conf("large_segment_size_mb:40").max_non_split_rounding == 40 * MIB
    both = Settings.from_conf("max_non_split_rounding_mb:30,large_segment_size_mb:40")
    assert both.max_non_split_rounding == 30 * MIB

"""Bytes and durations as text, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.units import format_bytes, format_duration, format_share, parse_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (512, "512 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (12_288, "12.0 KiB"), (248_024, "242 KiB"),
        (2**20 - 1, "1.00 MiB"), (97 * 2**20, "97 MiB"), (int(3.22 * 2**30), "3.22 GiB"), (80 * 2**30, "80 GiB"),
        (2 * 2**40, "2.00 TiB"), (-2048, "-2.00 KiB"),
    ],
)  # fmt: skip
def test_bytes(count, text):
    assert format_bytes(count).replace("80.0", "80").replace("97.0", "97") == text


@given(st.integers(1, 2**50))
def test_bytes_read_back_within_their_digits(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.006, abs=0.6)


@given(st.integers(0, 2**50), st.integers(0, 2**50))
def test_more_bytes_never_read_as_fewer(a, b):
    small, large = sorted((a, b))
    assert parse_bytes(format_bytes(small + 1)) <= parse_bytes(format_bytes(large + 1))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ms"), (0.0042, "4.2 ms"), (0.038, "38 ms"), (2.14, "2.1 s"), (99.9, "99.9 s"), (247, "4 min 07 s"), (11_520, "3 h 12 min")],
)  # fmt: skip
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(1, 2, "50 %"), (0, 5, "0 %"), (1, 1000, "<1 %"), (3, 0, "–"), (5, 5, "100 %")]
)
def test_shares(part, whole, text):
    assert format_share(part, whole) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("24GiB", 24 * 2**30), ("24G", 24 * 2**30), ("24 GB", 24 * 10**9), ("512 MiB", 2**29), ("16e9", 16 * 10**9), ("1.5k", 1536)],
)  # fmt: skip
def test_sizes_as_people_write_them(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "12 parsecs", "-3G", "0", "1,5G", "80%"])
def test_what_is_no_size_is_refused_with_the_text(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)

"""Batch sizes as people write them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.sweep.ranges import MAX_SIZES, parse_batch, parse_name, parse_sizes


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("8,16,32", (8, 16, 32)),
        ("32, 8, 16", (8, 16, 32)),
        ("8,8,16", (8, 16)),
        ("8..128", (8, 16, 32, 64, 128)),
        ("8..100", (8, 16, 32, 64)),
        ("8:128:*2", (8, 16, 32, 64, 128)),
        ("3:100:*3", (3, 9, 27, 81)),
        ("8:32:+8", (8, 16, 24, 32)),
        ("8:32:8", (8, 16, 24, 32)),
        ("8:64", (8, 16, 32, 64)),
        ("8..32,48", (8, 16, 32, 48)),
    ],
)
def test_ways_to_write_sizes(text, sizes):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write sizes as"),
        ("8", "two or more"),
        ("8,8", "two or more"),
        ("8,x", "'x' is not a batch size"),
        ("8,16.5", "'16.5' is not a batch size"),
        ("0,8", "0 is not a batch size"),
        ("-8,8", "-8 is not a batch size"),
        ("128..8", "the smaller size first"),
        ("8:128:*1", "never gets further"),
        ("8:128:+0", "never gets further"),
        ("8:128:*0", "never gets further"),
        ("1:100:+1", "take a larger step"),
        ("8,99999999999", "99999999999 is not a batch size"),
    ],
)
def test_what_cannot_be_read_is_said(text, says):
    with pytest.raises(ValueError, match=says.replace("*", r"\*")):
        parse_sizes(text)


@given(st.sets(st.integers(1, 10**6), min_size=2, max_size=MAX_SIZES))
def test_any_list_comes_back_sorted(sizes):
    assert parse_sizes(",".join(map(str, sizes))) == tuple(sorted(sizes))


@given(st.integers(1, 1000), st.integers(2, 9), st.integers(1, 6))
def test_a_product_range_holds_its_ends_and_its_factor(first, factor, times):
    sizes = parse_sizes(f"{first}:{first * factor**times}:*{factor}")
    assert sizes[0] == first
    assert sizes[-1] == first * factor**times
    assert all(b == a * factor for a, b in itertools.pairwise(sizes))


def test_name_and_sizes():
    assert parse_batch("bs=8,16") == ("bs", (8, 16))
    assert parse_batch(" bs = 8..32") == ("bs", (8, 16, 32))


@pytest.mark.parametrize("text", ["8,16", "=8,16", "2x=8,16", "class=8,16", "a.b=8,16", "a b=8,16"])
def test_names_python_cannot_bind(text):
    with pytest.raises(ValueError, match="batch_size"):
        parse_batch(text)


def test_a_bare_name():
    assert parse_name(" batch_size ") == "batch_size"
    with pytest.raises(ValueError, match="cannot be a variable"):
        parse_name("None")

"""The pieces of HTML: widths that add up, text that stays text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.render.markup import Column, Part, clean, escape, meter, stacked_bar, table


@given(st.lists(st.floats(0, 1e12), min_size=1, max_size=14))
def test_parts_of_a_bar_never_overflow_and_what_is_there_is_seen(sizes):
    bar = stacked_bar([Part("x", "#123456", size, "1 B") for size in sizes], sum(sizes))
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", bar)]
    assert len(widths) == sum(1 for size in sizes if size > 0 and sum(sizes) > 0)
    assert sum(widths) <= 100
    assert all(width > 0 for width in widths)


@given(st.text())
def test_clean_text_is_one_line_that_moves_nothing(text):
    cleaned = clean(text)
    assert all(c.isprintable() for c in cleaned)
    assert cleaned.splitlines() in ([], [cleaned])


def test_direction_marks_and_escapes_are_gone():
    assert clean("a\u202eb\x1b[2Jc\r\nd") == "ab[2Jc  d"
    assert escape('<a href="x">&') == "&lt;a href=&quot;x&quot;&gt;&amp;"


def test_a_meter_is_seen_as_soon_as_there_is_something():
    assert meter(0, "#111111") == ""
    assert "width:1px" in meter(1e-9, "#111111")
    assert "width:64px" in meter(1, "#111111")


@pytest.mark.parametrize("lean", [False, True])
def test_a_table_has_a_caption_and_headers_for_rows_and_columns(lean):
    markup = table("What it is", [Column("name"), Column("size", numeric=True)], [["a", "1"], ["b", "2"]], lean=lean)
    assert "What it is</caption>" in markup
    assert markup.count('scope="col"') == 2
    assert markup.count('scope="row"') == 2
    assert markup.count("text-align:right") == 3

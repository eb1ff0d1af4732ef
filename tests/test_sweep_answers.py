"""What is concluded from rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.comparison import Row
from ipyvram.sweep.answers import KNEE_SHARE, accumulate, batch_axis, fast_enough, knee
from ipyvram.sweep.trial import Trial


@given(st.integers(1, 5000), st.integers(1, 2000))
def test_accumulation_makes_exactly_the_effective_batch_with_batches_that_fit(effective, at_most):
    found = accumulate(effective, at_most)
    last = effective - found.batch * (found.steps - 1)
    assert 0 < last <= found.batch <= at_most
    fewest = -(-effective // at_most)
    assert fewest <= found.steps <= 2 * fewest
    equal = [n for n in range(fewest, 2 * fewest + 1) if effective % n == 0]
    assert (last == found.batch) == bool(equal)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(1, 1e6)), min_size=2, max_size=9, unique_by=lambda p: p[0]))
def test_the_knee_is_the_smallest_size_that_is_fast_enough(points):
    rows = [Row(batch, "measured", samples_per_s=speed) for batch, speed in points]
    found, best = knee(rows), max(speed for _, speed in points)
    assert dict(points)[found] >= KNEE_SHARE * best
    assert all(speed < KNEE_SHARE * best for batch, speed in points if batch < found)


@pytest.mark.parametrize(
    ("name", "shapes", "axis"),
    [
        ("batch_size", {8: (8, 3), 16: (16, 3)}, 0),
        ("batch_size", {8: (5, 8), 16: (5, 16)}, 1),
        ("bs", {8: (5, 8), 16: (5, 16)}, 1),
        ("seq_len", {8: (5, 8), 16: (5, 16)}, None),
        ("jobs", {8: (5, 8), 16: (5, 16)}, None),
        ("side", {8: (5, 3, 8, 8), 16: (5, 3, 16, 16)}, None),
        ("side", {8: (5, 3, 8, 8), 16: (8, 3, 8, 8)}, 0),
        ("anything", {8: (5, 3), 16: (5, 3)}, 0),
        ("words", {8: (5, 31), 16: (5, 38)}, 0),  # of random lengths
        ("one", {8: (5, 8)}, 0),
    ],
)
def test_the_batch_is_the_dimension_that_changes(name, shapes, axis):
    assert batch_axis([Trial(size, shape) for size, shape in shapes.items()], name) == axis


def test_one_speed_has_no_knee():
    assert knee([Row(8, "measured", samples_per_s=3.0), Row(16, "OOM")]) is None


def test_a_knee_fits():
    """At a size beyond the limit, or with retries, the card is too full for it to be an answer."""
    rows = [
        Row(8, "measured", needed_bytes=5, samples_per_s=50.0),
        Row(16, "measured", needed_bytes=9, samples_per_s=99.0),
    ]
    assert (knee(rows, 9), knee(rows, 8), fast_enough(rows)) == (16, None, 16)
    assert knee([rows[0], replace(rows[1], retries=1)], 9) is None

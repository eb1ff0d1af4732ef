"""The line through the peaks, and whether it is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ipyvram.sweep.fit import Point, fit, line_through

MIB = 2**20
BATCHES = st.lists(st.integers(1, 2000), min_size=3, max_size=8, unique=True)


def line(batches, fixed=100 * MIB, slope=2 * MIB):
    return [Point(b, {"parameters": fixed, "activations": slope * b}) for b in batches]


@given(BATCHES, st.integers(0, 10**10), st.integers(1, 10**8))
def test_a_line_is_found_exactly_and_is_one(batches, fixed, slope):
    found = fit(line(batches, fixed, slope))
    assert found.linear
    assert found.dropped == ()
    assert found.fixed_bytes == pytest.approx(fixed, rel=1e-6, abs=slope * 1e-3 + 1)
    assert found.per_sample_bytes == pytest.approx(slope, rel=1e-6)
    twice = 2 * max(batches)
    assert found.predict(twice).bytes == pytest.approx(fixed + slope * twice, rel=1e-6)
    assert found.predict(twice).low <= fixed + slope * twice + 1
    assert found.predict(twice).high >= fixed + slope * twice - 1


@given(BATCHES, st.data())
def test_lines_of_the_categories_add_up_to_the_peaks(batches, data):
    sizes = st.integers(0, 10**9)
    points = [Point(b, {"activations": data.draw(sizes), "other": data.draw(sizes), "inputs": 1}) for b in batches]
    found = fit(points)
    assert sum(f for f, _ in found.categories.values()) == pytest.approx(found.fixed_bytes, rel=1e-6, abs=1e3)
    assert sum(s for _, s in found.categories.values()) == pytest.approx(found.per_sample_bytes, rel=1e-6, abs=1e3)


@given(BATCHES, st.data())
def test_the_line_is_numpys(batches, data):
    values = [data.draw(st.integers(0, 10**9)) for _ in batches]
    slope, fixed = np.polyfit(batches, values, 1)
    found = line_through(batches, values)
    scale = max(values) + 1
    assert found[0] == pytest.approx(fixed, abs=1e-6 * scale)
    assert found[1] == pytest.approx(slope, abs=1e-6 * scale)


@pytest.mark.parametrize("batches", [(8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32, 64, 128), (10, 11, 12, 13)])
@pytest.mark.parametrize("fixed", [0, MIB])
def test_a_square_is_not_a_line(batches, fixed):
    found = fit([Point(b, {"parameters": fixed, "activations": 50_000 * b * b}) for b in batches])
    assert not found.linear
    assert any(words in found.reason for words in ("a sample costs", "misses a size", "grows faster"))
    assert found.reach == max(found.batches)


def test_a_smallest_size_with_another_peak_is_left_out():
    points = [Point(4, {"activations": 60 * MIB}), *line((16, 32, 64), fixed=30 * MIB, slope=MIB)]
    found = fit(points)
    assert found.dropped == (4,)
    assert found.linear
    assert found.per_sample_bytes == pytest.approx(MIB)


def test_with_three_sizes_none_can_be_left_out():
    points = [Point(4, {"activations": 60 * MIB}), *line((16, 32), fixed=30 * MIB, slope=MIB)]
    found = fit(points)
    assert found.dropped == ()
    assert not found.linear


def test_noise_on_a_flat_peak_is_no_bend():
    found = fit([Point(b, {"parameters": 1000 * MIB + noise}) for b, noise in ((8, 0), (16, 5000), (32, 1000))])
    assert found.linear


def test_a_jump_is_not_a_line():
    points = [*line((8, 16, 32)), Point(64, {"parameters": 100 * MIB, "activations": 300 * MIB})]
    assert not fit(points).linear


def test_two_sizes_give_a_line_without_a_range():
    found = fit(line((8, 16)))
    assert found.linear
    assert found.predict(32) == (164 * MIB, None, None)


def test_three_sizes_give_the_range_of_their_secants():
    points = [Point(b, {"activations": y * MIB}) for b, y in ((8, 100), (16, 180), (32, 350))]
    low, high = fit(points).predict(64)[1:]
    secants = [180 + (180 - 100) / 8 * 48, 350 + (350 - 180) / 16 * 32, 350 + (350 - 100) / 24 * 32]
    assert low <= min(secants) * MIB + 1
    assert high >= max(secants) * MIB - 1


@given(st.integers(0, 2**32))
def test_the_interval_is_the_textbooks(seed):
    random = np.random.default_rng(seed)
    batches = [8, 16, 24, 32, 48, 64]
    noise = random.normal(0, MIB, len(batches))
    points = [Point(b, {"activations": int(200 * MIB + 3 * MIB * b + e)}) for b, e in zip(batches, noise, strict=True)]
    found = fit(points)
    assume(not found.dropped)
    design = np.column_stack([np.ones(len(batches)), batches])
    y = np.array([p.bytes for p in points], dtype=float)
    beta = np.linalg.solve(design.T @ design, design.T @ y)
    s = math.sqrt(((y - design @ beta) ** 2).sum() / 4)
    x = np.array([1, 128.0])
    half = 2.776 * s * math.sqrt(1 + x @ np.linalg.inv(design.T @ design) @ x)
    low, high = found.predict(128)[1:]
    assert high - low == pytest.approx(2 * half, rel=1e-6, abs=4)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    batches, inside = (8, 16, 24, 32, 48, 64), 0
    for _ in range(1000):
        points = [Point(b, {"activations": int(200 * MIB + 3 * MIB * b + random.normal(0, MIB))}) for b in batches]
        low, high = fit(points).predict(128)[1:]
        inside += low <= 200 * MIB + 3 * MIB * 128 + random.normal(0, MIB) <= high
    assert 930 <= inside <= 970


def test_long_tables_of_students_t():
    from ipyvram.sweep.fit import _t975

    assert _t975(11) == pytest.approx(2.201, abs=3e-3)
    assert _t975(30) == pytest.approx(2.042, abs=2e-3)
    assert _t975(1000) == pytest.approx(1.962, abs=2e-3)


def test_the_largest_size_within_a_budget():
    found = fit(line((8, 16, 32)))
    assert found.largest(300 * MIB) == pytest.approx(100)
    flat = fit([Point(b, {"parameters": MIB}) for b in (8, 16, 32)])
    assert flat.largest(2 * MIB) == math.inf
    assert flat.largest(MIB / 2) == 0


def test_one_size_is_no_line():
    assert fit(line((8,))) is None
    assert fit([*line((8,)), *line((8,))]) is None

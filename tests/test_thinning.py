"""A curve made short keeps its ends, its peaks and its valleys."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.report_rows import Timeline
from ipyvram.thinning import extremes, pick, thin_timeline

curves = st.lists(st.integers(0, 1000), min_size=1, max_size=400)


@given(curves, st.integers(4, 50))
def test_the_ends_the_peak_and_the_valley_stay(values, points):
    curve = np.array(values)
    rows = pick(np.arange(len(curve), dtype=float), curve, points)
    assert (np.diff(rows) > 0).all()
    kept = curve[rows]
    assert (kept[0], kept[-1], kept.max(), kept.min()) == (curve[0], curve[-1], curve.max(), curve.min())
    assert len(rows) <= max(points, 4) or len(curve) <= points


@given(curves, st.integers(1, 20))
def test_every_bucket_keeps_its_extremes(values, width):
    curve = np.array(values)
    buckets = np.arange(len(curve)) // width
    rows = set(extremes(curve, buckets).tolist())
    for bucket in set(buckets.tolist()):
        inside = np.flatnonzero(buckets == bucket)
        kept = curve[[i for i in inside if i in rows]]
        assert kept.max() == curve[inside].max()
        assert kept.min() == curve[inside].min()
        assert {inside[0], inside[-1]} <= rows


def test_nothing_has_no_extremes():
    assert extremes(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=300))
def test_a_timeline_thins_all_its_columns_alike(rows):
    a, b = (tuple(column) for column in zip(*rows, strict=True))
    times = tuple(float(i) for i in range(len(rows)))
    timeline = Timeline(times, {"parameters": a, "other": b}, reserved=tuple(x + y for x, y in rows), sampled_time_s=times,
                        sampled={"process_rss": a, "device_used": (None, *b[1:])})  # fmt: skip
    thin = thin_timeline(timeline, 40)
    at = {time: i for i, time in enumerate(times)}
    assert [thin.categories["parameters"][i] for i in range(len(thin.time_s))] == [a[at[t]] for t in thin.time_s]
    assert list(thin.reserved) == [x + y for x, y in zip(*thin.categories.values(), strict=True)]
    assert max(thin.allocated) == max(timeline.allocated)
    assert thin.sampled["device_used"] == tuple(None if t == 0 else b[at[t]] for t in thin.sampled_time_s)
    assert len(thin.time_s) <= 40

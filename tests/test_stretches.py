"""Several traces of one device: the peak is told from the trace that saw it, and what lies between is not known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.analysis import analyse
from ipyvram.recording import Action, Claim, Events, Mark, Recording, Trace
from ipyvram.stretches import curves, highest, stretches

SECOND = 1_000_000_000


def trace(start_s, sizes, device="cpu", ended_by="1 step"):
    """Allocations of these sizes, all freed again, one event every ms. Serial numbers begin anew in every trace."""
    rows = [(Action.ALLOC, i + 1, size) for i, size in enumerate(sizes)]
    rows += [(Action.FREE_REQUESTED, i + 1, size) for i, size in enumerate(sizes)]
    begin = start_s * SECOND
    events = Events.from_rows([(*row, 0, begin + 1_000_000 * (i + 1), -1, -1) for i, row in enumerate(rows)])
    return Trace(device, "storages", begin, begin + 1_000_000 * (len(rows) + 1), events, ended_by=ended_by)


def claim(at, address, category, name):
    return Claim(at.start_ns + 1_000_000 * address + 1, at.device, address, 0, category, name)


def recording(*traces, claims=(), marks=()):
    stop = max((t.stop_ns for t in traces), default=0) + SECOND
    return Recording(0, stop, traces=traces, claims=claims, marks=marks, steps=9, traced_steps=len(traces))


@given(st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=20), min_size=1, max_size=4))
def test_the_peak_is_the_highest_of_all_and_every_point_is_known_or_in_a_gap(sizes):
    traces = [trace(i + 1, s) for i, s in enumerate(sizes)]
    report = analyse(recording(*traces))
    assert report.peak_bytes == max(map(sum, sizes)) == sum(report.peak.values())
    timeline = report.timeline_data
    assert len(timeline.gaps_s) == len(traces) - 1
    assert list(timeline.time_s) == sorted(timeline.time_s)
    for time_s, total in zip(timeline.time_s, timeline.allocated, strict=True):
        at = [t for t in traces if t.start_ns / SECOND <= time_s < t.stop_ns / SECOND]
        inside = any(begin <= time_s < end for begin, end in timeline.gaps_s)
        assert inside != bool(at)
        if inside:
            assert total == 0
    assert report.measurement.events == sum(len(t.events) for t in traces)


def test_claims_of_one_trace_say_nothing_of_another():
    first, second = trace(1, [10]), trace(2, [20])
    claims = (claim(first, 1, "parameters", "w"), claim(second, 1, "buffers", "b"))
    report = analyse(recording(first, second, claims=claims))
    assert report.peak == dict.fromkeys(report.peak, 0) | {"buffers": 20}
    assert [t.name for t in report.tensors_at_peak] == ["b"]


def test_phases_and_steps_are_those_of_every_trace():
    first, second = trace(1, [10]), trace(2, [20])
    marks = tuple(
        Mark(t.start_ns + 500_000 + 4_000_000 * late, kind, not late, step)
        for step, t in ((1, first), (7, second))
        for kind, late in (("optimizer", 0), ("optimizer", 1))
    )
    report = analyse(recording(first, second, marks=marks))
    assert [p.step for p in report.phases] == [1, 7]
    assert report.peak_step == 7


def test_the_end_is_that_of_the_last_trace():
    first, second = trace(1, [10]), trace(2, [20], ended_by="end of cell")
    report = analyse(recording(first, second))
    assert report.provenance["end"] == "exact"
    assert report.measurement.ended_by == "1 step; then end of cell"


def test_devices_have_stretches_of_their_own():
    one, two = trace(1, [10]), trace(1, [20], device="cuda:0")
    assert [s.trace for s in stretches(recording(one, two), "cuda:0")] == [two]
    report = analyse(recording(one, two))
    assert (report.device, report.peak_bytes, report.others[0].peak_bytes) == ("cuda:0", 20, 10)


def test_a_device_without_a_trace_has_an_empty_one():
    (only,) = stretches(recording(), "cpu")
    assert only.total.tolist() == [0]


def test_of_equal_peaks_the_first_counts():
    found = stretches(recording(trace(1, [10]), trace(2, [10])), "cpu")
    assert highest(found) is found[0]


@pytest.mark.parametrize("points", [40, 400])
def test_curves_keep_every_traces_peak_however_few_points(points):
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 1000, 500).tolist() for _ in range(3)]
    found = stretches(recording(*(trace(10 * i + 1, s) for i, s in enumerate(sizes))), "cpu")
    joined = curves(found, points)
    total = sum(joined.categories.values())
    for stretch in found:
        inside = (joined.time_ns >= stretch.trace.start_ns) & (joined.time_ns < stretch.trace.stop_ns)
        assert total[inside].max() == stretch.total.max()
    assert len(joined.time_ns) < 2 * points

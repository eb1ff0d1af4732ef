"""Reports of hand-made recordings: peaks beyond the trace, cards, errors, devices; every sum closes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.analysis import analyse
from ipyvram.instants import instant
from ipyvram.marks import PhaseSpan
from ipyvram.recording import (
    Action,
    Block,
    Claim,
    Device,
    ErrorInfo,
    Events,
    Mark,
    OomEvent,
    Recording,
    Samples,
    Trace,
)

GIB = 2**30
CARD = Device("cuda:0", "A card", 24 * GIB, "GPU-1", (9, 0))


def trace(device: str = "cpu", *sizes: int, ended_by: str = "end of cell") -> Trace:
    """Allocations one after the other, then freed in the same order."""
    rows = [(Action.ALLOC, i, size, 0, 10 + i, -1, -1) for i, size in enumerate(sizes, 1)]
    rows += [(Action.FREE_REQUESTED, i, size, 0, 50 + i, -1, -1) for i, size in enumerate(sizes, 1)]
    return Trace(device, "storages", 1, 100, Events.from_rows(rows), ended_by=ended_by)


def samples(device: str = "cuda:0", **columns: list[float]) -> Samples:
    count = len(next(iter(columns.values())))
    times = np.linspace(5, 95, count).astype(np.int64)
    return Samples(device, times, {k: np.array(v, float) for k, v in columns.items()}, count, 0.1, 0.05)


def recording(**fields) -> Recording:
    return Recording(0, 200, **{"devices": (CARD, Device("cpu", "CPU")), **fields})


def closes(report):
    assert sum(report.peak.values()) == report.peak_bytes
    assert sum(t.bytes for t in report.tensors_at_peak) == report.peak_bytes
    if report.card:
        assert report.peak_bytes + sum(report.card.values()) == report.card_bytes
    return report


def test_the_peak_is_the_highest_instant():
    report = closes(analyse(recording(traces=(trace("cpu", 100, 200, 300),))))
    assert (report.device, report.peak_bytes, report.provenance["peak"]) == ("cpu", 600, "exact")
    assert report.timeline_data.allocated[0] == report.timeline_data.allocated[-1] == 0


def test_of_equally_large_tensors_one_with_a_name_is_the_largest_holder():
    """A batch that a loader has ready is as large as the one in hand."""
    claims = tuple(Claim(20, "cpu", i, 300, "inputs", name) for i, name in ((1, ""), (2, "x"), (3, "")))
    report = analyse(recording(traces=(trace("cpu", 300, 300, 300),), claims=claims))
    assert report.holders["inputs"] == "x · 300 B · of 3 tensors"


def test_an_accelerator_comes_before_the_cpu():
    report = analyse(recording(traces=(trace("cpu", 10_000), trace("cuda:0", 10))))
    assert (report.device, [other.device for other in report.others]) == ("cuda:0", ["cpu"])
    assert report.card_bytes == 24 * GIB


def test_a_device_where_nothing_happened_is_a_note():
    """What an earlier cell left on a second card would otherwise be a whole report under every cell that follows."""
    idle = Trace("cuda:1", "storages", 0, 100, Events.from_rows([]), (Block(1, 2048, 2048),))
    report = analyse(recording(traces=(trace("cuda:0", 512), idle)))
    assert report.others == ()
    assert "cuda:1 was not used; 2.00 KiB were there before" in report.measurement.notes
    freed = replace(idle, events=Events.from_rows([(Action.FREE_REQUESTED, 1, 0, 0, 50, -1, -1)]))
    assert [r.device for r in analyse(recording(traces=(trace("cuda:0", 512), freed))).others] == ["cuda:0"]


def test_a_higher_sample_is_shown_as_sampled_and_as_other():
    found = recording(traces=(trace("cuda:0", 100, ended_by="3 steps"),), samples=(samples(allocated=[50, 700, 80]),))
    report = closes(analyse(found))
    assert (report.peak_bytes, report.provenance["peak"], report.peak["other"]) == (
        700,
        "sampled",
        600,
    )  # 100 were traced
    assert report.provenance["categories"] == "inferred"
    assert report.peak_when == "after the traced part"


def test_a_peak_that_is_hardly_higher_later_is_the_traced_one():
    """A loop that keeps its losses: the same step again, and some bytes more."""
    found = recording(
        traces=(trace("cuda:0", 1_000_000, ended_by="3 steps"),), samples=(samples(allocated=[50, 1_008_192, 80]),)
    )
    marks = (
        Mark(5, "forward", True, 1),
        Mark(25, "forward", False, 1),
        Mark(26, "optimizer", True, 1),
        Mark(27, "optimizer", False, 1),
    )
    report = closes(analyse(replace(found, marks=marks, steps=40)))
    assert (report.peak_bytes, report.peak["other"], report.peak_phase, report.peak_step) == (
        1_008_192,
        8192,
        "forward",
        1,
    )
    assert report.peak_when == "step 1, forward (8.00 KiB more later)"
    much = replace(found, samples=(samples(allocated=[50, 1_020_000, 80]),))
    assert analyse(replace(much, marks=marks, steps=40)).peak_when == "after the traced part"


def test_a_counter_that_rose_is_exact():
    found = recording(
        traces=(trace("cuda:0", 100, ended_by="3 steps"),),
        counters_start={"cuda:0": {"allocated_peak": 300}},
        counters_end={"cuda:0": {"allocated_peak": 900}},
    )
    report = closes(analyse(found))
    assert (report.peak_bytes, report.provenance["peak"]) == (900, "exact")


def test_a_counter_from_before_the_cell_says_nothing():
    found = recording(
        traces=(trace("cuda:0", 100),),
        counters_start={"cuda:0": {"allocated_peak": 900}},
        counters_end={"cuda:0": {"allocated_peak": 900}},
    )
    assert analyse(found).peak_bytes == 100


def test_without_a_trace_everything_is_sampled_and_other():
    report = closes(analyse(recording(samples=(samples(allocated=[10, 30, 20], reserved=[40, 40, 40]),))))
    assert (report.peak_bytes, report.peak["other"], report.measurement.source) == (30, 30, "sampler only")
    assert (report.provenance["peak"], report.peak_reserved_bytes) == ("sampled", 40)


@given(
    st.integers(0, GIB), st.integers(0, GIB), st.integers(0, 2 * GIB), st.integers(0, 4 * GIB),
    st.one_of(st.none(), st.integers(0, 4 * GIB)),
)  # fmt: skip
def test_the_card_closes_whatever_was_sampled(peak, cache, context, others, process):
    reserved = peak + cache
    columns = {
        "allocated": [0, peak],
        "reserved": [reserved, reserved],
        "device_used": [reserved + context + others] * 2,
    }
    if process is not None:
        columns["process_used"] = [process, process]
    report = closes(
        analyse(recording(traces=(trace("cuda:0", peak) if peak else trace("cuda:0"),), samples=(samples(**columns),)))
    )
    assert report.card["context"] >= 0
    assert report.card["other_processes"] >= 0


def test_an_out_of_memory_early_in_a_later_trace_is_told():
    """An evaluation after training, say: the peak of the training is an event later than all that it had."""
    later = Trace("cpu", "storages", 110, 190, Events.from_rows([(Action.ALLOC, 1, 40, 0, 120, -1, -1)]))
    refused = OomEvent(130, "cpu", 1000, limit_bytes=500)
    report = closes(analyse(recording(traces=(trace("cpu", 100, 200, 300), later), oom=refused)))
    assert report.peak_bytes == 600
    assert report.oom.account["other"] == report.oom.allocated_bytes == 40


def test_the_users_card_and_limit_are_used():
    report = analyse(recording(traces=(trace("cuda:0", 100),), card_bytes=8 * GIB, limit=(0.5, None)))
    assert (report.card_bytes, report.limit_bytes, report.device_bytes) == (8 * GIB, 4 * GIB, 24 * GIB)
    assert analyse(recording(traces=(trace("cuda:0", 100),), limit=(None, GIB))).limit_bytes == GIB


def test_what_was_asked_beside_the_trace_is_kept():
    found = recording(
        traces=(trace("cpu", 100, ended_by="3 steps"),), label="run", note="text", steps=7, traced_steps=3,
        error=ErrorInfo("ValueError", "bad"), notes=("a", "a", "b"), overhead_s=0.25,
    )  # fmt: skip
    report = analyse(found)
    assert (report.label, report.note, report.steps, report.traced_steps) == ("run", "text", 7, 3)
    assert report.error == "ValueError: bad"
    assert report.measurement.notes == ("a", "b")
    assert report.measurement.ended_by == "3 steps"
    assert report.provenance["end"] == "end of trace"
    assert report.overhead_s == 0.25


def test_nothing_at_all_is_still_a_report():
    report = closes(analyse(Recording(0, 1)))
    assert (report.peak_bytes, report.device, report.tensors_at_peak) == (0, "cpu", ())


def test_claims_of_another_device_do_not_count():
    claims = (Claim(20, "cuda:0", 1, 100, "parameters", "w"),)
    report = analyse(recording(traces=(trace("cpu", 100),), claims=claims))
    assert report.peak["parameters"] == 0


@pytest.mark.parametrize(
    ("at", "words", "phase", "step"),
    [
        (12, "step 1, start of forward", "forward", 1),
        (30, "step 1, forward", "forward", 1),
        (49, "step 1, end of forward", "forward", 1),
        (60, "step 1, backward", "backward", 1),
        (85, "step 1, optimizer step", "optimizer", 1),
        (5, "before the forward of step 1", "", 0),
        (99, "after step 1", "", 0),
    ],
)
def test_the_peak_in_words(at, words, phase, step):
    rows = (
        (action, t, 8 if t == at else 4, 0, t, -1, -1)
        for t in range(2, 100)
        for action in (Action.ALLOC, Action.FREE_REQUESTED)
    )
    events = Events.from_rows(list(rows))
    marks = tuple(
        Mark(t, kind, begin, 1)
        for t, kind, begin in (
            (10, "forward", True), (50, "forward", False), (50, "backward", True), (70, "backward", False),
            (80, "optimizer", True), (90, "optimizer", False),
        )
    )  # fmt: skip
    report = analyse(recording(traces=(Trace("cpu", "storages", 1, 100, events),), marks=marks, steps=1))
    assert (report.peak_when, report.peak_phase, report.peak_step) == (words, phase, step)


@pytest.mark.parametrize(
    ("at", "words"), [(5, "before forward"), (30, "forward"), (55, "before forward"), (90, "after the last forward")]
)
def test_the_peak_in_words_where_nothing_is_trained(at, words):
    phases = tuple(PhaseSpan(begin, begin + 20, "forward", 1, False, begin + 20) for begin in (20, 60))
    assert instant(phases, at, steps=False, parts=False).words == words

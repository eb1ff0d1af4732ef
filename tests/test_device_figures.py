"""What counters and samples say beside the account: reserved bytes, the rest of the card, retries."""

from __future__ import annotations

import numpy as np
import pytest

from ipyvram.device_figures import DeviceFigures
from ipyvram.recording import Recording, Samples

NAN = float("nan")


def figures(segments=None, before=None, after=None, **columns) -> DeviceFigures:
    """A sample at each of 0, 10, 20 … ns."""
    samples = None
    if columns:
        count = len(next(iter(columns.values())))
        values = {name: np.array(column, float) for name, column in columns.items()}
        samples = Samples("cuda:0", np.arange(count) * 10, values, count, 0.1, 0.05)
    recording = Recording(0, 100, counters_start={"cuda:0": before or {}}, counters_end={"cuda:0": after or {}})
    return DeviceFigures(recording, "cuda:0", samples, None if segments is None else np.array(segments))


def test_segments_of_the_trace_tell_more_than_samples():
    both = figures([10, 80, 40])
    assert both.reserved_at(1, 70) == 80
    assert both.reserved_at(0, 70) == 70  # as many are allocated
    assert figures(before={}, allocated=[1.0]).reserved_at(0, 5) is None


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({"segments": [10, 80]}, 80),
        ({"segments": [10, 80], "before": {"reserved_peak": 50}, "after": {"reserved_peak": 90}}, 90),
        (
            {"segments": [10, 80], "before": {"reserved_peak": 90}, "after": {"reserved_peak": 90}},
            80,
        ),  # of an earlier cell
        ({}, None),
    ],
)
def test_the_most_reserved_is_what_rose_in_this_cell(given, most):
    assert figures(**given).peak_reserved() == most


def test_the_rest_of_the_card_is_that_of_the_nearest_sample_that_knows_our_process():
    columns = {"device_used": [50, 60, 70], "reserved": [20, 20, 20]}
    found = figures(process_used=[30, NAN, 45], **columns)
    assert found.card(11, 10, 25, 100) == {"cache": 15, "context": 25, "other_processes": 25, "free": 25}
    alone = figures(**columns)
    assert alone.card(11, 10, 25, 100) == {"cache": 15, "context": 40, "other_processes": 0, "free": 35}
    assert figures().card(11, 10, None, 100) == {"cache": 0, "context": 0, "other_processes": 0, "free": 90}


def test_retries_are_those_of_this_cell():
    found = figures(before={"retries": 3, "reserved": 7}, after={"retries": 5, "ooms": 1, "allocated": 9})
    assert found.allocator() == {"retries": 2, "ooms": 1, "reserved_before": 7, "allocated": 9}
    assert figures().allocator() == {}


def test_what_was_not_sampled_is_none_and_not_zero():
    times, columns = figures(device_used=[5, NAN, 6], gpu_utilization_percent=[1, 2, 3]).sampled(100)
    assert times.tolist() == [0, 10, 20]
    assert columns == {"device_used": (5, None, 6)}
    assert figures().sampled(100)[1] == {}

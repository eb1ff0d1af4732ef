"""Samples: gaps by a fake clock, thinning by a law, faults and the thread by what is left behind."""

from __future__ import annotations

import threading
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram import sampler as sampler_module
from ipyvram.probes import counters
from ipyvram.probes.clock import Clock
from ipyvram.recording import SAMPLE_COLUMNS
from ipyvram.sampler import Sampler, _Series, combined_reader

SECOND = 1_000_000_000


def clock_at(*seconds):
    times = iter(seconds)
    return lambda: round(next(times) * SECOND)


def sampled(sampler, device="cpu"):
    return next(s for s in sampler.stop() if s.device == device)


def test_the_longest_gap_is_kept():
    sampler = Sampler(clock_at(0, 0.05, 0.1, 2.6, 2.65), lambda device: {"allocated": 1}, lambda: ["cpu"], 0.05)
    for _ in range(5):
        sampler.sample()
    samples = sampled(sampler)
    assert (samples.count, samples.longest_gap_s, samples.period_s) == (5, 2.5, 0.05)


def test_a_device_has_samples_from_its_first_use_on():
    sampler = Sampler(
        clock_at(*range(10)), lambda device: {"allocated": 7}, iter([["cpu"], ["cpu", "cuda:1"]]).__next__, 1
    )
    sampler.sample()
    sampler.sample()
    samples = sampled(sampler, "cuda:1")
    assert (samples.count, samples.longest_gap_s) == (1, 0)
    assert samples.columns["allocated"].tolist() == [7]


figures = st.dictionaries(st.sampled_from(SAMPLE_COLUMNS[:3]), st.integers(0, 2**40).map(float))


@given(st.lists(figures, min_size=1, max_size=200), st.sampled_from([2, 4, 8, 32]))
def test_rows_are_bounded_and_hold_the_maximum_of_their_samples(rows, max_rows):
    series = _Series(max_rows)
    for i, row in enumerate(rows):
        series.add(10 * i, row)
    samples = series.samples("cpu", 1.0)
    assert samples.count == len(rows)
    assert len(samples.time_ns) <= max_rows
    places = (samples.time_ns // 10).tolist()
    groups = [rows[begin:end] for begin, end in zip(places, [*places[1:], len(rows)], strict=True)]
    assert sum(map(len, groups)) == len(rows)
    assert len({len(group) for group in groups[:-1]}) <= 1
    for name in SAMPLE_COLUMNS[:3]:
        expected = [max((row[name] for row in group if name in row), default=np.nan) for group in groups]
        found = samples.columns.get(name, np.full(len(groups), np.nan))
        np.testing.assert_array_equal(found, expected)


def test_a_ten_hour_cell_stays_small():
    series = _Series(sampler_module.MAX_ROWS)
    for i in range(10 * 3600 * 20):
        series.add(i, {"allocated": float(i)})
    samples = series.samples("cpu", 0.05)
    assert len(samples.time_ns) <= sampler_module.MAX_ROWS
    assert samples.columns["allocated"].max() == 10 * 3600 * 20 - 1
    assert series._values.nbytes + series._time.nbytes < 1_000_000


def test_the_thread_samples_and_is_gone_after_stop_however_long_the_period():
    seen = threading.Event()
    sampler = Sampler(Clock(), lambda device: {"allocated": 1}, lambda: ["cpu"], 0.001)
    sampler.on_sample = lambda latest: seen.set() if threading.current_thread() is not threading.main_thread() else None
    sampler.start()
    assert seen.wait(60)
    sampler.stop()
    slow = Sampler(Clock(), lambda device: {"allocated": 1}, lambda: ["cpu"], 3600)
    slow.start()
    (thread,) = [t for t in threading.enumerate() if t.name == "ipyvram-sampler"]
    assert thread.daemon
    assert sampled(slow).count == 2  # one at each end
    assert not thread.is_alive()


def test_a_reader_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(sampler_module, "_JOIN_S", 0.01)
    release, hanging = threading.Event(), threading.Event()

    def reader(device):
        if threading.current_thread() is not threading.main_thread():
            hanging.set()
            release.wait(60)
        return {"allocated": 1}

    sampler = Sampler(Clock(), reader, lambda: ["cpu"], 0.001)
    sampler.start()
    assert hanging.wait(60)
    samples = sampled(sampler)
    release.set()
    assert samples.count == 1
    assert "left behind" in sampler.notes[0]


def test_a_reader_that_fails_costs_its_device_only():
    def reader(device):
        if device == "cuda:0":
            raise OSError("the card fell off the bus")
        return {"process_rss": 5}

    sampler = Sampler(count().__next__, reader, lambda: ["cpu", "cuda:0"], 1)
    sampler.sample()
    sampler.sample()
    both = {s.device: s for s in sampler.stop()}
    assert both["cpu"].columns["process_rss"].tolist() == [5, 5]
    assert both["cuda:0"].columns == {}
    assert sampler.notes == ["cuda:0 could not be sampled: OSError: the card fell off the bus"]


def test_when_devices_cannot_be_listed_the_known_ones_are_read():
    def listed():
        yield ["cpu"]
        raise RuntimeError("no list")

    sampler = Sampler(count().__next__, lambda device: {"process_rss": 5}, listed().__next__, 1)
    sampler.sample()
    sampler.sample()
    assert sampled(sampler).count == 2
    assert "could not be listed: RuntimeError: no list" in sampler.notes[0]


def test_the_live_view_is_the_last_sample_and_may_fail():
    def broken(latest):
        raise ValueError("no display")

    sampler = Sampler(count().__next__, lambda device: {"allocated": 3}, lambda: ["cpu"], 1)
    sampler.on_sample = broken
    sampler.sample()
    assert sampler.latest == {"cpu": {"allocated": 3}}
    assert sampler.on_sample is None
    assert sampler.notes == ["the live view stopped: ValueError: no display"]
    sampler.sample()
    assert sampled(sampler).count == 2


class Card:
    """Answers for a card as `probes.nvml.Cards` does."""

    def __init__(self, **figures):
        self.figures = figures

    def read(self, device):
        return dict(self.figures)


def test_another_process_with_our_pid_is_not_taken_for_us(monkeypatch):
    monkeypatch.setattr(counters, "read", lambda device: {"reserved": 100})
    card = {"device_used": 900, "other_processes": 1}
    assert combined_reader(Card(process_used=99, **card))("cuda:0") == {"reserved": 100, "device_used": 900}
    assert combined_reader(Card(process_used=100, **card))("cuda:0")["process_used"] == 100


def test_a_figure_that_torch_outran_is_left_out(monkeypatch):
    """Between torch's counters and the driver's answer the program took more: the difference is no context."""
    amounts = iter([100, 300, 300, 300])
    monkeypatch.setattr(counters, "read", lambda device: {"reserved": next(amounts)})
    card = {"device_used": 900.0, "other_processes": 5.0, "process_used": 700.0}
    read = combined_reader(Card(**card))
    assert read("cuda:0") == {"reserved": 100, "device_used": 900}
    assert read("cuda:0") == {"reserved": 300} | card


def test_without_nvml_cuda_itself_tells_of_the_card(monkeypatch):
    monkeypatch.setattr(counters, "read", lambda device: {"reserved": 100})
    monkeypatch.setattr(counters, "card_memory", lambda device: {"device_used": 7})
    assert combined_reader(None)("cuda:0")["device_used"] == 7
    assert combined_reader(Card(device_used=8))("cuda:0")["device_used"] == 8


@pytest.mark.parametrize("figures", [{}, {"unheard_of": 3.0}])
def test_figures_without_a_column_are_passed_over(figures):
    sampler = Sampler(count().__next__, lambda device: figures, lambda: ["cpu"], 1)
    sampler.sample()
    assert sampled(sampler).columns == {}

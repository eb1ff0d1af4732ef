"""The whole CUDA path on the simulated card: a program in, a report out, every sum closed to the byte."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ipyvram import arming
from ipyvram import run as run_module
from ipyvram.analysis import analyse
from ipyvram.caching_allocator import Settings
from ipyvram.ledger import build
from ipyvram.options import Options
from ipyvram.recording import CATEGORIES, Cell, Recording
from ipyvram.run import Run
from tests import nvml_stub
from tests.simulated_cuda import MIB, WORKSPACE, SimulatedCuda


class DriverView:
    """In place of NVML: what the driver would say of the simulated cards."""

    notes: tuple[str, ...] = ()

    def __init__(self, cuda):
        self.cuda = cuda

    def names(self):
        return ["Simulated GPU"] * self.cuda.devices

    def read(self, device):
        if not device.startswith("cuda"):
            return {}
        used, mine, others = self.cuda.used(int(device.partition(":")[2]))
        return {
            "device_used": used, "device_total": self.cuda.capacity, "process_used": mine, "other_processes": others,
        }  # fmt: skip

    def processes(self, device):
        return {}

    def close(self):
        pass


def train(steps=3, batch=16, width=64, depth=2, optimizer=torch.optim.Adam):
    model = nn.Sequential(
        *(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())), nn.Linear(width, 4)
    )
    chosen = optimizer(model.parameters(), lr=0.01)
    for _ in range(steps):
        x, y = torch.randn(batch, width), torch.randint(0, 4, (batch,))
        loss = nn.functional.cross_entropy(model(x), y)
        chosen.zero_grad()
        loss.backward()
        chosen.step()
    return model, chosen


def measured(cuda, program, monkeypatch=None, **options):
    """Run a program as the magic does; gives the recording and the report."""
    run = Run(Options(**options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "open_cards", lambda: DriverView(cuda))
        run.start()
        error = None
        try:
            kept = program()
        except Exception as caught:
            error, kept = caught, None
        recording = run.stop(error)
    del kept
    return recording, analyse(recording)


def check_sums(report, cuda):
    card = cuda.cards[int(report.device.partition(":")[2])]
    assert set(report.peak) == set(CATEGORIES)
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak_bytes + sum(report.card.values()) == report.card_bytes == cuda.capacity
    assert min(report.peak.values()) >= 0
    frame = report.timeline()
    exact = frame[frame["activations"].notna()]
    assert (exact[list(CATEGORIES)].sum(axis=1) == exact["allocated"]).all()
    assert (exact["reserved"] >= exact["allocated"]).all()
    return card


def test_the_sums_close_and_equal_the_allocators_own_counters():
    with SimulatedCuda(others_bytes=700 * MIB) as cuda:
        recording, report = measured(cuda, train)
        card = check_sums(report, cuda)
        assert report.device == "cuda:0"
        assert report.provenance["peak"] == "exact"
        assert report.peak_bytes == card.allocator.allocated_peak
        assert report.peak_reserved_bytes == card.allocator.reserved_peak
        assert report.card["context"] == cuda.context_bytes
        assert report.card["other_processes"] == cuda.others_bytes
        assert report.peak["workspaces"] == WORKSPACE
        assert report.peak["other"] == 0
        assert not [n for n in report.measurement.notes if "mismatch" in n or "replay" in n]
    parameters = sum(p.numel() * 4 for p in train(0)[0].parameters())
    blocks = sum(-(-p.numel() * 4 // 512) * 512 for p in train(0)[0].parameters())
    assert parameters < report.peak["parameters"] == report.peak["gradients"] == blocks
    assert recording.traces[0].source == "history"


def test_the_drivers_figures_close_the_card(tmp_path):
    """Through the real pynvml: this process's share beyond the allocator is the context, the rest is other processes."""
    mine, others, total = 2 << 30, 1 << 30, 24 << 30
    for stub in nvml_stub.load(tmp_path):
        stub.processes({os.getpid(): mine, 12345: others})
        with SimulatedCuda(capacity=total, uuid=nvml_stub.CARD):
            run = Run(Options(interval_s=0.005))
            run.start()
            kept = train()
            recording = run.stop()
            report = analyse(recording)
        del kept
    samples = next(s for s in recording.samples if s.device == "cuda:0")
    held = samples.columns["reserved"]
    assert report.card["other_processes"] == others
    assert report.card["context"] in {int(mine - r) for r in held[~np.isnan(held)]}
    assert report.peak_bytes + sum(report.card.values()) == report.card_bytes == total
    assert report.card["cache"] >= 0
    assert report.device_name == "Simulated GPU"


def test_the_last_instant_is_what_the_counters_say():
    with SimulatedCuda() as cuda:
        model, optimizer = train(1)
        before = torch.cuda.memory_allocated()
        recording, report = measured(cuda, lambda: [torch.zeros(1000), *train(1)], trace_steps=50)
        assert sum(report.start.values()) == before
        assert sum(report.end.values()) == recording.counters_end["cuda:0"]["allocated"]
        assert report.start["other"] < before
        assert model is not None
        assert optimizer is not None


@pytest.mark.parametrize("conf", ["", "expandable_segments:True", "max_split_size_mb:21", "roundup_power2_divisions:4"])
def test_block_sizes_under_other_settings(conf):
    with SimulatedCuda(settings=Settings.from_conf(conf)) as cuda:
        _, report = measured(cuda, lambda: train(width=1024, batch=512))
        card = check_sums(report, cuda)
        assert report.peak_bytes == card.allocator.allocated_peak
        assert report.peak_reserved_bytes == card.allocator.reserved_peak
        assert not [n for n in report.measurement.notes if "replay" in n]


@given(
    width=st.integers(1, 300), depth=st.integers(1, 4), batch=st.integers(1, 200), steps=st.integers(0, 3),
    optimizer=st.sampled_from([torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad]), expandable=st.booleans(),
)  # fmt: skip
@settings(max_examples=8, deadline=None)
def test_every_byte_has_a_name_in_random_programs(width, depth, batch, steps, optimizer, expandable):
    with SimulatedCuda(settings=Settings(expandable_segments=expandable)) as cuda:
        _, report = measured(cuda, lambda: train(steps, batch, width, depth, optimizer), trace_steps=9)
        card = check_sums(report, cuda)
        assert report.peak_bytes == card.allocator.allocated_peak
        assert report.peak_reserved_bytes == card.allocator.reserved_peak


def test_out_of_memory_leaves_a_report():
    with SimulatedCuda(capacity=400 * MIB) as cuda:
        _, report = measured(cuda, lambda: [torch.zeros(20 * MIB) for _ in range(9)])
        check_sums(report, cuda)
        assert "out of memory" in report.error
        assert report.peak_bytes == cuda.cards[0].allocator.allocated_peak
        assert report.allocator["ooms"] == 1


def test_two_cards_get_an_account_each():
    def both():
        first = train(1)
        with cuda.on(card=1, stream=3):
            second = torch.zeros(8 * MIB)
        return first, second

    with SimulatedCuda(devices=2) as cuda:
        _, report = measured(cuda, both)
        accounts = {r.device: r for r in (report, *report.others)}
        assert {"cuda:0", "cuda:1"} <= set(accounts)
        for index in (0, 1):
            check_sums(accounts[f"cuda:{index}"], cuda)
            assert accounts[f"cuda:{index}"].peak_bytes == cuda.cards[index].allocator.allocated_peak


def test_a_clock_that_is_off_does_not_misplace_claims_and_phases():
    with SimulatedCuda(skew_us=-3_000_000) as cuda:
        _, report = measured(cuda, train)
        assert report.peak["other"] == 0
        assert report.peak["parameters"] == report.peak["gradients"] > 0
        assert {p.name for p in report.phases} == {"forward", "backward", "optimizer"}


def test_pins_make_up_for_a_clock_that_jitters():
    """Where torch lets us, claims stand between the very events that they were made between, whatever the clock says."""
    with SimulatedCuda(jitter_us=200_000, annotates=True) as cuda:
        _, report = measured(cuda, train)
        check_sums(report, cuda)
        assert report.peak["parameters"] == report.peak["gradients"] > 0
        assert report.peak["optimizer_state"] > 0


def test_a_second_traced_stretch_begins_from_what_is_live_then(monkeypatch):
    """After the traced steps the history is off; a later stretch is exact again, to the last byte."""
    modes = arming.dispatch_modes  # the simulation's own mode is not the program's
    monkeypatch.setattr(modes, "_get_current_dispatch_mode_stack", list)
    with SimulatedCuda() as cuda:
        run = Run(Options(trace_steps=1))
        run.start()
        model, optimizer = train(2)
        assert cuda.history is None
        grown = torch.zeros(30 * MIB)
        assert run.retrace("asked for")
        assert cuda.history is not None
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(16, 64)).square().mean().backward()
            optimizer.step()
        recording = run.stop()
        assert cuda.history is None
        report = analyse(recording)
        card = cuda.cards[0]
        assert [t.source for t in recording.traces] == ["history", "history"]
        assert report.peak_bytes == card.allocator.allocated_peak
        assert sum(report.peak.values()) == report.peak_bytes
        for trace in recording.traces:
            assert trace.complete
            assert build(trace).mismatches == 0
            assert build(trace).allocated()[0] == trace.allocated_start
    del grown


def test_a_model_on_the_cpu_beside_an_idle_card_is_traced_there(monkeypatch):
    monkeypatch.setattr(SimulatedCuda, "_identify", lambda self, storage: None)
    monkeypatch.setattr(SimulatedCuda, "drain", lambda self: None)
    with SimulatedCuda(workspace=False) as cuda:
        recording, report = measured(cuda, train)
    assert "storages" in {t.source for t in recording.traces}
    assert report.device == "cpu"
    assert report.peak["parameters"] > 0
    assert any(f.kind == "idle_gpu" for f in report.findings)


def test_what_a_model_on_the_cpu_holds_is_claimed_where_its_trace_begins(monkeypatch):
    """At the start of the cell no trace followed it; its buffers are saved by no graph."""
    monkeypatch.setattr(SimulatedCuda, "_identify", lambda self, storage: None)
    monkeypatch.setattr(SimulatedCuda, "drain", lambda self: None)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    with SimulatedCuda(workspace=False):
        run = Run(Options(), namespace={"model": model})
        run.start()
        model(torch.randn(16, 8)).sum().backward()
        recording = run.stop()
    claimed = {(c.category, c.name) for c in recording.claims}
    assert {("parameters", "0.weight"), ("buffers", "1.running_mean")} <= claimed


def test_the_cell_finds_the_allocator_as_it_left_it():
    with SimulatedCuda() as cuda:
        measured(cuda, train)
        assert cuda.history is None
        assert not {"empty_cache", "reset_peak_memory_stats"} & set(cuda.calls)


def test_without_a_history_operators_are_traced(monkeypatch):
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    with SimulatedCuda() as cuda:
        recording, report = measured(cuda, train)
    assert {t.source for t in recording.traces} == {"storages"}
    assert any("PYTORCH_NO_CUDA_MEMORY_CACHING" in note for note in report.measurement.notes)
    assert sum(report.peak.values()) == report.peak_bytes > 0


def test_a_recording_of_a_card_comes_back_from_its_file(tmp_path):
    with SimulatedCuda() as cuda:
        recording, report = measured(cuda, train)
    recording.save(tmp_path / "r.zip")
    assert analyse(Recording.load(tmp_path / "r.zip")) == report


def test_a_cell_that_grows_is_traced_again_on_cuda():
    """The second trace has the peak: its account, and the first one's, are to the byte what the allocator counts."""

    def program():
        model = nn.Linear(256, 256)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for batch in (64, 64, 64, 64, 8000, 8000, 8000):
            model(torch.randn(batch, 256)).square().mean().backward()
            sample()
            optimizer.step()
            optimizer.zero_grad()
        return model

    runs = []

    def sample():
        runs[0]._sampler.sample()

    with SimulatedCuda() as cuda, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "open_cards", lambda: DriverView(cuda))
        runs.append(Run(Options(interval_s=60)))
        runs[0].start()
        kept = program()
        recording = runs[0].stop()
        report = analyse(recording)
        card = check_sums(report, cuda)
        assert report.peak_bytes == card.allocator.allocated_peak
        del kept
    first, second = (t for t in recording.traces if t.device == "cuda:0")
    assert first.ended_by == "3 steps"
    assert second.ended_by.startswith("step 6 (memory grew by")
    assert report.peak["other"] == 0
    assert report.peak_step == 6


def test_an_emptied_cache_is_told_from_a_full_card():
    kept = []

    def program(full=False):
        large = torch.zeros(60 * MIB)
        kept.append(torch.zeros(20 * MIB))
        del large
        if full:
            kept.append(torch.zeros(80 * MIB))  # does not fit beside the cache: the allocator gives that back itself
        else:
            torch.cuda.empty_cache()

    gc.collect()  # what earlier tests left is not freed into this card
    with SimulatedCuda(capacity=900 * MIB) as cuda:
        recording, report = measured(cuda, program)
        assert recording.counters_end["cuda:0"]["retries"] == 0
        assert [f.bytes for f in report.findings if f.kind == "empty_cache"] == [240 * MIB]
        for source, told in [("torch.cuda.empty_cache()", 1), ("trainer.train()", 0)]:  # some trainers empty it
            report = analyse(replace(recording, cell=Cell(source=source)))
            assert len([f for f in report.findings if f.kind == "empty_cache"]) == told
        kept.clear()
        _, report = measured(cuda, lambda: program(full=True))
        assert not [f for f in report.findings if f.kind == "empty_cache"]
        kept.clear()

"""The history probe against the simulated CUDA: what it records, and what it leaves as it was."""

from __future__ import annotations

import gc
import inspect

import numpy as np
import pytest
import torch

from ipyvram.ledger import build
from ipyvram.probes import history as history_module
from ipyvram.probes.clock import Clock
from ipyvram.probes.history import HistoryTrace
from ipyvram.probes.stacks import Interner
from ipyvram.recording import Action
from tests.simulated_cuda import MIB, SimulatedCuda


@pytest.fixture
def cuda():
    with SimulatedCuda(workspace=False) as simulated:
        yield simulated


def started():
    probe = HistoryTrace(Clock(), Interner())
    probe.start()
    return probe


def ended(probe):
    probe.stop("end of cell")
    return probe.traces()


def test_a_long_history_is_read_at_once(cuda, monkeypatch):
    """Its dictionaries would slow the cell's garbage collections for as long as the cell runs."""
    for most, read in ((50_000, False), (1, True)):
        monkeypatch.setattr(history_module, "_READ_LATER", most)
        probe = started()
        made = [torch.zeros(700) for _ in range(3)]
        probe.stop("end of cell")
        assert (probe._taken is None) is read
        (trace,) = probe.traces()
        assert (trace.events.action == Action.ALLOC).sum() == len(made)
        assert probe.traces() == (trace,)


def test_events_baseline_and_counters_agree(cuda):
    kept, freed_inside = torch.zeros(3 * MIB), torch.zeros(700)
    probe = started()
    first = torch.cuda.memory_allocated()
    del freed_inside
    made = torch.ones(5 * MIB // 4)
    (trace,) = ended(probe)
    ledger = build(trace)
    assert trace.complete and not probe.notes  # noqa: PT018
    assert trace.allocated_start == first == ledger.allocated()[0]
    assert ledger.allocated()[-1] == torch.cuda.memory_allocated()
    assert ledger.reserved[-1] == torch.cuda.memory_reserved()
    assert ledger.mismatches == 0
    assert kept.numel() and made.numel()  # noqa: PT018


def test_stacks_are_the_users_frames_innermost_first(cuda):
    stacks = Interner()
    probe = HistoryTrace(Clock(), stacks)
    probe.start()

    def helper():
        return torch.zeros(10)

    made = helper()
    (trace,) = ended(probe)
    row = int(np.flatnonzero(trace.events.action == Action.ALLOC)[-1])
    frames = stacks.values()[trace.events.stack[row]]
    assert [f.function for f in frames[:2]] == ["helper", "test_stacks_are_the_users_frames_innermost_first"]
    assert frames[0].file == __file__
    assert made.numel() == 10


def test_switches_off_what_it_switched_on(cuda):
    probe = started()
    probe.stop("end of cell")
    assert cuda.history is None
    assert "empty_cache" not in cuda.calls
    assert "reset_peak_memory_stats" not in cuda.calls


@pytest.mark.parametrize("enabled", [True, False])
def test_cycles_are_not_looked_for_while_the_snapshot_is_read_and_as_before_afterwards(cuda, monkeypatch, enabled):
    seen, take = [], torch.cuda.memory._snapshot
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: seen.append(gc.isenabled()) or take())
    probe, before = started(), gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        probe.stop("end of cell")
        seen.append(gc.isenabled())
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False, enabled]


def test_a_users_own_history_is_read_and_left_on(cuda):
    torch.cuda.memory._record_memory_history(max_entries=10_000)
    before = torch.zeros(1000)
    probe = started()
    during = torch.zeros(2000)
    (trace,) = ended(probe)
    assert cuda.history is not None
    assert cuda.calls.count("_record_memory_history('all')") == 1
    assert [s for a, s in zip(trace.events.action, trace.events.size, strict=True) if a == Action.ALLOC] == [8000]
    assert any("already on" in note for note in probe.notes)
    assert trace.complete
    assert build(trace).allocated()[0] == 4096
    assert before.numel() + during.numel() == 3000


@pytest.mark.parametrize("own", [True, False])
def test_pins_go_into_our_own_history_only(own):
    with SimulatedCuda(workspace=False, annotates=True) as cuda:
        if own:
            torch.cuda.memory._record_memory_history(max_entries=10)
        probe = started()
        made = torch.zeros(10)
        probe.identify(made.untyped_storage())
        pins = [e for e in cuda.cards[0].ring if e["action"] == "annotate"]
        probe.stop("end of cell")
    assert len(pins) == (0 if own else 1)


def test_what_is_seen_in_one_look_lies_between_two_pins():
    with SimulatedCuda(workspace=False, annotates=True) as cuda:
        probe = started()
        made = [torch.zeros(10) for _ in range(5)]
        for look in (made, made[:2], []):
            for tensor in look:
                probe.identify(tensor.untyped_storage())
            probe.looked()
        pins = [e for e in cuda.cards[0].ring if e["action"] == "annotate"]
        probe.stop("end of cell")
    assert len(pins) == 4


def test_a_history_that_the_cell_switches_on_itself_is_its_own(cuda):
    original = torch.cuda.memory._record_memory_history
    probe = started()
    before = torch.zeros(1000)
    torch.cuda.memory._record_memory_history(context="all", max_entries=50)
    during = torch.zeros(2000)
    (trace,) = ended(probe)
    assert cuda.history is not None
    assert cuda.calls[-2:] == ["_record_memory_history('all')", "_snapshot"]
    assert any("switched the allocator's history on itself" in note for note in probe.notes)
    assert torch.cuda.memory._record_memory_history == original
    assert len(trace.events)
    assert before.numel() + during.numel() == 3000


def test_what_listens_to_torch_looks_like_torchs_own(cuda):
    signature = inspect.signature(torch.cuda.memory._record_memory_history)
    probe = started()
    assert inspect.signature(torch.cuda.memory._record_memory_history) == signature
    probe.stop("end of cell")
    assert "_record_memory_history" in cuda.calls[-1]


def test_a_full_ring_buffer_is_said_and_the_rest_still_adds_up(cuda, monkeypatch):
    monkeypatch.setattr(history_module, "MAX_ENTRIES", 20)
    kept = torch.zeros(100)
    probe = started()
    for _ in range(30):
        torch.zeros(5000)
    last = torch.zeros(3 * MIB)
    (trace,) = ended(probe)
    assert len(trace.events) == 20
    assert not trace.complete
    assert any("lost its first events" in note for note in probe.notes)
    assert build(trace).allocated()[-1] == torch.cuda.memory_allocated()
    assert kept.numel() + last.numel()


def test_a_users_full_buffer_is_noticed_by_what_was_live(cuda):
    torch.cuda.memory._record_memory_history(max_entries=4)
    probe = started()
    kept = torch.zeros(1000)
    for _ in range(5):
        torch.zeros(7)
    (trace,) = ended(probe)
    assert not trace.complete
    assert kept.numel() == 1000


def test_the_cell_switching_the_history_off_is_said(cuda):
    probe = started()
    made = torch.zeros(1000)
    torch.cuda.memory._record_memory_history(None)
    traces = ended(probe)
    assert any("switched the allocator's history off" in note for note in probe.notes)
    assert not traces[0].complete
    assert made.numel() == 1000


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda m: m.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"), "PYTORCH_NO_CUDA_MEMORY_CACHING"),
        (lambda m: m.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync"), "cudaMallocAsync"),
        (lambda m: m.delattr(torch.cuda.memory, "_record_memory_history"), "has no _record_memory_history"),
    ],
)
def test_where_there_is_no_history_it_says_why(cuda, monkeypatch, prepare, words):
    prepare(monkeypatch)
    probe = started()
    assert not probe.active
    assert words in probe.notes[0]
    assert ended(probe) == ()
    assert "_record_memory_history('all')" not in cuda.calls


def test_a_torch_that_does_not_tell_whether_it_records(cuda, monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_isHistoryEnabled")
    probe = started()
    made = torch.zeros(1000)
    (trace,) = ended(probe)
    assert len(trace.events) == 2 + 0 * made.numel()
    assert cuda.history is None


def test_an_older_torch_without_the_newer_options(cuda, monkeypatch):
    def older(enabled="all", context="all", stacks="all", max_entries=1, device=None):
        seen.append((context, stacks, max_entries))
        new(enabled, context, stacks, max_entries)

    seen, new = [], torch.cuda.memory._record_memory_history
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", older)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: cuda._memory_snapshot())
    probe = started()
    made = torch.zeros(1000)
    (trace,) = ended(probe)
    assert seen[0] == ("alloc", "python", history_module.MAX_ENTRIES)
    assert len(trace.events) and made.numel()  # noqa: PT018


def test_the_history_clock_is_put_onto_ours():
    """A history that runs 250 ms ahead: claims and marks on our clock still meet the right allocations."""
    with SimulatedCuda(skew_us=250_000, workspace=False):
        clock = Clock()
        probe = HistoryTrace(clock, Interner())
        probe.start()
        before = clock()
        made = torch.zeros(1000)
        after = clock()
        (trace,) = ended(probe)
    row = int(np.flatnonzero(trace.events.action == Action.ALLOC)[-1])
    assert before - 100_000 < trace.events.time_ns[row] < after + 100_000
    assert made.numel() == 1000


def test_several_devices_and_streams():
    with SimulatedCuda(devices=2) as cuda:
        here = torch.zeros(1000)
        probe = started()
        with cuda.on(card=1, stream=7):
            there = torch.zeros(3 * MIB)
        with cuda.on(card=1, stream=9):
            torch.zeros(5 * MIB)
        traces = {t.device: t for t in ended(probe)}
        assert set(traces) == {"cuda:0", "cuda:1"}
        assert set(traces["cuda:1"].events.stream.tolist()) == {7, 9}
        for index, name in enumerate(("cuda:0", "cuda:1")):
            ledger = build(traces[name])
            assert ledger.mismatches == 0
            assert ledger.allocated()[-1] == torch.cuda.memory_allocated(index)
            assert ledger.reserved[-1] == torch.cuda.memory_reserved(index)
    assert here.numel() + there.numel()


def test_private_pools_of_graphs_are_named(cuda):
    probe = started()
    with cuda.on(private=(0, 1)):
        static = torch.zeros(3 * MIB)
    rest = torch.zeros(3 * MIB)
    (trace,) = ended(probe)
    assert {s.private_pool for s in trace.segments_end} == {(0, 0), (0, 1)}
    assert any("private pools (CUDA graphs" in note for note in probe.notes)
    assert build(trace).mismatches == 0
    assert static.numel() + rest.numel()


def test_expandable_segments_add_up():
    from ipyvram.caching_allocator import Settings

    with SimulatedCuda(settings=Settings(expandable_segments=True)):
        kept = [torch.zeros(n * MIB) for n in (1, 3)]
        probe = started()
        kept.append(torch.zeros(9 * MIB))
        del kept[0]
        kept.append(torch.zeros(2 * MIB))
        (trace,) = ended(probe)
        ledger = build(trace)
        assert ledger.mismatches == 0
        assert ledger.allocated()[-1] == torch.cuda.memory_allocated()
        assert ledger.reserved[-1] == torch.cuda.memory_reserved()

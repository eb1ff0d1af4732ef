"""What is put off until CUDA is in use, and that nothing of ours starts it."""

from __future__ import annotations

import os

import pytest
import torch

from ipyvram import devices, run
from ipyvram.analysis import analyse
from ipyvram.options import Options
from ipyvram.probes import oom
from ipyvram.probes.beginning import in_use, when_in_use
from ipyvram.run import Run
from tests.simulated_cuda import SimulatedCuda


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(oom, "_attached", False)
    with SimulatedCuda(workspace=False, begun=False) as simulated:
        yield simulated


def test_at_once_when_in_use_and_else_when_it_begins(cuda):
    done = []
    when_in_use(lambda: done.append("put off"))
    assert not done
    assert not in_use()
    cuda.begin()
    assert done == ["put off"]
    assert in_use()
    when_in_use(lambda: done.append("at once"))
    assert done == ["put off", "at once"]


def test_what_was_called_off_leaves_nothing(cuda):
    done = []
    cancel = when_in_use(lambda: done.append(1))
    assert len(torch.cuda._queued_calls) == 1
    cancel()
    assert torch.cuda._queued_calls == []
    cuda.begin()
    assert not done


def test_a_late_fault_is_not_the_programs(cuda):
    def broken():
        raise RuntimeError("ours")

    when_in_use(broken)
    cuda.begin()
    with pytest.raises(RuntimeError, match="ours"):
        when_in_use(broken)  # at once it is the caller's, who notes it


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_left_alone(cuda, tmp_path):
    done = tmp_path / "done"
    when_in_use(done.touch)
    child = os.fork()
    if child == 0:
        try:
            cuda.begin()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert not done.exists()
    cuda.begin()
    assert done.exists()


def test_without_torchs_queue_nothing_happens(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.delattr(torch.cuda, "_lazy_call")
    when_in_use(lambda: pytest.fail("there is no moment to run at"))()


def test_devices_are_counted_and_the_driver_is_not_started(cuda):
    assert devices.cuda_possible()
    assert "is_available" not in cuda.calls
    cuda.devices = 0
    assert not devices.cuda_possible()
    cuda.begin()
    assert devices.cuda_possible()


def measured(cuda, program, **options):
    watch = Run(Options(**options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "open_cards", lambda: (_ for _ in ()).throw(RuntimeError("no NVML")))
        watch.start()
        error = None
        try:
            kept = program()
        except Exception as caught:
            error, kept = caught, None
        recording = watch.stop(error)
    del kept
    return recording, analyse(recording)


def test_a_cell_that_never_uses_cuda_does_not_start_it(cuda):
    recording, _ = measured(cuda, lambda: None)
    assert not recording.traces
    assert not {"is_available", "_snapshot", "_record_memory_history('all')"} & set(cuda.calls)
    assert torch.cuda._queued_calls == []


def test_the_first_cell_that_uses_cuda_is_traced_from_its_first_allocation(cuda):
    def cell():
        cuda.begin()
        return torch.ones(1 << 20), torch.ones(5)

    recording, report = measured(cuda, cell)
    (trace,) = recording.traces
    assert trace.complete
    assert trace.source == "history"
    assert trace.start_ns <= trace.events.time_ns[0]
    assert report.peak_bytes == torch.cuda.max_memory_allocated() == (4 << 20) + 512
    assert cuda.history is None


def test_its_out_of_memory_is_explained(cuda):
    def cell():
        cuda.begin()
        torch.cuda.set_per_process_memory_fraction(0.002)
        return torch.ones(1 << 20), torch.empty(16 << 20)

    recording, _ = measured(cuda, cell)
    assert recording.oom is not None
    assert recording.oom.requested_bytes == 64 << 20
    assert recording.oom.allocated_bytes == 4 << 20


def test_a_history_of_the_users_own_from_before_cuda_is_left_on(cuda):
    torch.cuda.memory._record_memory_history(max_entries=1000)

    def cell():
        cuda.begin()
        return torch.ones(1000)

    recording, _ = measured(cuda, cell)
    assert recording.traces[0].complete
    assert any("already on" in note for note in recording.notes)
    assert cuda.history is not None


def test_an_allocator_chosen_by_the_cell_is_said(cuda):
    def cell():
        cuda.backend = "pluggable"
        cuda.begin()

    recording, _ = measured(cuda, cell)
    assert any("the allocator is pluggable, which keeps none" in note for note in recording.notes)
    assert not recording.traces
    assert not oom._attached  # such an allocator has no observers


def test_a_late_refusal_of_the_history_is_said(cuda):
    def refuse(*args, **kwargs):
        raise TypeError("unexpected keyword\nand more")

    with pytest.MonkeyPatch.context() as patch:  # undone before the simulated card goes
        patch.setattr(torch.cuda.memory, "_record_memory_history", refuse)
        recording, _ = measured(cuda, cuda.begin)
    assert any("history is unavailable: TypeError" in note for note in recording.notes)


@pytest.mark.parametrize(("text", "expected"), [("", 8_519_680), (":4096:8", 32 << 20), (":16:8", 128 << 10)])
def test_the_workspace_of_a_torch_that_does_not_tell(monkeypatch, text, expected):
    monkeypatch.delattr(torch._C, "_cuda_getCublasWorkspaceSize", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", text)
    assert devices._cublas_workspace_bytes() == expected


@pytest.mark.parametrize(
    ("told", "chosen", "unified", "expected"),
    [
        (None, "", "", 1 << 20), (None, "4096", "", 4 << 20), (None, "", "1", 0),
        (5000, "", "", 0), (5000, "", "0", 5000),
    ],
)  # fmt: skip
def test_the_workspace_that_cublaslt_has_of_its_own(monkeypatch, told, chosen, unified, expected):
    name = "_cuda_getCublasLtWorkspaceSize"
    monkeypatch.delattr(torch._C, name, raising=False)
    if told:
        monkeypatch.setattr(torch._C, name, lambda: told, raising=False)
    for variable, value in (("CUBLASLT_WORKSPACE_SIZE", chosen), ("TORCH_CUBLASLT_UNIFIED_WORKSPACE", unified)):
        monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable, raising=False)
    assert devices.cublaslt_workspace_bytes() == expected


@pytest.mark.parametrize(
    ("before", "asked", "expected"), [(True, None, True), (False, None, False), (False, "0", False), (False, "1", True)]
)
def test_workspaces_stay_on_request_since_torch_2_15(monkeypatch, before, asked, expected):
    name = "TORCH_CUBLAS_WORKSPACE_CACHE"
    monkeypatch.setattr(devices, "since", lambda *version: not before)
    monkeypatch.setenv(name, asked) if asked else monkeypatch.delenv(name, raising=False)
    assert devices.keeps_workspaces() is expected


def test_the_workspace_on_hopper(monkeypatch):
    monkeypatch.delattr(torch._C, "_cuda_getCublasWorkspaceSize", raising=False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert devices._cublas_workspace_bytes() == 32 << 20

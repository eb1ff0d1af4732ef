"""A whole run on the CPU: nothing of it is left behind, nothing of it reaches the program, faults cost one line."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
import torch.autograd.graph as autograd_graph
from torch import nn
from torch.nn.modules import module as nn_module
from torch.optim import optimizer as optim_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import ipyvram
from ipyvram import arming, bounds, devices, measuring, tracing
from ipyvram import run as run_module
from ipyvram.options import Options
from ipyvram.probes import (
    counters,
    graph_claims,
    history,
    live_storages,
    member_claims,
    oom,
    owners,
    phases,
    step_count,
    storages,
    variable_claims,
)
from ipyvram.probes.clock import Clock
from ipyvram.run import Run
from ipyvram.sampler import Sampler
from tests import nvml_stub

COMPILED_ENDS = "_dynamo_restore_local_dispatch_key_set"


def global_state():
    """Everything of torch that a probe could have changed."""
    hooks = {
        f"{owner.__name__.rpartition('.')[2]}.{name}": list(getattr(owner, name))
        for owner in (nn_module, optim_module)
        for name in dir(owner)
        if name.startswith("_global") and isinstance(getattr(owner, name), dict)
    }
    patched = {
        f"{owner.__name__}.{name}": id(vars(owner).get(name))
        for owner, names in (
            (autograd_graph, ("log", "_register_logging_hooks_on_whole_graph", "_engine_run_backward")),
            (torch.autograd, ("_engine_run_backward", "backward", "grad")),
            (torch.Tensor, ("backward", "__torch_dispatch__", "__torch_function__")),
            (nn.Module, ("__call__", "_call_impl", "eval")),
            (torch.no_grad, ("__enter__", "__exit__")),
            (torch.inference_mode, ("__enter__", "__exit__")),
            (torch.optim.SGD, ("step",)),
            (torch._C, (COMPILED_ENDS,)),
        )
        for name in names
        if hasattr(owner, name)
    }
    modes = [type(mode) for mode in _get_current_dispatch_mode_stack()]
    functions = torch._C._len_torch_function_stack()
    threads = sorted(t.name for t in threading.enumerate() if t.name.startswith("ipyvram"))
    python = {"unraisable": sys.unraisablehook, "trace": sys.gettrace(), "profile": sys.getprofile()}
    return hooks | patched | python | {"modes": modes, "function modes": functions, "threads": threads}


#: What stays between traces: the counter of steps, and what waits for an evaluation.
WAITING = (
    "optimizer._global_optimizer_pre_hooks",
    "optimizer._global_optimizer_post_hooks",
    "Module.eval",
    "no_grad.__enter__",
    "no_grad.__exit__",
    "inference_mode.__enter__",
    "inference_mode.__exit__",
    *((f"torch._C.{COMPILED_ENDS}",) if hasattr(torch._C, COMPILED_ENDS) else ()),
)


def model():
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2))


def train(net, optimizer, batches, each_step=None):
    losses = []
    for step, x in enumerate(batches, 1):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if each_step is not None:
            each_step(step)
    return torch.stack(losses)


def train_something(run):
    net = model()
    train(net, torch.optim.SGD(net.parameters(), 0.1), batches(4))


def batches(count, size=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 10, generator=generator) for _ in range(count)]


def measured(body, namespace=None, **options):
    """Run ``body(run)`` measured; its result, the recording and the report."""
    run = Run(Options(**options), namespace=namespace)
    run.start()
    try:
        result = body(run)
    finally:
        recording = run.stop()
    return result, recording, ipyvram.analyse(recording)


# -- nothing is left behind -------------------------------------------------------------------------------------------


def test_after_the_traced_steps_torch_is_as_it_was_before_the_cell():
    net = model()
    optimizer, before, seen = torch.optim.SGD(net.parameters(), 0.1), global_state(), {}

    def look(step):
        seen[step] = global_state()

    _, recording, _ = measured(lambda run: train(net, optimizer, batches(6), look))
    assert seen[2] != before
    assert seen[2]["modes"]
    waiting = {"threads": []} | {name: before[name] for name in WAITING}
    for step in (4, 5, 6):
        assert {name for name in WAITING if seen[step][name] == before[name]} == set()
        assert seen[step] | waiting == before
    assert global_state() == before
    assert not optimizer._optimizer_step_post_hooks
    assert (recording.steps, recording.traced_steps) == (6, 3)


@pytest.mark.parametrize("ending", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_behind(ending):
    before = global_state()
    net = model()

    def body(run):
        net(batches(1)[0])
        raise ending

    with pytest.raises(type(ending)):
        measured(body)
    assert global_state() == before


def test_the_variables_are_read_once_at_the_end_also_where_an_error_ends_the_cell(monkeypatch):
    original, read = variable_claims.VariableClaims.claim, []

    def namespace(self, *args, **kwargs):
        read.append(kwargs)
        return original(self, *args, **kwargs)

    class Failure(Exception):
        pass

    monkeypatch.setattr(variable_claims.VariableClaims, "claim", namespace)
    error = Failure()
    gone = weakref.ref(error)
    run = Run(Options())
    run.start()
    run.stop(error)
    assert len(read) == 2
    del error
    assert gone() is None


def test_several_optimizers_leave_nothing_behind():
    one, two = model(), model()
    first, second = torch.optim.SGD(one.parameters(), 0.1), torch.optim.Adam(two.parameters())
    before = global_state()

    def both(run):
        for x in batches(5):
            train(one, first, [x])
            train(two, second, [x])

    _, recording, _ = measured(both)
    assert recording.steps == 5
    assert recording.environment["optimizer"] == "SGD"
    assert global_state() == before
    assert not first._optimizer_step_post_hooks
    assert not second._optimizer_step_post_hooks


def test_steps_are_counted_when_the_trace_ended_before_the_first(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_S", -1.0)
    monkeypatch.setattr(bounds, "FEW_PASSES", 0)
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    before = global_state()
    _, recording, report = measured(lambda run: train(net, optimizer, batches(4)))
    assert (recording.steps, recording.traced_steps) == (4, 0)
    assert "without an optimizer step" in report.measurement.ended_by
    assert global_state() == before


def test_model_and_optimizer_can_be_copied_and_pickled_at_any_time():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def look(step):
        copy.deepcopy((net, optimizer))
        pickle.loads(pickle.dumps(net))
        assert b"ipyvram" not in pickle.dumps((net, optimizer))

    measured(lambda run: train(net, optimizer, batches(5), look))


# -- the program is the same ------------------------------------------------------------------------------------------


def test_the_training_computes_the_same_to_the_bit():
    def result():
        torch.manual_seed(0)
        net = model()
        return train(net, torch.optim.Adam(net.parameters()), batches(5))

    assert torch.equal(result(), measured(lambda run: result())[0])


def test_peak_counters_are_not_reset(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("this changes what the user can read")

    for name in (
        "reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached",
        "reset_accumulated_memory_stats", "empty_cache", "synchronize",
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, forbidden)
    for name in ("_cuda_resetPeakMemoryStats", "_cuda_resetAccumulatedMemoryStats", "_cuda_emptyCache"):
        monkeypatch.setattr(torch._C, name, forbidden, raising=False)
    net = model()
    _, recording, _ = measured(lambda run: train(net, torch.optim.SGD(net.parameters(), 0.1), batches(4)))
    assert recording.notes == ()


def test_autograd_still_finds_changes_in_place():
    def break_it(run):
        x = torch.ones(3, requires_grad=True)
        y = x.exp()
        y.add_(1)
        y.sum().backward()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        measured(break_it)


# -- a fault in each probe --------------------------------------------------------------------------------------------


def broken(*args, **kwargs):
    raise LookupError("injected")


def then_broken(stop):
    """A `stop` that fails once it has done its work: one that does nothing leaves its hooks behind, of course."""

    def stopped(*args, **kwargs):
        stop(*args, **kwargs)
        raise LookupError("injected")

    return stopped


FAULTS = {
    "nvml": (run_module, "open_cards"),
    "counters": (run_module.counters, "devices_in_use"),
    "counter": (counters, "read"),
    "storage trace start": (storages.StorageTrace, "start"),
    "storage trace stop": (storages.StorageTrace, "stop"),
    "storage trace read": (storages.StorageTrace, "traces"),
    "storage identity": (live_storages.LiveStorages, "identify"),
    "storage events": (storages.StorageTrace, "record"),
    "stacks": (run_module.StackReader, "__call__"),
    "namespace": (variable_claims.VariableClaims, "claim"),
    "modules": (member_claims.MemberClaims, "module"),
    "inputs": (owners.Owners, "inputs"),
    "outputs": (owners.Owners, "outputs"),
    "graph": (graph_claims.GraphClaims, "read"),
    "gradients": (member_claims.MemberClaims, "gradients"),
    "released": (graph_claims.GraphClaims, "released"),
    "optimizer": (member_claims.MemberClaims, "optimizer"),
    "labels": (owners.Owners, "place_of"),
    "marks": (phases, "Mark"),
    "steps": (step_count.StepCount, "_count"),
    "phases start": (phases.Phases, "start"),
    "phases stop": (phases.Phases, "stop_tracing"),
    "sampler start": (Sampler, "start"),
    "sampler stop": (Sampler, "stop"),
    "sample": (Sampler, "sample"),
    "watch figures": (arming.Watch, "learn_figures"),
    "watch steps": (arming.Watch, "learn_step"),
    "watch reason": (arming.Watch, "reason"),
    "environment": (run_module.ending, "environment"),
    "evaluations": (arming.Evaluations, "listen"),
    "places of evaluations": (arming.Evaluations, "start"),
    "device": (run_module, "describe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_probe_costs_one_line_and_not_the_cell(fault, monkeypatch):
    torch.manual_seed(0)
    net = model()
    expected = train(copy.deepcopy(net), torch.optim.SGD(net.parameters(), 0.0), batches(5))
    before = global_state()
    owner, name = FAULTS[fault]
    monkeypatch.setattr(owner, name, broken if "stop" not in fault else then_broken(getattr(owner, name)))
    with ipyvram.measure("faulty") as m:
        found = train(net, torch.optim.SGD(net.parameters(), 0.0), batches(5))
    monkeypatch.undo()
    assert torch.equal(found, expected)
    assert m.report is not None
    notes = [note for note in m.report.measurement.notes if "injected" in note]
    assert len(notes) >= 1
    assert all("\n" not in note and len(note) < 320 for note in notes)
    assert global_state() == before


STOPPING = {
    "the end's time": (Clock, "__call__"),
    "sampler": (Run, "_stop_sampler"),
    "out-of-memory watch": (oom.OomWatch, "stop"),
    "observations": (run_module.ending, "observe"),
    "out of memory": (Run, "_out_of_memory"),
    "end of trace": (arming.Arming, "_learn_figures"),
    "tracing": (tracing.Tracing, "stop"),
    "traces": (tracing.Tracing, "traces"),
    "environment": (run_module.ending, "surroundings"),
    "descriptions": (Run, "_describe"),
    "notes": (Run, "_all_notes"),
    "counters": (run_module, "_counters"),
    "storage trace": (live_storages.LiveStorages, "flush"),
    "the rest": (Run, "_record"),
    "recording": (run_module, "Recording"),
}


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("fault", STOPPING)
def test_a_fault_in_the_end_itself_leaves_nothing_armed(fault, steps, monkeypatch, caplog):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)  # the first of its class has torch put a hook into the class
    before = global_state()
    owner, name = STOPPING[fault]
    with ipyvram.measure("faulty", device="cpu") as m:
        train(net, optimizer, batches(steps))
        monkeypatch.setattr(owner, name, broken)
    monkeypatch.undo()
    assert global_state() == before
    assert not optimizer._optimizer_step_post_hooks
    assert not measuring.is_busy()
    said = [*(m.report.measurement.notes if m.report else ()), *(record.message for record in caplog.records)]
    assert steps == 5 or any("injected" in line for line in said)  # after its steps a trace has nothing left to stop


def test_an_interrupt_in_the_end_leaves_nothing_armed(monkeypatch, caplog):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    net, before = model(), global_state()
    with ipyvram.measure("x", device="cpu"):
        train(net, torch.optim.SGD(net.parameters(), 0.1), batches(2))
        monkeypatch.setattr(run_module.ending, "observe", interrupted)
    assert global_state() == before
    assert "KeyboardInterrupt" in caplog.text


def test_an_error_that_cannot_say_what_it_is_is_measured():
    class Odd(Exception):
        def __str__(self):
            raise TypeError("no words")

    with pytest.raises(Odd), ipyvram.measure("odd") as m:
        raise Odd
    assert m.report.error == "Odd"


def test_a_fault_in_the_history_falls_back_to_storages(monkeypatch):
    for module in (run_module, arming):
        monkeypatch.setattr(module, "cuda_possible", lambda: True)
    monkeypatch.setattr(history.HistoryTrace, "start", broken)
    net = model()
    _, recording, report = measured(lambda run: train(net, torch.optim.SGD(net.parameters(), 0.1), batches(4)))
    assert any("history is unavailable: LookupError: injected" in note for note in recording.notes)
    assert report.peak["parameters"] == sum(p.nbytes for p in net.parameters())


def test_a_run_that_cannot_be_built_leaves_the_cell_alone(monkeypatch, caplog):
    monkeypatch.setattr(measuring.journal, "add", broken)
    with ipyvram.measure("x") as m:
        result = 6 * 7
    assert result == 42
    assert m.report is None
    assert "injected" in caplog.text


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [None, "meta"])
def test_the_default_device_is_put_back(default):
    if default is not None:
        torch.set_default_device(default)
    try:
        before, named = global_state(), torch.get_default_device()
        with ipyvram.measure("x", device="cpu"):
            inside = torch.zeros(1).device.type
        assert inside == "cpu"
        assert torch.zeros(1).device.type == (default or "cpu")
        assert torch.get_default_device() == named
        assert global_state() == before
    finally:
        if default is not None:
            torch.set_default_device("cpu")
            torch.set_default_device(None)
            del torch._GLOBAL_DEVICE_CONTEXT.device_context


def test_the_current_device_is_put_back(monkeypatch):
    current = [1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: current.__setitem__(0, getattr(d, "index", d)))
    undo = devices.use_device("cuda:2")
    inside = (current[0], str(torch.get_default_device()))
    undo()
    assert inside == (2, "cuda:2")
    assert (current[0], str(torch.get_default_device())) == (1, "cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "no CUDA device"), ("mps", "MPS is not available"), ("meta", "can be measured on"), ("tpux", "knows no")],
)
def test_a_device_that_is_not_there_is_an_error_before_the_block(device, message):
    if device in ("cuda", "mps") and getattr(torch, device).is_available():
        pytest.skip(f"{device} is there")
    with pytest.raises(ValueError, match=message), ipyvram.measure("x", device=device):
        pytest.fail("the block ran")


def test_a_gpu_that_stood_idle_is_told(monkeypatch, tmp_path):
    for stub in nvml_stub.load(tmp_path):
        monkeypatch.setattr(run_module.ending, "cuda_possible", lambda: True)
        monkeypatch.setattr(history.HistoryTrace, "start", lambda self: None)
        _, recording, report = measured(train_something)
        assert recording.environment["idle_gpu"] == "Stub 24GB"
        assert any("Stub 24GB stood idle" in finding.text for finding in report.findings)
        assert stub.get("opened") == 0


def test_a_card_that_torch_was_built_without_is_told(monkeypatch, tmp_path):
    for _ in nvml_stub.load(tmp_path):
        monkeypatch.setattr(torch.version, "cuda", None)
        _, recording, _ = measured(lambda run: None)
        assert any("Stub 24GB is here, but this build of torch" in note for note in recording.notes)


def test_a_missing_driver_is_told_only_where_torch_could_use_one(monkeypatch):
    monkeypatch.setattr(run_module, "open_cards", no_driver)
    assert measured(lambda run: None)[1].notes == ()
    monkeypatch.setattr(run_module, "cuda_possible", lambda: True)
    monkeypatch.setattr(history.HistoryTrace, "start", lambda self: None)
    assert "NVML is unavailable: RuntimeError: no NVIDIA driver" in measured(lambda run: None)[1].notes[0]


def no_driver():
    raise RuntimeError("no NVIDIA driver is installed here")


# -- traced again -----------------------------------------------------------------------------------------------------


def test_overhead_is_within_the_duration():
    net = model()
    _, recording, _ = measured(lambda run: train(net, torch.optim.SGD(net.parameters(), 0.1), batches(4)))
    assert 0 < recording.overhead_s < (recording.stop_ns - recording.start_ns) / 1e9 + 1.0
    assert np.isfinite(recording.overhead_s)


def test_what_the_program_overrides_does_not_see_our_questions():
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Counting.calls += 1
            return func(*args, **(kwargs or {}))

    def calls(measure):
        net, Counting.calls = model(), 0
        optimizer = torch.optim.Adam(net.parameters())

        def body(run):
            with Counting():
                train(net, optimizer, batches(2))

        if measure:
            measured(body, {"net": net, "optimizer": optimizer})
        else:
            body(None)
        return Counting.calls

    assert calls(measure=True) == calls(measure=False) > 0

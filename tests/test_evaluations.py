"""Evaluations after the traced steps: traced when they begin, with a batch of their own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ipyvram.options import Options
from ipyvram.report import Report
from ipyvram.run import Run
from tests.measured import measured

WIDTH, SMALL, LARGE, ROUNDS = 64, 4, 512, 6


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        model(torch.randn(SMALL, WIDTH)).sum().backward()
        optimizer.step()


def evaluate(model: nn.Module, batches: int) -> None:
    model.eval()
    with torch.no_grad():
        for _ in range(batches):
            model(torch.randn(LARGE, WIDTH)).argmax(1)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


def its_batch_is_the_peak(report: Report) -> Report:
    """At the peak stand the evaluation's batch, the model and Adam's state."""
    assert report.batch == LARGE
    assert report.peak["inputs"] == LARGE * WIDTH * 4
    weights = sum(p.nbytes for p in network().parameters())
    assert report.peak["parameters"] == weights
    assert 2 * weights <= report.peak["optimizer_state"] <= 2 * weights + 64  # not used then, and there
    assert report.peak["other"] == 0
    assert report.measurement.notes == ()
    return report


@pytest.mark.parametrize("batches", [1, 5])
def test_the_larger_batch_of_an_evaluation_is_the_peak(batches):
    """All in one function, as scripts have it: no variable of the notebook tells of model and optimizer."""

    def cell() -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            train(model, optimizer)
            evaluate(model, batches)

    report = its_batch_is_the_peak(measured(cell))
    assert report.traced_steps <= 3 + 1
    assert "evaluation" in report.measurement.ended_by


def test_on_cuda_what_does_not_run_then_keeps_its_category(run_on_stub):
    found = run_on_stub(
        """
import torch
from torch import nn
import ipyvram

def network():
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)).cuda()

def cell():
    model, teacher = network(), network()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(6):
        x = torch.randn(4, 64, device="cuda")
        with torch.no_grad():
            target = teacher(x)
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8192, 64, device="cuda"))
    return sum((p.nbytes + 511) // 512 * 512 for p in model.parameters())

with ipyvram.measure() as m:
    weights = cell()
report = m.report
result = {"peak": report.peak, "bytes": report.peak_bytes, "true": torch.cuda.max_memory_allocated(), "weights": weights}
"""
    )
    peak, weights = found["peak"], found["weights"]
    assert found["bytes"] == found["true"] == sum(peak.values())
    assert peak["parameters"] == 2 * weights
    assert peak["gradients"] == weights
    assert 2 * weights <= peak["optimizer_state"] <= 2 * weights + 4096
    assert peak["inputs"] >= 8192 * 64 * 4
    assert peak["other"] == 0


def test_nothing_is_left_behind_and_models_can_be_pickled_meanwhile():
    original = nn.Module.eval
    run = Run(Options())
    run.start()
    model = network()
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    assert nn.Module.eval is not original
    assert model.eval() is model
    assert pickle.loads(pickle.dumps(model)).training is copy.deepcopy(model).training is False
    run.stop()
    assert nn.Module.eval is original


def test_evaluations_of_nothing_leave_the_other_traces_alone():
    def cell() -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(8):
            train(model, optimizer)
            evaluate(model, 0)

    assert measured(cell).traced_steps == 3 + 2


def test_what_the_program_puts_there_itself_stays(monkeypatch):
    original = nn.Module.eval
    run = Run(Options())
    run.start()
    model = network()
    train(model, torch.optim.SGD(model.parameters(), 0.1))
    mine = lambda module: original(module)  # noqa: E731
    monkeypatch.setattr(nn.Module, "eval", mine)
    run.stop()
    assert nn.Module.eval is mine
    monkeypatch.undo()
    nn.Module.eval = original


# -- without a call of eval --------------------------------------------------------------------------------------------


@torch.no_grad()
def decorated(model: nn.Module, batches: int) -> None:
    for _ in range(batches):
        model(torch.randn(LARGE, WIDTH)).argmax(1)


def with_no_grad(model: nn.Module, batches: int) -> None:
    with torch.no_grad():
        for _ in range(batches):
            model(torch.randn(LARGE, WIDTH)).argmax(1)


def with_inference_mode(model: nn.Module, batches: int) -> None:
    with torch.inference_mode():
        for _ in range(batches):
            model(torch.randn(LARGE, WIDTH)).argmax(1)


def clip(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-1, 1)


@pytest.mark.parametrize("batches", [1, 5])
@pytest.mark.parametrize("evaluation", [decorated, with_no_grad, with_inference_mode])
def test_a_first_forward_without_gradients_is_an_evaluation(evaluation, batches):
    def cell() -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        train(model, optimizer)
        for _ in range(2):
            clip(model)
            train(model, optimizer)
        evaluation(model, batches)

    report = its_batch_is_the_peak(measured(cell))
    assert report.traced_steps == 3
    assert ("evaluation" in report.measurement.ended_by) == (batches > 1)


@pytest.mark.parametrize("batches", [1, 2, 5])
@pytest.mark.parametrize("turned", [True, False], ids=["begins outside", "begins inside"])
def test_a_trace_may_begin_or_end_within_inference_mode(turned, batches):
    """Its end puts torch's flags back as they were at its begin, whatever mode has come or gone meanwhile."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    seen = []

    def cell() -> None:
        for _ in range(2):
            train(model, optimizer)
            if turned:
                model.eval()
            with torch.inference_mode():
                for _ in range(batches):
                    model(torch.randn(LARGE, WIDTH))
            torch.empty(()).random_().item()  # what a loader does first
            seen.append(flags())

    report = measured(cell)
    assert all(modes == python == snapshot for modes, python, snapshot in seen)
    assert flags() == (False, False, False)
    assert report.batch == LARGE
    assert report.measurement.notes == ()


def flags() -> tuple[bool, bool, bool]:
    """Whether there is a mode, and whether torch asks one."""
    included = torch._C._dispatch_tls_is_dispatch_key_included
    return torch._C._len_torch_dispatch_stack() > 0, included("Python"), included("PythonTLSSnapshot")


def test_turning_gradients_off_where_a_trace_has_seen_it_begins_none():
    """A target network in each step, and a norm that is clipped in places of its own."""

    def cell() -> None:
        model, target = network(), network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(12):
            x = torch.randn(SMALL, WIDTH)
            with torch.no_grad():
                y = target(x)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            if step > 5:
                clip(model)
            optimizer.step()

    report = measured(cell)
    assert report.traced_steps == 3
    assert report.measurement.ended_by == "3 steps"


def test_an_evaluation_in_another_place_than_the_first_is_traced_too():
    def cell() -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train(model, optimizer)
        evaluate(model, 5)
        train(model, optimizer)
        model(torch.randn(SMALL, WIDTH))
        with torch.no_grad():
            model(torch.randn(4 * LARGE, WIDTH))

    assert measured(cell).batch == 4 * LARGE


def test_a_compiled_model_is_not_warned_of_a_hook_that_waits(recwarn):
    def cell() -> None:
        model = network()
        compiled = torch.compile(model, backend="eager")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            compiled(torch.randn(SMALL, WIDTH)).sum().backward()
            optimizer.step()
        with_no_grad(compiled, 3)

    report = measured(cell)
    assert "evaluation" in report.measurement.ended_by
    assert not [w for w in recwarn if "hook" in str(w.message)]


def test_torchscript_still_compiles_what_turns_gradients_off():
    def script(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x * 2
        return y

    def cell() -> None:
        assert torch.jit.script(script)(torch.ones(2)).sum() == 4

    assert measured(cell).error is None

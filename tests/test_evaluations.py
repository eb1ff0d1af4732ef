"""Evaluations after the traced steps: traced when they begin, with a batch of their own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ipyvram.options import Options
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


@pytest.mark.parametrize("batches", [1, 5])
def test_the_larger_batch_of_an_evaluation_is_the_peak(batches):
    """All in one function, as scripts have it: no variable of the notebook tells of model and optimizer."""

    def cell() -> None:
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(2):
            train(model, optimizer)
            evaluate(model, batches)

    report = measured(cell)
    assert report.batch == LARGE
    assert report.peak["inputs"] == LARGE * WIDTH * 4
    assert report.peak["parameters"] == sum(p.nbytes for p in network().parameters())
    assert report.peak["other"] == 0
    assert report.measurement.notes == ()
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

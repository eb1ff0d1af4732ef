"""Cells without optimizer steps are traced as far as a bound on events and time, and the report says how far."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipyvram import bounds, run
from tests.measured import measured


def raw_training():
    w = torch.randn(20, 20, requires_grad=True)
    for _ in range(400):
        (w @ w).pow(2).mean().backward()  # and its gradient goes on: no step


def plain_arithmetic():
    x = torch.ones(3)
    for _ in range(20_000):
        x = x * 1


def inference():
    model = nn.Linear(10, 10)
    with torch.no_grad():
        for _ in range(2000):
            model(torch.ones(2, 10))


@pytest.mark.parametrize("program", [raw_training, plain_arithmetic, inference])
def test_events_are_bounded(program, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_EVENTS", 1000)
    report = measured(program)
    assert report.measurement.ended_by == "1,000 events without an optimizer step"
    assert 1000 <= report.measurement.events < 1000 + 2 * 1024 + 50  # the bound is looked at now and then
    assert (report.steps, report.provenance["end"]) == (0, "end of trace")
    assert sum(report.peak.values()) == report.peak_bytes


@pytest.mark.parametrize("program", [raw_training, inference])
def test_time_is_bounded(program, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_S", 0.0)
    report = measured(program)
    assert report.measurement.ended_by == "0 s without an optimizer step"
    assert report.measurement.events < 50 + bounds.FEW_PASSES * 20


@pytest.mark.parametrize("passes", [2, 40])
def test_the_first_step_of_a_slow_machine_is_traced(passes, monkeypatch):
    """Whatever the time, a few passes may be one step. More of them end the trace, and then nothing is said of any step."""
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_S", 0.0)
    model = nn.Linear(100, 100)
    optimizer = torch.optim.Adam(model.parameters())

    def cell():
        for _ in range(2):
            for _ in range(passes // 2):
                model(torch.ones(2, 100)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    report = measured(cell)
    assert report.steps == 2
    if passes <= bounds.FEW_PASSES:
        assert (report.traced_steps, report.peak["optimizer_state"]) == (2, 2 * report.peak["parameters"] + 8)
    else:
        assert (report.traced_steps, report.peak_provenance) == (0, "exact for the traced part")


def test_a_budget_holds_to_the_end(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_S", 0.0)

    def cell():
        inference()
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(2**20)

    assert measured(cell, budget_bytes=2**20).measurement.ended_by == "end of cell"


def test_what_reading_costs_the_cell_is_bounded(monkeypatch):
    """A solver that asks for a small gradient at each of its steps, with a graph below that grows."""
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_OWN_S", 0.2)
    field, count = nn.Linear(4, 4), 3000

    def cell():
        state = torch.ones(1, 4, requires_grad=True)
        for _ in range(count):
            found = field(state)
            torch.autograd.grad(found.sum(), state, create_graph=True)
            state = state + 0.01 * found

    report = measured(cell)
    assert report.measurement.ended_by == "0 s of its own work without an optimizer step"
    assert 0.2 <= report.overhead_s < 2


def test_what_a_cell_loads_before_its_first_forward_is_not_counted(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_S", 5.0)
    clock = run.Clock()
    skipped_ns = [0]
    monkeypatch.setattr(run, "Clock", lambda: lambda: clock() + skipped_ns[0])
    model = nn.Linear(10, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def cell():
        skipped_ns[0] = 60 * 10**9  # a download
        for _ in range(2):
            model(torch.ones(2, 10)).sum().backward()
            optimizer.step()

    report = measured(cell)
    assert (report.measurement.ended_by, report.traced_steps) == ("end of cell", 2)


def test_a_cell_within_the_bounds_is_traced_to_its_end():
    report = measured(lambda: nn.Linear(10, 10)(torch.ones(2, 10)))
    assert (report.measurement.ended_by, report.provenance["end"]) == ("end of cell", "exact")


def test_the_first_step_takes_the_bound_away(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_UNSTEPPED_EVENTS", 60)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def cell():
        for _ in range(2):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for _ in range(3000):
            torch.ones(1)

    assert measured(cell).measurement.ended_by == "end of cell"

"""Which model a module is of: the largest seen so far, or the one that a variable holds, also where parts of it run alone."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn
from torch.nn import functional

from ipyvram.probes.models import Models
from ipyvram.report import Report
from tests.measured import measured


class Coder(nn.Module):
    """Trained by methods of its own: nobody ever calls the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 16))
        self.decoder = nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Linear(256, 64))

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class Measuring(nn.Module):
    """Runs its layers one by one where it is made, to learn what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 256), nn.Linear(256, 256)])
        x = torch.zeros(1, 64)
        for layer in self.layers:
            x = layer(x)
        self.head = nn.Linear(x.shape[1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def names(report: Report, category: str) -> set[str]:
    return {t.name for t in report.tensors_at_peak if t.category == category}


def modules(report: Report, category: str) -> set[str]:
    return {t.module for t in report.tensors_at_peak if t.category == category and t.bytes > 1000}


def train(run, parameters, x: torch.Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        run(x).square().mean().backward()
        optimizer.step()


def test_the_largest_model_speaks_for_its_parts():
    part = nn.Linear(2, 2)
    whole = nn.Sequential(nn.ReLU(), part)
    found = Models()
    assert found.place(part) is None
    found.add(part, "Linear")
    assert str(found.place(part)) == "Linear"
    found.add(whole, "Sequential")
    found.add(part, "Linear")
    assert str(found.place(part)) == "Sequential.1"
    assert str(found.place(whole)) == "Sequential"


def test_a_model_that_a_variable_holds_speaks_for_good():
    part = nn.Linear(2, 2)
    inner = nn.Sequential(part)
    found = Models()
    found.add(inner, "net")
    found.add(nn.Sequential(nn.ReLU(), nn.ReLU(), inner), "Sequential")
    found.add(nn.Sequential(inner), "wrapped")
    assert str(found.place(part)) == "net.0"


def test_no_model_is_kept_alive():
    model, found = nn.Sequential(nn.Linear(2, 2)), Models()
    found.add(model, "model")
    gone = [weakref.ref(m) for m in model.modules()]
    del model
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_parts_that_methods_of_a_model_run_have_its_paths():
    model = Coder()
    report = measured(lambda: train(model.reconstruct, model.parameters(), torch.randn(512, 64)), {"model": model})
    assert modules(report, "activations") <= {f"{part}.{i}" for part in ("encoder", "decoder") for i in range(3)}
    assert {"encoder.1", "decoder.1"} <= modules(report, "activations")
    assert {"encoder.0", "decoder.2"} <= modules(report, "parameters")


def test_parts_have_their_models_name_where_there_are_several():
    first, second = Coder(), Coder()

    def both(x: torch.Tensor) -> torch.Tensor:
        return first.reconstruct(x) + second.reconstruct(x)

    report = measured(
        lambda: train(both, [*first.parameters(), *second.parameters()], torch.randn(512, 64)),
        {"first": first, "second": second},
    )
    assert {"first.encoder.1", "second.decoder.1"} <= modules(report, "activations")
    assert {m.partition(".")[0] for m in modules(report, "activations")} == {"first", "second"}


def test_a_model_made_in_the_cell_is_known_before_its_first_part_runs():
    namespace = {}

    def cell() -> None:
        namespace["model"] = Coder()
        train(namespace["model"].reconstruct, namespace["model"].parameters(), torch.randn(512, 64), steps=1)

    report = measured(cell, namespace)
    assert {"encoder.1", "decoder.1"} <= modules(report, "activations")


def test_layers_that_ran_before_their_model_are_called_by_its_paths():
    def cell() -> None:
        model = Measuring()
        train(model, model.parameters(), torch.randn(512, 64))

    report = measured(cell)
    assert names(report, "parameters") == {
        f"{layer}.{kind}" for layer in ("layers.0", "layers.1", "head") for kind in ("weight", "bias")
    }
    assert "head.weight.grad" in names(report, "gradients")
    assert "layers.1.weight.momentum_buffer" in names(report, "optimizer_state")


def test_what_a_closure_trains_is_called_by_its_model_in_the_first_step_already():
    def cell() -> None:
        model, x = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), torch.randn(64, 64)
        optimizer = torch.optim.Adam(model.parameters())

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    report = measured(cell)
    assert names(report, "parameters") == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert "2.weight.exp_avg" in names(report, "optimizer_state")


def test_a_model_with_a_call_of_its_own_gives_its_names():
    class Process(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(64, 64))
            self.positive = nn.Softplus()

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, self.positive(self.raw))

    namespace = {}

    def cell() -> None:
        namespace["model"] = Process()
        train(namespace["model"], namespace["model"].parameters(), torch.randn(512, 64))

    assert names(measured(cell, namespace), "parameters") == {"raw"}

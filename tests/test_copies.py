"""Lists and dicts that hold a tensor for each parameter: averages, momenta updated by hand, copies of gradients."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ipyvram.probes import residents
from ipyvram.report import Report
from tests.measured import measured
from tests.networks import perceptron
from tests.on_card import HEAD

Made = Callable[[nn.Module], Any]


def size_of(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)


def zeros(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) for p in model.parameters()]


def pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]


def by_name(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) for name, p in model.named_parameters()}


def by_parameter(model: nn.Module) -> dict[Tensor, Tensor]:
    return {p: torch.zeros_like(p) for p in model.parameters()}


def copies(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def members(held: Any) -> list[Tensor]:
    parts = held.values() if isinstance(held, dict) else held
    return [t for part in parts for t in (part if isinstance(part, tuple) else (part,))]


def update(model: nn.Module, held: Any) -> None:
    """Momentum, and with two for each parameter Adam without its corrections."""
    found = members(held)
    each = len(found) // len(list(model.parameters()))
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            for v in found[each * i : each * (i + 1)]:
                v.mul_(0.9).add_(p.grad)
            p -= 0.1 * found[each * i]
            p.grad = None


def trained(namespace: dict[str, Any], after: Callable[[], None], steps: int = 3) -> Report:
    """The report of a cell that runs ``after`` when the gradients are there."""
    model, x, y = namespace["model"], torch.randn(16, 256), torch.randint(0, 10, (16,))
    namespace.update(x=x, y=y)

    def cell() -> None:
        for _ in range(steps):
            cross_entropy(model(x), y).backward()
            after()

    return measured(cell, namespace)


@pytest.mark.parametrize("make", [zeros, pairs, by_name, by_parameter])
@pytest.mark.parametrize("where", ["variable", "function"])
def test_momenta_that_the_program_updates_itself_are_optimizer_state(make, where):
    model = perceptron()
    namespace: dict[str, Any] = {"model": model}
    held = make(model)
    update_once = lambda: update(model, held)  # noqa: E731
    if where == "variable":
        namespace["held"] = held
        report = trained(namespace, update_once)
    else:
        report = in_a_function(model, make)
    assert report.peak["optimizer_state"] == size_of(members(held))
    assert report.peak["parameters"] == size_of(model.parameters())
    assert report.peak["other"] == 0


def in_a_function(model: nn.Module, make: Made) -> Report:
    x, y = torch.randn(16, 256), torch.randint(0, 10, (16,))

    def train() -> None:
        held = make(model)
        for _ in range(3):
            cross_entropy(model(x), y).backward()
            update(model, held)

    return measured(train, {"model": model, "x": x, "y": y})


def test_momenta_of_an_optimizer_that_a_model_keeps_are_optimizer_state():
    """As keras keeps them: each in an object of its own, in an optimizer that is none of torch's."""
    model = perceptron()
    momenta = [SimpleNamespace(name="momentum", value=nn.Parameter(t, requires_grad=False)) for t in zeros(model)]
    model.optimizer = SimpleNamespace(momenta=momenta)
    report = trained({"model": model}, lambda: update(model, [held.value for held in momenta]))
    assert report.peak["optimizer_state"] == size_of(model.parameters())
    assert "model.optimizer.momenta[0]" in {t.name for t in report.tensors_at_peak}
    (found,) = (r for r in residents.look({"model": model}) if r.device == "cpu")
    assert sum(h.bytes for h in found.holdings if h.category == "optimizer_state") == size_of(model.parameters())


def test_a_variable_of_the_loop_takes_nothing_from_its_list():
    model = perceptron()
    namespace: dict[str, Any] = {"model": model, "velocity": zeros(model)}

    def after() -> None:
        update(model, namespace["velocity"])
        namespace["v"] = namespace["velocity"][-1]

    report = trained(namespace, after)
    assert report.end["optimizer_state"] == size_of(model.parameters())
    assert "velocity[0]" in {t.name for t in report.tensors_at_peak if t.category == "optimizer_state"}


def test_momenta_that_each_step_makes_anew_are_optimizer_state():
    model = perceptron()
    namespace: dict[str, Any] = {"model": model, "velocity": []}

    def after() -> None:
        before = namespace["velocity"] or zeros(model)
        namespace["velocity"] = [0.9 * v + p.grad for v, p in zip(before, model.parameters(), strict=True)]
        with torch.no_grad():
            for p, v in zip(model.parameters(), namespace["velocity"], strict=True):
                p -= 0.1 * v
                p.grad = None

    assert trained(namespace, after).end["optimizer_state"] == size_of(model.parameters())


def test_raw_parameters_in_a_list_have_states_too():
    params = [torch.randn(shape, requires_grad=True) for shape in ((256, 64), (64,), (64, 10), (10,))]
    states = [(torch.zeros(p.shape), torch.zeros(p.shape)) for p in params]
    x, y = torch.randn(16, 256), torch.randint(0, 10, (16,))

    def cell() -> None:
        for _ in range(2):
            cross_entropy((x @ params[0] + params[1]).relu() @ params[2] + params[3], y).backward()
            with torch.no_grad():
                for p, (v, s) in zip(params, states, strict=True):
                    v[:] = 0.9 * v + 0.1 * p.grad
                    s[:] = 0.9 * s + 0.1 * p.grad.square()
                    p[:] -= 0.1 * v / (s.sqrt() + 1e-6)
                    p.grad.zero_()

    report = measured(cell, {"params": params, "states": states, "x": x, "y": y})
    assert report.peak["optimizer_state"] == 2 * size_of(params)
    assert report.peak["inputs"] == size_of([x, y])


def test_what_is_trained_instead_of_the_models_own_is_parameters():
    model = perceptron()
    fast = {name: p.detach().clone().mul_(1) for name, p in model.named_parameters()}  # written in place
    x, y = torch.randn(16, 256), torch.randint(0, 10, (16,))

    def cell() -> None:
        for _ in range(2):
            found = torch.func.grad(lambda p: cross_entropy(torch.func.functional_call(model, p, (x,)), y))(fast)
            for name, gradient in found.items():
                fast[name].sub_(0.1 * gradient)

    report = measured(cell, {"model": model, "fast": fast, "x": x, "y": y})
    assert report.end["parameters"] == size_of(fast.values())  # the cell does not touch the model's own
    assert report.peak["optimizer_state"] == 0
    assert report.peak["inputs"] == size_of([x, y])


@pytest.mark.parametrize("own", [False, True])
def test_an_average_beside_an_optimizer_is_parameters(own):
    model = perceptron()
    optimizer = Own(model.parameters()) if own else torch.optim.SGD(model.parameters(), 0.1)
    average = copies(model)

    def after() -> None:
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, p in zip(average, model.parameters(), strict=True):
                mean.lerp_(p, 0.1)

    report = trained({"model": model, "optimizer": optimizer, "average": average}, after)
    assert report.peak["parameters"] == report.end["parameters"] == 2 * size_of(average)
    assert report.peak["optimizer_state"] == 0


class Own:
    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    @torch.no_grad()
    def step(self) -> None:
        for p in self.parameters:
            p -= 0.1 * p.grad

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None


def test_a_best_state_beside_an_update_by_hand_is_parameters():
    model = perceptron()
    namespace: dict[str, Any] = {"model": model, "velocity": zeros(model)}

    def after() -> None:
        update(model, namespace["velocity"])
        namespace["best"] = copies(model)

    report = trained(namespace, after)
    assert report.end["parameters"] == 2 * size_of(model.parameters())
    assert report.end["optimizer_state"] == size_of(model.parameters())


@pytest.mark.parametrize("where", ["variable", "object"])
def test_copies_of_gradients_are_gradients_at_the_peak_and_at_the_end(where):
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    namespace: dict[str, Any] = {"model": model, "optimizer": optimizer}
    kept: dict[str, list[Tensor]] = namespace if where == "variable" else {}

    def after() -> None:
        kept["saved"] = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()

    report = trained(namespace, after)
    one = size_of(model.parameters())
    assert report.peak["gradients"] >= 2 * one  # the copies of the step before, and gradients or copies of this one
    assert (report.peak["parameters"], report.end["parameters"]) == (one, one)
    assert report.end["gradients"] == 2 * one  # and those of the step at whose end the trace ends
    assert report.peak["outputs"] <= 16  # the loss


def test_a_copy_of_the_weights_after_the_step_is_parameters():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    namespace: dict[str, Any] = {"model": model, "optimizer": optimizer}

    def after() -> None:
        optimizer.step()
        optimizer.zero_grad()
        namespace["best"] = copies(model)

    assert trained(namespace, after).end["parameters"] == 2 * size_of(model.parameters())


def test_what_is_resident_is_called_the_same():
    model = perceptron()
    namespace: dict[str, Any] = {"model": model, "velocity": zeros(model)}
    cross_entropy(model(torch.randn(16, 256)), torch.randint(0, 10, (16,))).backward()
    update(model, namespace["velocity"])
    assert held_as(namespace) == {"model": "parameters", "velocity": "optimizer_state"}
    namespace["optimizer"] = torch.optim.SGD(model.parameters(), 0.1)  # now it is a list that something else fills
    assert held_as(namespace) == {"model": "parameters", "velocity": "parameters"}


def held_as(namespace: dict[str, Any]) -> dict[str, str]:
    """Variable → category of what it holds."""
    (found,) = (r for r in residents.look(namespace) if r.device == "cpu")
    return {h.holder: h.category for h in found.holdings if h.kind == "variable"}


def test_momenta_on_the_card(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 10)).to("cuda")
velocity = [torch.zeros_like(p) for p in net.parameters()]
x, y = torch.randn(64, 512, device="cuda"), torch.zeros(64, dtype=torch.long, device="cuda")
def step():
    F.cross_entropy(net(x), y).backward()
    with torch.no_grad():
        for p, v in zip(net.parameters(), velocity):
            v.mul_(0.9).add_(p.grad)
            p -= 0.1 * v
            p.grad = None
with ipyvram.measure() as m:
    for _ in range(3):
        step()
said("by_hand", m.report)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
with ipyvram.measure() as m:
    for _ in range(3):
        F.cross_entropy(net(x), y).backward()
        saved = [p.grad.clone() for p in net.parameters()]
        optimizer.step()
        optimizer.zero_grad()
said("copied", m.report)
result["one"] = on_card(net.parameters())
"""
    )
    by_hand, copied, one = found["by_hand"], found["copied"], found["one"]
    assert by_hand["peak"]["optimizer_state"] == by_hand["end"]["optimizer_state"] == one
    assert by_hand["peak"]["parameters"] == one
    assert copied["end"]["gradients"] == 2 * one  # and those of the step at whose end the trace ends
    assert copied["end"]["parameters"] == 2 * one  # the velocity, which nothing tells from an average any more

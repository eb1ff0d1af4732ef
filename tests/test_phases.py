"""Marks made by real hooks in real programs; and that the hooks change nothing and leave nothing behind."""

from __future__ import annotations

import contextlib
import inspect
import logging
import traceback
from types import SimpleNamespace

import pytest
import torch
import torch.autograd.graph as autograd_graph
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizer_hooks

from ipyvram.probes.clock import Clock
from ipyvram.probes.owners import Owners
from ipyvram.probes.phases import Phases
from tests.networks import Checkpointed

#: Looked at before anything is watched: then it is ours.
LOG_NEEDS_TEST_TOOLS = "torch.testing" in inspect.getsource(autograd_graph._register_logging_hooks_on_whole_graph)


def watched(**namespace) -> SimpleNamespace:
    """Phases with owners that claim nothing, started; ``seen`` holds what they were told."""
    seen = SimpleNamespace(steps=[], roots=[], faults=[])

    def guard(what, action):
        try:
            action()
        except Exception as error:
            seen.faults.append(f"{what}: {error!r}")

    owners = Owners(Clock(), lambda storage, before: None, namespace)
    phases = Phases(Clock(), owners, seen.steps.append, lambda module, args: seen.roots.append(module), guard)
    phases.start()
    seen.phases = phases
    return seen


@pytest.fixture
def seen(request):
    found = watched()
    yield found
    found.phases.stop()
    assert found.faults == []


def story(seen: SimpleNamespace) -> str:
    """``F f`` for a forward, ``M m`` a module, ``B b`` backward, ``O o`` an optimizer step."""
    letters = {"forward": "f", "module": "m", "backward": "b", "optimizer": "o"}
    return "".join(letters[m.kind].upper() if m.begin else letters[m.kind] for m in seen.phases.marks)


def test_a_training_step(seen):
    model, criterion = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(torch.ones(1, 2)), torch.zeros(1, 2)).backward()
        optimizer.step()
    assert story(seen) == 2 * "FMmMmfFfBbOo"
    assert seen.steps == [1, 2]
    assert {m.step for m in seen.phases.marks[:12]} == {1}
    assert [m.name for m in seen.phases.marks[:3]] == ["Sequential", "0", "0"]


def test_the_variable_names_the_root():
    model = nn.Linear(2, 2)
    found = watched(net=model)
    model(torch.ones(1, 2))
    found.phases.stop()
    assert found.phases.marks[0].name == "net"


def test_every_way_into_the_engine_is_seen(seen):
    w = torch.ones(2, requires_grad=True)
    (w * 2).sum().backward()
    torch.autograd.backward((w * 2).sum())
    torch.autograd.grad((w * 2).sum(), w)
    torch.func.grad(lambda x: (x * x).sum())(torch.ones(2))
    assert story(seen) == "BbBbBbBb"


def test_recomputation_is_inside_backward(seen):
    model = Checkpointed(use_reentrant=False)
    model(torch.ones(1, 256)).sum().backward()
    text = story(seen)
    assert text.index("F", 1) > text.index("B")
    assert text.count("F") == 3
    assert text.endswith("b")


def test_autograd_off_is_noted(seen):
    with torch.no_grad():
        nn.Linear(2, 2)(torch.ones(1, 2))
    assert [m.grad for m in seen.phases.marks] == [False, False]


def test_the_first_optimizer_counts_the_steps(seen):
    a, b = (torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1) for _ in range(2))
    for _ in range(3):
        a.step()
        b.step()
        b.step()
    assert seen.steps == [1, 2, 3]
    assert story(seen) == "OoOoOo" * 3


class Clipped(torch.optim.SGD):
    """Torch puts hooks around its step, and around its base's as soon as there has been one of these."""

    def step(self, closure=None):
        if any(p.grad.isnan().any() for group in self.param_groups for p in group["params"]):
            raise ValueError("no number")
        return super().step(closure)


def test_a_step_that_calls_that_of_its_base_counts_once(seen):
    weight = torch.ones(1, requires_grad=True)
    torch.optim.SGD([weight], lr=1)
    optimizer = Clipped([weight], lr=1)
    for gradient in (1.0, float("nan"), 1.0, 1.0):
        weight.grad = torch.tensor([gradient])
        with contextlib.suppress(ValueError):
            optimizer.step()
    assert seen.steps == [1, 2, 3]
    assert story(seen).count("o") == 3


def test_a_forward_that_raises_is_closed(seen):
    class Fails(nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        nn.Sequential(nn.Linear(2, 2), Fails())(torch.ones(1, 2))
    nn.Linear(2, 2)(torch.ones(1, 2))
    assert story(seen) == "FMmMmfFf"


def test_a_backward_that_raises_is_closed(seen):
    x = torch.ones(2, requires_grad=True)
    y = (x * 1).pow(2)
    with pytest.raises(RuntimeError, match="grad can be implicitly created"):
        y.backward()
    y.sum().backward()
    assert story(seen).endswith("Bb")
    assert story(seen).count("B") == story(seen).count("b")


def test_no_frame_of_ours_is_in_the_programs_traceback(seen):
    x = torch.ones(2, requires_grad=True)
    y = x * 1
    z = y.pow(2).sum()
    y.add_(1)
    with pytest.raises(RuntimeError, match="inplace") as error:
        z.backward()
    files = [frame.filename for frame in traceback.extract_tb(error.value.__traceback__)]
    assert not any(
        "ipyvram" in file.replace("\\", "/").rsplit("/tests/", 1)[0] and "/probes/" in file for file in files
    )


def test_in_place_relu_and_modified_activations_behave_as_without(seen):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_users_own_debug_log_of_autograd_still_runs(seen, caplog):
    if LOG_NEEDS_TEST_TOOLS:
        pytest.importorskip("expecttest", reason="the log of autograd of this old torch imports torch's own test tools")
    with caplog.at_level(logging.DEBUG, logger=autograd_graph.__name__):
        (torch.ones(1, requires_grad=True) * 2).sum().backward()
    assert any("MulBackward0" in record.getMessage() for record in caplog.records)


def test_nothing_is_left_behind():
    tables = [
        global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks, global_hooks._global_forward_hooks_always_called,
        optimizer_hooks._global_optimizer_pre_hooks, optimizer_hooks._global_optimizer_post_hooks,
    ]  # fmt: skip
    before = [dict(table) for table in tables]
    patched = autograd_graph.log, autograd_graph._engine_run_backward
    found = watched()
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1)
    optimizer.step()
    found.phases.stop_tracing()
    optimizer.step()
    assert found.steps == [1, 2]  # the counter goes on
    found.phases.stop()
    optimizer.step()
    assert found.steps == [1, 2]
    assert [dict(table) for table in tables] == before
    assert (autograd_graph.log, autograd_graph._engine_run_backward) == patched


def test_without_torchs_private_logging_the_engine_is_wrapped(monkeypatch):
    monkeypatch.delattr(autograd_graph, "_register_logging_hooks_on_whole_graph")
    original = torch.autograd._engine_run_backward
    found = watched()
    w = torch.ones(2, requires_grad=True)
    (w * 2).sum().backward()
    torch.autograd.grad((w * 2).sum(), w)
    found.phases.stop()
    assert story(found) == "BbBb"
    assert torch.autograd._engine_run_backward is original


# -- optimizers that are made anew ----------------------------------------------------------------------------------------


def _train(model, optimizer, steps=1):
    for _ in range(steps):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


def test_an_optimizer_made_anew_each_step_counts_as_one(seen):
    model = nn.Linear(2, 2)
    for _ in range(5):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        _train(model, optimizer)
    assert seen.steps == [1, 2, 3, 4, 5]
    assert [m.step for m in seen.phases.marks if m.kind == "optimizer" and m.begin] == [1, 2, 3, 4, 5]
    assert seen.phases.count.optimizer == "SGD"


def test_an_optimizer_made_anew_each_epoch_is_counted_after_the_trace(seen):
    model = nn.Linear(2, 2)
    _train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    seen.phases.stop_tracing()
    for _ in range(3):
        _train(model, torch.optim.Adam(model.parameters(), lr=0.1), 2)
    assert seen.phases.count.steps == 8
    seen.phases.stop()
    assert not optimizer_hooks._global_optimizer_pre_hooks
    _train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert seen.phases.count.steps == 8

"""What was there before a recording, told by the gradients and the steps in it."""

from __future__ import annotations

import pytest
import torch

from ipyvram.analysis import analyse
from ipyvram.recording import Action, Block, Events, Mark, Trace
from ipyvram.snapshot import recording_of
from ipyvram.snapshot_claims import claims_of
from tests.simulated_cuda import MIB, SimulatedCuda

SIZES = (3 * MIB, 5 * MIB)  # of two layers


@pytest.mark.parametrize(("settings", "states"), [({}, 0), ({"momentum": 0.9}, 1)], ids=["SGD", "with momentum"])
@pytest.mark.parametrize("warm", [True, False], ids=["after a step", "from the first step"])
def test_a_model_and_its_state(settings, states, warm):
    with SimulatedCuda() as cuda:
        layers = [torch.nn.Linear(1, size // 4, bias=False) for size in SIZES]
        optimizer = torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.1, **settings)
        batch = torch.ones(MIB // 4, 1)
        for i in range(3):
            if i == int(warm):
                torch.cuda.memory._record_memory_history(global_record_annotations=True)
            sum(layer(batch[:1]).sum() for layer in layers).backward()
            optimizer.step()
            optimizer.zero_grad()
        report = analyse(recording_of(torch.cuda.memory._snapshot()))
        allocated = cuda.cards[0].allocator.allocated
    assert report.end["parameters"] == sum(SIZES)
    assert report.end["optimizer_state"] == states * sum(SIZES)
    assert report.end["other"] <= batch.nbytes
    assert sum(report.end.values()) == allocated


def trace(before, made):
    """Blocks of these sizes, then an allocation of each size ``made``, in forward, backward and the optimizer."""
    rows = [(Action.ALLOC, (64 + i) << 26, size, 0, 1000 * (i + 1), -1, -1) for i, size in enumerate(made)]
    blocks = tuple(Block(i << 26, size, size, "active_allocated") for i, size in enumerate(before, 1))
    return Trace("cuda:0", "storages", 0, 1000 * (len(made) + 1), Events.from_rows(rows), blocks)


MARKS = (Mark(500, "forward", True, 1), Mark(1500, "forward", False, 1), Mark(1600, "backward", True, 1),
         Mark(2500, "backward", False, 1), Mark(2600, "optimizer", True, 1), Mark(3500, "optimizer", False, 1))  # fmt: skip


def claimed(before, made, **other):
    return sorted((c.category, c.nbytes) for c in claims_of(trace(before, made), MARKS, **other))


def test_as_many_of_a_size_as_there_are_gradients():
    step = [7, 100, 8]
    assert claimed([100, 33], step) == [("parameters", 100)]
    assert claimed([100] * 3, step) == [("optimizer_state", 100)] * 2 + [("parameters", 100)]
    assert claimed([100] * 6, step) == [("parameters", 100)]  # five times as many more are no state that is known
    assert claimed([100], step, not_of=100) == []


def test_state_that_the_step_makes_was_not_there_before():
    assert claimed([100] * 2, [7, 100, 100]) == [("parameters", 100)]


def test_without_a_backward_nothing_is_said():
    assert claims_of(trace([100], [100]), MARKS[:2]) == ()
    assert claims_of(trace([100], [100]), ()) == ()

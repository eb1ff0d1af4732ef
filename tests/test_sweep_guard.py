"""A limit on memory: the switch of the CUDA allocator, on a simulated card."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipyvram.sweep import guard
from ipyvram.sweep.bodies import FunctionBody
from ipyvram.sweep.isolation import Baseline
from ipyvram.sweep.trial import MeasuredTrials
from tests.simulated_cuda import SimulatedCuda

MIB = 2**20


def test_without_a_gpu_nothing_is_set():
    with guard.memory_fraction(100):
        pass
    guard.saved_fractions()()
    assert guard.outside_bytes() == 0


def test_the_budget_is_for_devices_that_the_storage_trace_counts():
    assert guard.budget(None) is None
    assert guard.budget(100) == {"cpu": 100, "mps": 100}
    with SimulatedCuda():
        assert guard.budget(100) is None


def test_the_fraction_leaves_room_for_what_is_outside_and_is_put_back():
    with SimulatedCuda(capacity=1024 * MIB, context_bytes=200 * MIB, others_bytes=100 * MIB):
        torch.cuda.set_per_process_memory_fraction(0.9)
        assert guard.outside_bytes() == 300 * MIB
        with guard.memory_fraction(812 * MIB):
            assert torch.cuda.get_per_process_memory_fraction() == pytest.approx(0.5)
            blocks = [torch.empty(100 * MIB, dtype=torch.uint8) for _ in range(4)]
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(100 * MIB, dtype=torch.uint8)
            del blocks
        assert torch.cuda.get_per_process_memory_fraction() == 0.9


def test_only_devices_in_use_are_asked_and_the_current_one_stays(monkeypatch):
    """As torch 2.6 does it: to ask for a fraction makes that device current, and a context there."""
    asked = []
    with SimulatedCuda(devices=3) as cuda:

        def as_of_old(original):
            def call(*args):
                device = args[-1]
                asked.append(device)
                cuda.current = device
                return original(*args)

            return call

        monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda device: device < 2)
        for name in ("get_per_process_memory_fraction", "set_per_process_memory_fraction"):
            monkeypatch.setattr(torch.cuda, name, as_of_old(getattr(torch.cuda, name)))
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(cuda, "current", device))
        with guard.memory_fraction(4096 * MIB):
            assert cuda.current == 0
        assert cuda.current == 0
        monkeypatch.undo()
    assert set(asked) == {0, 1}


def test_a_limit_beyond_the_card_is_the_card():
    with SimulatedCuda(capacity=1024 * MIB), guard.memory_fraction(1 << 40):
        assert torch.cuda.get_per_process_memory_fraction() == 1


def train(batch: int) -> None:
    model = nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(batch, 256)).square().mean().backward()
        optimizer.step()


def test_trials_on_a_card_stay_within_the_limit_and_leave_it_as_it_was():
    with SimulatedCuda(capacity=1024 * MIB, context_bytes=200 * MIB) as cuda:
        limit = 300 * MIB
        trials = MeasuredTrials(FunctionBody(train), limit)
        small, large = trials(1000, 1), trials(40_000, 1)
        assert not small.out_of_memory
        assert small.outside_bytes == 200 * MIB
        assert small.reserved_bytes >= small.peak_bytes
        assert small.needed_bytes == small.reserved_bytes + 200 * MIB <= limit
        assert large.out_of_memory
        assert trials(1000, 1).leftover == ""
        assert torch.cuda.get_per_process_memory_fraction() == 1
        assert cuda.cards[0].allocator.allocated == 0


def test_what_stays_on_the_card_is_seen_by_its_counter():
    with SimulatedCuda(capacity=1024 * MIB):
        baseline = Baseline()
        kept = torch.zeros(2**19)
        left = baseline.leftover()
        assert left.bytes >= kept.nbytes
        del kept
        assert baseline.leftover() is None

"""Estimates of programs that name tensors on the card as they were named of old: `torch.cuda.FloatTensor`."""

from __future__ import annotations

import pytest
import torch

import ipyvram
from ipyvram.report import Report

pytestmark = pytest.mark.filterwarnings("ignore:.*no longer recommended", "ignore:.*is deprecated")

PROGRAM = """
assert torch.cuda.is_available()
Tensor = torch.cuda.FloatTensor
weight = Tensor(1000, 1000).normal_().requires_grad_()
optimizer = torch.optim.SGD([weight], lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    (weight @ weight).sum().backward()
    optimizer.step()
"""


def estimated(program: str, **namespace: object) -> Report:
    return ipyvram.estimate(program, namespace={"torch": torch} | namespace)


def test_they_are_on_the_simulated_card():
    originals = {name: value for name, value in vars(torch.cuda).items() if name.endswith("Tensor")}
    report = estimated(PROGRAM)
    assert report.peak["parameters"] >= 1000 * 1000 * 4
    assert {name: value for name, value in vars(torch.cuda).items() if name.endswith("Tensor")} == originals


def test_beside_a_real_card_nothing_is_allocated_on_it(run_on_stub):
    found = run_on_stub(
        f"""
import torch, ipyvram
held = torch.ones(1, device="cuda")
Old = torch.cuda.FloatTensor
before = torch.cuda.memory_stats()["allocation.all.allocated"]
report = ipyvram.estimate({PROGRAM!r} + "kept = Old(10)")
result = {{"made": torch.cuda.memory_stats()["allocation.all.allocated"] - before, "peak": report.peak, "same": Old is torch.cuda.FloatTensor}}
"""
    )
    assert found["made"] == 0
    assert found["same"]
    assert found["peak"]["parameters"] >= 1000 * 1000 * 4


@pytest.mark.parametrize(
    "made",
    [
        "torch.cuda.LongTensor(3, 4)",
        "torch.cuda.LongTensor(torch.Size([3, 4]))",
        "torch.cuda.LongTensor([[0, 1, 2, 3]] * 3)",
        "torch.cuda.LongTensor(torch.zeros(3, 4, dtype=torch.int64))",
        "torch.zeros(3, 4).type(torch.cuda.LongTensor)",
        "torch.zeros(3, 4).type('torch.cuda.LongTensor')",
        "Long(3, 4)",
    ],
)
def test_every_way_to_make_one(made):
    check = "assert isinstance(x, torch.cuda.LongTensor) and not isinstance(x, torch.cuda.IntTensor)"
    told = "assert (tuple(x.shape), x.dtype, x.device.type) == ((3, 4), torch.int64, 'cuda')"
    report = estimated(f"x = {made}\n{check}\n{told}", Long=torch.cuda.LongTensor)
    assert report.end["other"] + report.end["inputs"] + report.end["outputs"] == 512


def test_types_of_the_host_stay_what_they_are():
    check = "assert isinstance(x, torch.FloatTensor) and not isinstance(x, torch.cuda.FloatTensor) and not x.is_cuda"
    assert estimated(f"x = torch.FloatTensor(3)\n{check}").peak_bytes == 0


def test_as_the_default_they_make_the_card_the_default_device():
    cell = (
        "torch.set_default_tensor_type(torch.cuda.HalfTensor)\n"
        "assert torch.zeros(3).is_cuda and torch.zeros(3).dtype == torch.float16\n"
        "torch.set_default_tensor_type(torch.FloatTensor)\n"
        "assert not torch.zeros(3).is_cuda and torch.zeros(3).dtype == torch.float32\n"
        "torch.set_default_tensor_type('torch.cuda.DoubleTensor')\n"
    )
    estimated(cell)
    assert torch.zeros(3).device.type == "cpu"
    assert torch.zeros(3).dtype == torch.float32

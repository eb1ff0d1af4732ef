"""Buffers in which several processes gather gradients: found by their size, counted as gradients."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ipyvram.probes.buckets import bucket_bytes
from tests.measured import measured
from tests.on_card import HEAD

WIDTH = 64
PARAMETERS = (WIDTH * WIDTH + WIDTH) * 4


@pytest.fixture
def group():
    if not dist.is_available() or dist.is_initialized():
        pytest.skip("no process group of one's own")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_other_models_have_none():
    assert bucket_bytes(nn.Linear(2, 2)) == ()


@pytest.mark.parametrize("built", ["before the cell", "in the cell"])
@pytest.mark.parametrize("shared", [False, True])
def test_buckets_are_gradients(group, built, shared):
    def build() -> DistributedDataParallel:
        return DistributedDataParallel(nn.Linear(WIDTH, WIDTH), gradient_as_bucket_view=shared)

    ready = build() if built == "before the cell" else None

    def cell() -> None:
        model = ready or build()
        assert bucket_bytes(model) == (PARAMETERS,)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, WIDTH)).sum().backward()
            optimizer.step()

    report = measured(cell, {"model": ready} if ready else {})
    assert not report.measurement.notes
    assert report.timeline()["gradients"].max() == PARAMETERS * (1 if shared else 2)
    assert report.peak["other"] == 0
    # Not of every instant: a thread of gloo may hold on to the parameters it broadcast until the first forward has begun.
    assert report.peak["inputs"] <= 2 * 8 * WIDTH * 4
    assert report.timeline()["outputs"].max() <= 8 * WIDTH * 4 + 16


def test_shards_on_the_card(run_on_stub):
    """One of eight processes, in a process group that exchanges nothing: FSDP's sums close, shards are parameters."""
    found = run_on_stub(
        HEAD
        + """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
net = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(4))).cuda()
mesh = init_device_mesh("cuda", (8,))
for block in net:
    fully_shard(block, mesh=mesh)
fully_shard(net, mesh=mesh)
optimizer = torch.optim.AdamW(net.parameters())
torch.cuda.reset_peak_memory_stats()
with ipyvram.measure() as m:
    for _ in range(3):
        net(torch.randn(64, 512, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
said("sharded", m.report)
result["true"] = torch.cuda.max_memory_allocated()
result["shards"] = on_card(p.to_local() for p in net.parameters())
"""
    )
    sharded = found["sharded"]
    assert sharded["bytes"] == found["true"] == sum(sharded["peak"].values())
    assert sharded["peak"]["other"] == sharded["end"]["other"] == 0
    assert sharded["notes"] == []
    assert sharded["end"]["parameters"] == found["shards"]

"""What is answered about batches and ways out, on torch's own CUDA allocator with the stub: held against what then happens."""

from __future__ import annotations

import pytest

HEAD = """
import torch
from torch import nn
import ipyvram

result = {}

def ran_out(share, code):
    \"\"\"The ways out of a cell that runs out of memory within a share of the card.\"\"\"
    from ipyvram.options import Options
    from ipyvram.measuring import Measurement
    from ipyvram.recording import Cell
    torch.cuda.set_per_process_memory_fraction(share)
    measurement = Measurement(Options(), Cell(code, "<cell>"), globals())
    measurement.start()
    error = None
    try:
        exec(compile(code, "<cell>", "exec"), globals())
    except torch.cuda.OutOfMemoryError as raised:
        error = raised.with_traceback(None)
    torch.cuda.set_per_process_memory_fraction(1.0)
    report = measurement.finish(error)
    return {r.kind: [r.text, r.saves_bytes] for r in report.oom.remedies}
"""


def test_gradients_are_those_of_the_models_that_the_cell_runs(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
other = nn.Linear(4096, 4096).cuda()
net = nn.Sequential(nn.Linear(1024, 8192), nn.ReLU(), nn.Linear(8192, 1024)).cuda()
other(torch.randn(8, 4096, device="cuda")).sum().backward()
share = 1.2 * torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
step = "net(torch.randn(8192, 1024, device='cuda')).sum().backward()"
result["others"] = ran_out(share, step)
net(torch.randn(8, 1024, device="cuda")).sum().backward()
result["own"] = ran_out(2 * share, step)
result["before"] = ran_out(share, step)
result["bytes"] = sum(p.grad.nbytes for p in net.parameters())
""",
        BYTES=8 << 30,
    )
    assert "set_to_none" not in found["others"]
    assert found["own"]["set_to_none"] == found["before"]["set_to_none"]  # the model has not run yet: the cell names it
    text, saves = found["own"]["set_to_none"]
    assert text == "optimizer.zero_grad(set_to_none=True) before it: gradients of an earlier cell are still held"
    assert 0 <= saves - found["bytes"] < 4 * 512  # blocks are rounded up


def test_half_precision_is_no_way_out_of_training(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
torch.zeros(1, device="cuda")
load = "big = nn.Sequential(*[nn.Linear(8192, 8192, device='meta') for _ in range(8)]); big.to_empty(device='cuda')"
result["runs"] = ran_out(1.0, load)
result["trains"] = ran_out(1.0, load + "; optimizer = torch.optim.SGD(big.parameters(), 0.1)")
""",
        BYTES=2 << 30,
    )
    assert found["runs"]["half_weights"][0].startswith("if it is only run, not trained: model.to(torch.bfloat16)")
    assert "half_weights" not in found["trains"]


@pytest.mark.parametrize("unified", [{}, {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"}], ids=["shared", "apart"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_comparison_leaves_the_workspaces_that_were_there(run_on_stub, unified, checkpointed):
    """Those of cuBLASLt too, where it has its own: in each thread that runs layers with a bias, the engine's where a checkpoint does."""
    found = run_on_stub(
        f"""
import os
os.environ.update({unified!r}, TORCH_CUBLAS_WORKSPACE_CACHE="1")  # since torch 2.15 they stay on request only
import torch
from torch.utils.checkpoint import checkpoint
from torch import nn
import ipyvram

net = nn.Linear(256, 256).cuda()
optimizer = torch.optim.SGD(net.parameters(), 0.1)

def train(batch_size):
    for _ in range(8):
        optimizer.zero_grad()
        x = torch.randn(batch_size, 256, device="cuda")
        y = checkpoint(net, x, use_reentrant=False) if {checkpointed} else net(x)
        y.sum().backward()
        optimizer.step()

def allocated():
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()

result = [allocated()]
ipyvram.compare_batches(train, [8, 16])
result.append(allocated())
train(4)
optimizer.zero_grad()
result.append(allocated())
ipyvram.compare_batches(train, [8, 16])
result.append(allocated())
"""
    )
    none, after_none, there, after = found
    assert after_none == none
    assert after == there > none + (8 << 20)


def test_two_models_that_were_trained_before_find_their_batch(run_on_stub):
    """What a trial puts back lies in another order: the search once took 33, 34, 35, 36 and 37 for the largest."""
    found = run_on_stub(
        """
import torch
from torch import nn
import ipyvram

g = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 3072)).cuda()
d = nn.Sequential(nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, 1)).cuda()
of_g, of_d = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())

def train(batch_size):
    for step in range(8):
        noise, real = (torch.randn(batch_size, n, device="cuda") for n in (64, 3072))
        of_d.zero_grad()
        fake = g(noise)
        (d(real).mean() - d(fake.detach()).mean()).backward()
        of_d.step()
        of_g.zero_grad()
        (-d(fake).mean()).backward()
        of_g.step()

train(4)
comparison = ipyvram.compare_batches(train, limit="50%")
result = [comparison.largest.batch, comparison.largest.beyond, comparison.trials]
""",
        BYTES=4 << 30,
    )
    largest, beyond, trials = found
    assert largest > 20_000
    assert beyond - largest < 0.05 * largest
    assert trials <= 12

"""Mixtures of experts, written in the ways that are around: estimated with balanced routing, held against a run on the CPU."""

from __future__ import annotations

import pytest
import torch

import ipyvram
from ipyvram.simulated import values

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
D, H, E, K, N = 64, 128, 8, 2, 2048
class Expert(nn.Module):
    def __init__(self): super().__init__(); self.up = nn.Linear(D, H); self.down = nn.Linear(H, D)
    def forward(self, x): return self.down(F.silu(self.up(x)))
class Base(nn.Module):
    def __init__(self):
        super().__init__(); self.gate = nn.Linear(D, E, bias=False); self.experts = nn.ModuleList(Expert() for _ in range(E))
"""

CELL = """
class Experts(Base):
    def forward(self, x):
        weights = self.gate(x).softmax(-1)
{body}
model = Experts().to({device!r})
optimizer = torch.optim.SGD(model.parameters(), 0.0)
for _ in range(2):
    model(torch.randn(N, D).to({device!r})).square().mean().backward(); optimizer.step(); optimizer.zero_grad()
"""

WAYS = {
    "where": """
        top, chosen = weights.topk(K)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == e)
            out[rows] += top[rows, slot, None] * expert(x[rows])
        return out
""",
    "a mask, if any": """
        top, chosen = weights.max(-1)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            mask = chosen == e
            if mask.any():
                out[mask] = expert(x[mask]) * top[mask].unsqueeze(-1)
        return out
""",
    "nonzero": """
        top, chosen = weights.topk(K)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows, slots = (chosen == e).nonzero().t()
            out.index_add_(0, rows, expert(x.index_select(0, rows)) * top[rows, slots].unsqueeze(-1))
        return out
""",
    "one_hot and the experts that are hit": """
        top, chosen = torch.topk(weights, K, dim=-1)
        out = torch.zeros_like(x)
        mask = F.one_hot(chosen, num_classes=E).permute(2, 1, 0)
        for e in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            slots, rows = torch.where(mask[e].squeeze(0))
            out.index_add_(0, rows, self.experts[e](x[None, rows].reshape(-1, D)) * top[rows, slots, None])
        return out
""",
    "counts by scatter, sorted tokens": """
        top, chosen = weights.topk(K)
        counts = chosen.new_zeros((N, E)).scatter_(1, chosen, 1).sum(0)
        order = chosen.view(-1).argsort()
        tokens, outs, start = x[order // K], [], 0
        for e, count in enumerate(counts.cpu().numpy()):
            if count:
                outs.append(self.experts[e](tokens[start : start + count]))
            start += count
        back = torch.empty_like(tokens); back[order] = torch.cat(outs)
        return (back.view(N, K, -1) * top.unsqueeze(-1)).sum(1)
""",
    "bincount and split": """
        top, chosen = weights.topk(K)
        flat = chosen.flatten(); order = flat.argsort()
        parts = x[order // K].split(torch.bincount(flat, minlength=E).tolist())
        made = torch.cat([expert(part) for expert, part in zip(self.experts, parts)]) * top.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, order // K, made)
""",
    "capacity": """
        top, chosen = weights.max(-1)
        hot = F.one_hot(chosen, E)
        kept = ((hot.cumsum(0) * hot) <= 2 * N // E) & (hot > 0)
        out = x.clone()
        for e, expert in enumerate(self.experts):
            rows = kept[:, e].nonzero(as_tuple=True)[0]
            out[rows] = expert(x[rows]) * top[rows, None]
        return out
""",
    "a table of zeros and ones": """
        top, chosen = weights.topk(K)
        table = torch.zeros_like(weights).scatter_(1, chosen, 1.0).bool()
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            rows = (~(~table[:, e] | table[:, e].new_zeros(N))).nonzero().squeeze(1)
            out[rows] += expert(x[rows]) * weights[rows, e, None]
        return out
""",
}


def estimated(source: str, **variables: object) -> ipyvram.Report:
    return ipyvram.estimate(source, card="24GiB", namespace=dict(variables))


@pytest.mark.parametrize("body", WAYS.values(), ids=WAYS)
def test_experts_get_as_many_rows_as_in_a_run(body):
    cell = HEAD + CELL.replace("{body}", body.strip("\n"))
    with ipyvram.measure() as run:
        exec(cell.replace("{device!r}", "'cpu'"), {"__name__": "cell"})
    report = estimated(cell.replace("{device!r}", "'cuda'"), __name__="cell")
    most, in_a_run = (r.timeline()["activations"].max() for r in (report, run.report))
    assert most == pytest.approx(in_a_run, rel=0.02)
    assert report.steps == 2
    assert report.measurement.notes.count(values.BALANCED) == 1
    assert not any("as large as it can be" in note for note in report.measurement.notes)


CHOICES = {
    "topk": "torch.rand(100, 7, device='cuda').topk(3).indices",
    "topk along the first": "torch.rand(7, 100, device='cuda').topk(3, dim=0).indices",
    "argmax": "torch.rand(100, 7, device='cuda').argmax(1)",
    "max": "torch.rand(4, 7, 25, device='cuda').max(1, keepdim=True).indices",
    "sort": "torch.rand(100, 7, device='cuda').sort(-1, descending=True).indices[:, 1]",
    "stable argsort": "torch.rand(7, 100, device='cuda').argsort(dim=0, stable=True)[0]",
    "multinomial": "torch.multinomial(torch.rand(7, device='cuda'), 1000, replacement=True)",
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_the_parts_of_a_choice_are_equal_and_add_up_to_the_whole(choice):
    cell = f"""
import torch
chosen = {choice}
parts = [(chosen == e).nonzero().shape[0] for e in range(7)]
assert sum(parts) == chosen.numel() and max(parts) - min(parts) <= 1, parts
"""
    assert estimated(cell).measurement.notes.count(values.BALANCED) == 1


def test_no_row_chooses_twice_and_a_sort_is_a_permutation():
    estimated("""
import torch
for k, e in ((2, 8), (3, 8), (6, 64), (5, 7)):
    assert all(len(set(row)) == k for row in torch.rand(64, e, device="cuda").topk(k).indices.tolist())
order = torch.rand(16, 9, device="cuda").argsort(1)
assert (order.gather(1, order.argsort(1)) == torch.arange(9, device="cuda")).all()
""")


def test_fewer_choices_than_entries_tell_nothing():
    """As of the next token of a few texts: the loop ends where its length says."""
    report = estimated("""
import torch
done, length = torch.zeros(4, dtype=torch.bool, device="cuda"), 0
while length < 20 and not done.all():
    done |= torch.rand(4, 1000, device="cuda").argmax(-1) == 0
    length += 1
assert length == 20
assert torch.where(torch.rand(4, 1000, device="cuda").argmax(-1) == 0)[0].shape == (4,)
""")
    assert any("as large as it can be (nonzero)" in note for note in report.measurement.notes)


def test_a_choice_that_decides_nothing_is_no_note():
    report = estimated("import torch\ni = torch.rand(64, 8, device='cuda').argmax(1)\nhits = (i == 1).sum()")
    assert values.BALANCED not in report.measurement.notes


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="torch 2.6 has no grouped products")
def test_grouped_products_are_laid_out_as_on_the_card():
    """As torch's CUDA build over the stub lays them out: rows begin at multiples of 16 bytes, of float32, too."""
    estimated("""
import torch
for dtype, wide in ((torch.float32, 20), (torch.bfloat16, 24)):
    x = torch.zeros(64, 32, dtype=dtype, device="cuda", requires_grad=True)
    offsets = torch.arange(16, 80, 16, device="cuda", dtype=torch.int32)
    odd = torch._grouped_mm(x, torch.zeros(4, 32, 18, dtype=dtype, device="cuda"), offs=offsets)
    assert odd.shape == (64, 18) and odd.stride() == (wide, 1)
    w = torch.zeros(4, 32, 24, dtype=dtype, device="cuda", requires_grad=True)
    even = torch._grouped_mm(x, w, offs=offsets); even.backward(torch.ones_like(even))
    assert (x.grad.stride(), w.grad.shape, w.grad.stride()) == ((32, 1), (4, 32, 24), (768, 24, 1))
    batched = torch._grouped_mm(torch.zeros(3, 8, 16, dtype=dtype, device="cuda"), torch.zeros(3, 16, 8, dtype=dtype, device="cuda"))
    assert batched.stride() == (64, 8, 1)
""")

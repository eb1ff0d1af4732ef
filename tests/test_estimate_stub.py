"""Estimates against torch's own CUDA operators and allocator over the stub: the same requests in the same order, the same peaks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import random_programs
from benchmarks.estimate_accuracy import estimated
from benchmarks.on_stub import Runner
from ipyvram import cards
from ipyvram.simulated import recurrent, sorting
from tests import cuda_stub

CARD = dataclasses.replace(cards.find("RTX 3090"), total_bytes=64 << 30)
HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
def X(*shape, dtype=torch.float32): return torch.randn(*shape, device="cuda", dtype=dtype, requires_grad=True)
def I(n, *shape): return torch.randint(0, n, shape, device="cuda")
def B(y): y.backward(torch.ones_like(y) if y.dim() else None)
"""
PROGRAMS = {
    "dropout": "B(F.dropout(X(8, 64, 64), 0.1))",
    "layer_norm of a transposed tensor": "B(nn.LayerNorm(64).cuda()(X(8, 64, 64).transpose(0, 1)))",
    "group_norm": "B(nn.GroupNorm(8, 64).cuda()(X(8, 64, 32, 32)))",
    "batch_norm of vectors": "B(nn.BatchNorm1d(64).cuda()(X(800, 64)))",
    "rms_norm": "B(nn.RMSNorm(64).cuda()(X(8, 64, 64)))",
    "linear of a vector": "B(nn.Linear(64, 128).cuda()(X(64))); B(nn.Linear(64, 128, bias=False).cuda()(X(64)))",
    "linear of a transposed tensor": "B(nn.Linear(64, 128).cuda()(X(8, 64, 16).transpose(1, 2)))",
    "convolution, mixed order": "B(nn.Conv2d(16, 32, 3).cuda()(X(8, 32, 32, 16).permute(0, 3, 1, 2)))",
    "convolution, one channel a group": "m = nn.Conv2d(32, 32, 3, groups=32).cuda(); B(m(X(8, 32, 32, 32)))\n"
    "B(m(X(8, 32, 32, 32).transpose(2, 3)).sum())",
    "convolution, half of a gradient": "x = X(4, 8, 12, 12)\n"
    "for m in (nn.Conv2d(8, 8, 3, padding=1).cuda(), nn.ConvTranspose2d(8, 8, 3, padding=1).cuda()):\n"
    "    B(torch.cat([m(x), x * 2], 1) * 2)",
    "convolution, a transposed sequence": "for g, d in ((1, torch.float32), (32, torch.float32), (32, torch.float16)):\n"
    "    m, x = nn.Conv1d(32, 32, 3, padding=1, groups=g).cuda().to(d), X(3, 50, 32, dtype=d)\n"
    "    B(m(x.transpose(1, 2))); B(m(x.transpose(1, 2)).transpose(1, 2) * 2)",
    "softmax": "B(F.softmax(X(64, 64, 16), 1))",
    "mse_loss": "loss = F.mse_loss(X(640, 640), torch.zeros(640, 640, device='cuda')); B(loss)",
    "binary_cross_entropy": "B(F.binary_cross_entropy(X(64, 64), torch.zeros(64, 64, device='cuda')))",
    "with logits": "B(F.binary_cross_entropy_with_logits(X(64, 64), torch.zeros(64, 64, device='cuda')))",
    "sum of booleans": "(X(1000, 1000) > 0).sum()",
    "extremes with their places": "x = X(4096, 512); x.max(0); x.half().min(0); x.argmax(); torch.aminmax(x, dim=0); x.int().amax(0)",
    "deviations in double precision": "x = torch.zeros(4096, 512, device='cuda').double(); torch.var_mean(x, 0); x.std()",
    "non-zeros along a dimension": "torch.zeros(4096, 512, device='cuda').count_nonzero(0)",
    "the larger of two": "B(torch.maximum(X(64, 100), X(64, 100)).sum()); x = X(64, 100); B(X(64, 100).clamp(x, x + 1).sum())",
    "mean beside variance": "v, m = torch.var_mean(X(64, 100), 0); B(v.sum() + m.sum())",
    "mish": "B(F.mish(X(64, 100)))",
    "distances": "B(torch.cdist(X(64, 100), X(64, 100)))",
    "triangular systems": "x = torch.linalg.solve_triangular(torch.ones(16, 16, device='cuda'), X(4, 16, 8), upper=True)\n"
    "for n in (3, 9): torch.linalg.solve_triangular(torch.ones(n, 64, 64, device='cuda'), X(n, 64, 2), upper=False)",
    "products of two libraries": "x, w, b = X(64, 48), X(48, 32), X(32); B(torch.addmm(b, x, w)); B(torch.addmm(b, x, w, beta=2))\n"
    "torch._addmm_activation(b, x, w); torch.addmm(b, x[:1], w); torch.addmm(b[:1], x, w[:, :1]); torch.addmm(b.double(), "
    "x.double(), w.double()); torch.addmm(X(64, 32), x, w); torch.vdot(b, b); x[:0] @ w; "
    "h = torch.zeros(64, 64, device='cuda').half(); torch.addmm(h, h, h, beta=2); x[:, :0] @ w[:0]",
    "indices on the host": "x = X(512, 1000) * 2; B(x[torch.arange(512), I(1000, 512)].sum()); B(X(512, 64)[torch.arange(512)].sum())",
    "results of another size": "x = torch.zeros(100, 100, device='cuda'); y = torch.zeros(0, device='cuda'); torch.mul(x, 2, out=y)\n"
    "y.resize_(30_000); z = x.median(0); torch.zeros(1000, device='cuda')",
    "LSTMCell": "B(nn.LSTMCell(64, 128).cuda()(X(16, 64), (X(16, 128), X(16, 128)))[0])",
    "GRUCell": "B(nn.GRUCell(64, 128).cuda()(X(16, 64), X(16, 128)))",
    "MultiheadAttention": "x = X(8, 32, 64); B(nn.MultiheadAttention(64, 4, batch_first=True).cuda()(x, x, x, need_weights=False)[0])",
    "efficient attention": "q, k, v = (X(2, 4, 60, 64) for _ in range(3)); B(F.scaled_dot_product_attention(q, k, v))",
    "efficient attention, a mask": "q, k, v = (X(2, 4, 60, 64) for _ in range(3))\n"
    "B(F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(60, 60, device='cuda')))",
    "flash attention": "q, k, v = (X(2, 4, 60, 64, dtype=torch.float16) for _ in range(3)); B(F.scaled_dot_product_attention(q, k, v))",
    "wide heads": "q, k, v = (X(2, 4, 60, 200, dtype=torch.bfloat16) for _ in range(3)); B(F.scaled_dot_product_attention(q, k, v))",
    "shared keys": "q = X(1, 4, 2048, 64, dtype=torch.float16); F.scaled_dot_product_attention(q, q, q)",
    "attention by products, causal": "q, k, v = (X(2, 4, 60, 64, dtype=torch.float64) for _ in range(3))\n"
    "B(F.scaled_dot_product_attention(q, k, v, is_causal=True))",
    "attention by products, shared keys": "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
    "q, k, v = (X(2, n, 128, 64, dtype=torch.float16) for n in (8, 2, 2))\n"
    "with sdpa_kernel(SDPBackend.MATH): F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)",
    "attention by products, half precision, a mask": "q, k, v = (X(2, 4, 64, 33, dtype=torch.float16) for _ in range(3))\n"
    "mask = torch.zeros(64, 64, dtype=torch.bool, device='cuda')\n"
    "B(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.1))",
    "rolled over two dimensions": "B(torch.roll(X(2, 8, 8, 16), (1, 2), (1, 2)))",
    "rolled, transposed": "B(torch.roll(X(2, 8, 8, 16).transpose(1, 2), (1, 2), (0, 1))); B(torch.roll(X(2, 8, 8, 16).transpose(1, 2), 3))",
    "embeddings that are sorted": "w = X(1000, 16); B(F.embedding(I(1000, 20000), w)); B(F.embedding(I(255, 5000).int(), X(255, 16)))",
    "gradients that are summed by index": "t = X(169, 8); t[I(100, 2401)].backward(torch.zeros(8, 2401, device='cuda').T)\n"
    "t = X(50, 60, 8); i = I(50, 2000); B(t[i, I(50, 2000)]); B(t[:, I(50, 4000)])",
    "sorts": "torch.zeros(3, 10000, device='cuda').sort(-1); torch.zeros(10000, 3, device='cuda').sort(0)\n"
    "torch.zeros(10000, device='cuda').argsort(); torch.zeros(150, 5000, device='cuda').sort(); torch.zeros(9, 3000, device='cuda').sort(0)\n"
    "torch.randperm(20000, device='cuda'); torch.randperm(100, device='cuda')",
    "inference mode": "layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).cuda()\n"
    "with torch.inference_mode(): layer(torch.randn(8, 32, 64, device='cuda'))",
    "evaluated encoders": "for first in (False, True):\n"
    "    m = nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 2, 96, batch_first=True, norm_first=first, activation='gelu'), 2).cuda()\n"
    "    m.eval(); x = torch.zeros(8, 20, 48, device='cuda'); B(m(x))\n    with torch.no_grad(): m(x)\n"
    "    with torch.inference_mode(): m(x)",
    "autocast": "with torch.autocast('cuda', dtype=torch.float16): B(F.linear(X(64, 64), X(64, 64), X(64)))",
    "batch_norm, transposed": "m = nn.BatchNorm1d(48).cuda(); x = X(8, 20, 48); B(m(x.transpose(1, 2))); m.eval(); B(m(x.transpose(1, 2)))\n"
    "with torch.no_grad(): m(x.transpose(1, 2))",
    "batch_norm, split over blocks": "x = X(32, 32, 128, dtype=torch.bfloat16); nn.BatchNorm1d(128).cuda().bfloat16()(x.transpose(1, 2))\n"
    "nn.BatchNorm1d(128).cuda()(X(32, 32, 128).transpose(1, 2))",
    "batch_norm, channels last": "m = nn.BatchNorm2d(16).cuda(); B(m(X(8, 16, 24, 24).to(memory_format=torch.channels_last)).sum())",
    "batch_norm, weights that stay": "m = nn.BatchNorm2d(16).cuda().requires_grad_(False); B(m(X(8, 16, 24, 24)))",
    "batch_norm, channels last, a weight that stays": "m = nn.BatchNorm2d(16).cuda().bfloat16(); m.weight.requires_grad_(False)\n"
    "x = X(8, 16, 24, 24, dtype=torch.bfloat16).to(memory_format=torch.channels_last); B(m(x)); B(m(x).sum())",
    "batch_norm, bfloat16": "m = nn.BatchNorm2d(16).cuda().bfloat16(); x = X(8, 16, 24, 24, dtype=torch.bfloat16); B(m(x)); B(m(x.transpose(2, 3)))\n"
    "y = m(x.to(memory_format=torch.channels_last)); y.backward(torch.ones_like(y)); B(m(x.to(memory_format=torch.channels_last)).sum())",
    "batch_norm without weights": "m = nn.BatchNorm2d(16, affine=False).cuda().eval(); B(m(X(8, 16, 24, 24)))",
    "group_norm, half precision": "B(nn.GroupNorm(4, 16).cuda().bfloat16()(X(8, 16, 24, 24, dtype=torch.bfloat16)))",
    "group_norm of data": "B(nn.GroupNorm(4, 16).cuda()(torch.zeros(8, 16, 24, 24, device='cuda')).sum())",
    "group_norm, transposed": "B(nn.GroupNorm(4, 48).cuda()(X(8, 20, 48).transpose(1, 2)).sum())",
    "group_norm, channels last": "B(nn.GroupNorm(4, 16).cuda()(X(8, 24, 24, 16).permute(0, 3, 1, 2)))\n"
    "B(nn.GroupNorm(4, 16, affine=False).cuda()(X(8, 4, 6, 6, 16).permute(0, 4, 1, 2, 3)))",
    "group_norm of one pixel": "B(nn.GroupNorm(4, 16).cuda()(X(8, 16, 1, 1))); B(nn.GroupNorm(4, 16).cuda()(X(8, 16)))",
    "layer_norm, permuted": "x = X(8, 16, 24, 24).permute(0, 2, 3, 1); B(nn.LayerNorm(16).cuda()(x).permute(0, 3, 1, 2).sum())",
    "rms_norm, transposed": "B(nn.RMSNorm(64).cuda()(X(8, 32, 64).transpose(0, 1)).sum())",
    "elementwise, gradients in another order": "x = X(8, 16, 24, 24).to(memory_format=torch.channels_last)\n"
    "for f in (F.relu, F.leaky_relu, F.relu6, F.elu, F.softplus, F.mish, F.gelu, F.silu, F.hardswish):\n"
    "    y = f(x); y.backward(torch.ones(y.shape, device='cuda'))",
    "elementwise, transposed gradients": "x = X(8, 8, 24, 24)\n"
    "for f in (F.relu, F.leaky_relu, F.relu6, F.elu, F.softplus, F.mish, F.gelu, F.silu, F.hardswish, F.hardsigmoid):\n"
    "    B(F.conv2d(f(x * 2), X(8, 8, 1, 1)).transpose(2, 3).mean((2, 3))); B(f(x * 2).transpose(2, 3).mean((2, 3)))",
    "pools of every second": "x = X(3, 32, 100, 100)[:, :, ::2, ::2]; B(F.max_pool2d(x, 3, 1, 1).sum()); B(F.avg_pool2d(x, 3, 1, 1).sum())",
    "pools, channels last": "x = X(3, 32, 20, 20).to(memory_format=torch.channels_last)\n"
    "for y in (F.max_pool2d(x, 2), F.avg_pool2d(x, 2), F.adaptive_max_pool2d(x, 5), F.adaptive_avg_pool2d(x, 5)):\n"
    "    y.backward(torch.ones(y.shape, device='cuda'))\n"
    "x = X(3, 32, 20, 20); y = F.adaptive_avg_pool2d(x.transpose(2, 3), 5); B(y.to(memory_format=torch.channels_last).sum())\n"
    "F.adaptive_avg_pool2d(x, 5).backward(torch.ones(3, 32, 5, 5, device='cuda').to(memory_format=torch.channels_last))",
    "reflected borders": "x = X(8, 16, 26, 26)[:, :, 1:-1, 1:-1]; B(F.pad(x, (1, 1, 1, 1), mode='reflect').sum())",
    "resized": "x = X(8, 16, 48, 48).to(memory_format=torch.channels_last)[:, :, ::2, ::2]\n"
    "B(F.interpolate(x, scale_factor=2, mode='bilinear').sum())\n"
    "with torch.inference_mode(): F.interpolate(torch.zeros(2, 8, 16, 16, device='cuda'), scale_factor=2, mode='bilinear')",
    "unfolded": "B(F.unfold(X(8, 16, 24, 24), 3, padding=1)); B(F.unfold(X(8, 16, 24, 24), 2, stride=4)); B(F.fold(X(2, 36, 256), 16, 3, padding=1))",
    "softmax, transposed": "y = F.softmax(X(8, 50, 64).transpose(1, 2), -1); y.backward(torch.ones(8, 50, 64, device='cuda').transpose(1, 2))\n"
    "B(F.log_softmax(X(8, 50, 64).transpose(1, 2), -1))",
    "sums along, transposed": "B(X(8, 50, 64).transpose(1, 2).cumsum(1))",
    "sums along, in another type": "x = X(8, 50, 64, dtype=torch.bfloat16)\n"
    "with torch.autocast('cuda', dtype=torch.bfloat16): y = x.cumsum(1) + x.transpose(1, 2).cumsum(1).transpose(1, 2)\nB(y)",
    "the logarithm of a sum": "B(torch.logsumexp(X(16, 50, 48), -1)); B(torch.logsumexp(X(16, 50, 48), (0, 2), keepdim=True))",
    "norms of a list": "torch._foreach_norm([*X(5, 7, 12), X(70000)])",
    "one_hot": "F.one_hot(I(10, 8, 20), 10).float()",
    "distances, not squared": "B(torch.cdist(X(64, 100), X(32, 100), p=1))",
    "an expanded gradient of embeddings": "F.embedding(I(100, 64), X(100, 16)).sum().backward()",
    "losses with margins": "B(F.multi_margin_loss(X(64, 10), I(10, 64))); B(F.multilabel_margin_loss(X(64, 10), I(10, 64, 10)))",
    "a cast made without gradients": "w = X(64, 64)\nwith torch.autocast('cuda', dtype=torch.float16):\n"
    "    with torch.no_grad(): torch.mv(w, X(64))\n    y = torch.mv(w, X(64)).sum()\ny.backward()",
    "a norm under autocast": "x = X(64, 32)\nwith torch.autocast('cuda', dtype=torch.float16): y = F.pairwise_distance((x @ X(32, 16)), X(64, 16).half()).sum()\ny.backward()",
    "averages of weights": "model = nn.Linear(512, 512).cuda(); average = torch.optim.swa_utils.AveragedModel(model)\n"
    "for _ in range(2): average.update_parameters(model)",
}


#: What `cub::DeviceRadixSort` asked for on the stub: generation, pairs, bytes of key and value, bits, bytes.
RADIX = [
    (75, 2305, 8, 8, 7, 3583), (75, 100000, 8, 8, 13, 1641471), (75, 20000, 4, 4, 10, 166911), (75, 100000, 4, 8, 32, 1245695),
    (86, 2304, 8, 8, 13, 1), (86, 20000, 8, 8, 13, 330751), (86, 100000, 4, 4, 10, 821247), (86, 30000, 4, 8, 32, 379135),
    (90, 100000, 8, 8, 10, 1627135), (90, 20000, 4, 4, 10, 168959), (90, 30000, 4, 8, 32, 375039), (90, 100000, 8, 4, 36, 1229311),
    (90, 30000, 2, 8, 16, 311039), (75, 10000, 2, 8, 16, 964863), (86, 4097, 2, 8, 16, 2605823),
]  # fmt: skip


@pytest.mark.parametrize(("generation", "count", "key", "value", "bits", "asked"), RADIX)
def test_what_a_radix_sort_works_in(generation, count, key, value, bits, asked):
    card = cards.find({75: "T4", 86: "RTX 3090", 90: "H100"}[generation])
    assert sorting.radix_sort_bytes(card, count, key, value, bits) == asked


#: What operators of an older torch ask for otherwise (all in 2.6, four in 2.10 and 2.11): a workspace of cuBLASLt's own, the order
#: within attention, and what a sort works in. The estimate is then as near as that workspace is large.
OTHERWISE = {
    "MultiheadAttention",
    "products of two libraries",
    "flash attention",
    "shared keys",
    "embeddings that are sorted",
    "inference mode",
    "evaluated encoders",
    "autocast",
    "linear of a vector",
    "the larger of two",
    "group_norm, half precision",
    "group_norm of one pixel",
}
NEWER = {"a cast made without gradients"}  #: an error before
OWN_WORKSPACE = 1 << 20  #: two of them are a segment of small blocks
OLDER = tuple(int(part) for part in cuda_stub.torch.__version__.split(".")[:2]) < (2, 14)


@pytest.fixture(scope="module")
def runner():
    if why := cuda_stub.missing():
        pytest.skip(why)
    with Runner(CARD) as running:
        yield running


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_estimate_asks_for_what_cuda_asks_for(runner, name):
    if OLDER and name in NEWER:
        pytest.skip("an older torch does otherwise")
    source = HEAD + PROGRAMS[name]
    real = runner.run(source)
    _, report, estimation = estimated(source, CARD)
    assert real["allocated"] == real["measured_allocated"]
    if OLDER and name in OTHERWISE:
        assert report.peak_bytes == pytest.approx(real["allocated"], abs=OWN_WORKSPACE)
        assert report.peak_reserved_bytes == pytest.approx(real["reserved"], abs=2 * OWN_WORKSPACE)
        return
    assert [row.size for row in estimation.memory.rows if row.alloc] == real["requests"]
    assert report.peak_bytes == real["allocated"]
    assert report.peak_reserved_bytes == real["reserved"]


RECURRENT = {
    "LSTM": "B(nn.LSTM(48, 48, batch_first=True).cuda()(X(8, 20, 48))[0])",
    "GRU, dropout, two layers": "B(nn.GRU(48, 48, 2, dropout=0.2).cuda()(X(20, 8, 48))[0])",
    "RNN, both ways, no biases": "B(nn.RNN(48, 24, bidirectional=True, bias=False, batch_first=True).cuda()(X(8, 20, 48))[0])",
    "LSTM, projected": "B(nn.LSTM(48, 96, proj_size=48, batch_first=True).cuda()(X(8, 20, 48))[0])",
    "only the last state": "B(nn.LSTM(48, 48, batch_first=True).cuda()(X(8, 20, 48))[1][0])",
    "bfloat16": "B(nn.LSTM(48, 48, batch_first=True).cuda().bfloat16()(X(8, 20, 48, dtype=torch.bfloat16))[0])",
    "autocast": "m = nn.LSTM(48, 48, batch_first=True).cuda()\n"
    "with torch.autocast('cuda', dtype=torch.bfloat16): y = m(X(8, 20, 48))[0]\nassert y.dtype is torch.float16; B(y)",
    "no gradients": "m = nn.LSTM(48, 48, batch_first=True).cuda().eval()\nwith torch.no_grad(): m(torch.randn(8, 20, 48).cuda())",
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_but_for_what_only_cudnn_knows(runner, monkeypatch, name):
    """The stub's cuDNN keeps nothing for backward."""
    monkeypatch.setattr(recurrent, "_KEPT", dict.fromkeys(recurrent._KEPT, 0))
    real = runner.run(HEAD + RECURRENT[name])
    _, report, estimation = estimated(HEAD + RECURRENT[name], CARD)
    if OLDER and name == "bfloat16":
        pytest.skip("an older torch does otherwise")
    assert [row.size for row in estimation.memory.rows if row.alloc] == real["requests"]
    assert report.peak_bytes == real["allocated"]


@pytest.fixture(scope="module")
def hopper():
    if why := cuda_stub.missing():
        pytest.skip(why)
    with Runner(cards.find("H100")) as running:
        yield running


_HEADS = "q, k, v = (X(2, 4, 48, {}, dtype=torch.bfloat16) for _ in range(3))\ny = F.scaled_dot_product_attention(q, k, v{})\nB(y)"
ATTENTION = {
    "plain": _HEADS.format(32, ""),
    "causal": _HEADS.format(64, ", is_causal=True"),
    "dropout of an eighth": _HEADS.format(32, ", dropout_p=0.125"),
    "a mask": _HEADS.format(32, ", attn_mask=torch.ones(2, 1, 1, 48, dtype=torch.bool, device='cuda')"),
    "a mask that wants a gradient": _HEADS.format(32, ", attn_mask=X(2, 4, 48, 48).bfloat16()"),
    "wide": _HEADS.format(256, ""),
    "too wide for a backward": _HEADS.format(192, ""),
    "no multiple of eight": _HEADS.format(20, ""),
    "an expanded gradient": _HEADS.format(32, "") + "\ny = F.scaled_dot_product_attention(q, k, v)\ny.sum().backward()",
    "grouped": "q, k, v = (X(2, n, 48, 32, dtype=torch.float16) for n in (8, 2, 2))\n"
    "B(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))",
    "one key": "q = X(2, 4, 1, 32, dtype=torch.float16); B(F.scaled_dot_product_attention(q, q, q))",
    "float32": "q = X(2, 4, 48, 32); B(F.scaled_dot_product_attention(q, q, q))",
    "no gradients": "q = torch.zeros(2, 4, 48, 32, device='cuda').half(); F.scaled_dot_product_attention(q, q, q)",
    "deterministic": "torch.use_deterministic_algorithms(True, warn_only=True)\n" + _HEADS.format(32, ""),
    "switched off": "torch.backends.cuda.enable_cudnn_sdp(False)\n" + _HEADS.format(32, ""),
    "nothing else": "from torch.nn.attention import SDPBackend, sdpa_kernel\n"
    "with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):\n    " + _HEADS.format(32, "").replace("\n", "\n    "),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_on_hopper(hopper, name):
    real = hopper.run(HEAD + ATTENTION[name])
    _, report, estimation = estimated(HEAD + ATTENTION[name], cards.find("H100"))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    if OLDER:
        assert report.peak_bytes == pytest.approx(real["allocated"], abs=OWN_WORKSPACE)
        return
    assert [row.size for row in estimation.memory.rows if row.alloc] == real["requests"]
    assert report.peak_bytes == real["allocated"]


def test_random_cells(runner, monkeypatch):
    """Those of 40 seeds that run at all; the peak within the smallest block that the allocator gives, four times."""
    monkeypatch.setattr(recurrent, "_KEPT", dict.fromkeys(recurrent._KEPT, 0))
    ran = 0
    for seed in range(40):
        text = random_programs.program(seed)
        try:
            real = runner.run(text)
        except RuntimeError:  # no kernel of torch's takes it
            continue
        ran += 1
        _, report, _ = estimated(text, CARD, steps=99)
        near = 2 * OWN_WORKSPACE if OLDER else 4 * 512
        assert report.peak_bytes == pytest.approx(real["allocated"], abs=near), seed
    assert ran > 25


@pytest.fixture(scope="module")
def older_card():
    if why := cuda_stub.missing():
        pytest.skip(why)
    with Runner(dataclasses.replace(cards.find("T4"), total_bytes=64 << 30)) as running:
        yield running


@pytest.mark.parametrize(
    "convolution",
    [
        "F.conv2d(X(3, 16, 20, 20), X(24, 16, 3, 3), X(24), padding=1)",
        "F.conv2d(X(3, 16, 20, 20), X(24, 16, 1, 1))",
        "F.conv2d(X(3, 16, 20, 20), X(24, 16, 3, 3), padding=2, dilation=2)",
        "F.conv_transpose2d(X(3, 16, 20, 20), X(16, 24, 3, 3), stride=2)",
        "F.conv1d(X(3, 16, 20), X(24, 16, 3), padding=1)",
        "F.conv3d(X(3, 16, 8, 8, 8), X(24, 16, 3, 3, 3), padding=1)",
    ],
)
def test_bfloat16_before_its_time_is_convolved_by_products(older_card, convolution):
    source = HEAD.replace("torch.float32", "torch.bfloat16") + f"B({convolution}.sum())"
    real = older_card.run(source)
    _, report, _ = estimated(source, cards.find("T4"))
    assert report.peak_bytes == real["allocated"]
    assert report.peak["workspaces"] == real["peak"].get("workspaces", 0)
    assert report.peak_bytes > cards.find("T4").cublas_workspace_bytes


def test_a_program_that_fails_says_why(runner):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        runner.run("1 / 0")

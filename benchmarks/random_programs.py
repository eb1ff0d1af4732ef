"""Random training cells: a seed comes in, the text of a cell goes out.

Layers, losses, optimizers, ways of making and moving data, precision, accumulation, clipping and evaluation are drawn one by one, so that
they meet as nobody would write them together. Some cells do not run at all, as their layers do not fit; whoever runs them passes over these.
"""

from __future__ import annotations

import random

HEAD = """
import math, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
class Residual(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return x + self.f(x)
class Call(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)
class Turned(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x.transpose(1, 2)).transpose(1, 2)
class Last(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
class First(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)[0]
class Again(nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return checkpoint(self.f, x, use_reentrant=False)
class Attention(nn.Module):
    def __init__(self, width, heads, causal=False):
        super().__init__(); self.qkv = nn.Linear(width, 3 * width); self.heads = heads; self.causal = causal
    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return x + F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(b, n, d)
class Products(nn.Module):
    def __init__(self, width, heads):
        super().__init__(); self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3)); self.heads = heads
    def forward(self, x):
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = torch.tril(torch.ones(x.shape[1], x.shape[1], device=x.device)) == 0
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(mask, float("-inf")).softmax(-1)
        return (F.dropout(weights, 0.1) @ v).transpose(1, 2).contiguous().view(x.shape)
class Squeeze(nn.Module):
    def __init__(self, c): super().__init__(); self.a, self.b = nn.Conv2d(c, c // 4, 1), nn.Conv2d(c // 4, c, 1)
    def forward(self, x): return x * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))
"""
_ELEMENTWISE = (
    "nn.ReLU()", "nn.GELU()", "nn.SiLU()", "nn.Tanh()", "nn.Softplus()", "nn.Mish()", "nn.ELU()", "nn.Hardswish()", "nn.LeakyReLU(0.1)",
    "nn.PReLU()", "nn.Sigmoid()", "nn.ReLU6()", "nn.Dropout(0.3)", "nn.LogSigmoid()", "nn.Softsign()",
)  # fmt: skip
SEQUENCES = (
    *_ELEMENTWISE,
    "nn.Linear(D, D)", "nn.LayerNorm(D)", "nn.RMSNorm(D)", "Attention(D, 4)", "Attention(D, 8, True)", "Products(D, 4)",
    "nn.TransformerEncoderLayer(D, 4, 2 * D, batch_first=True)", "Residual(nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D)))",
    "Again(Residual(nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))))",
    "First(nn.LSTM(D, D, batch_first=True))", "First(nn.LSTM(D, D // 2, 2, bidirectional=True, batch_first=True))",
    "First(nn.GRU(D, D, batch_first=True))", "First(nn.RNN(D, D, batch_first=True, bias=False))", "Turned(nn.Conv1d(D, D, 3, padding=1))",
    "Turned(nn.Conv1d(D, D, 3, padding=1, groups=D))", "Turned(nn.BatchNorm1d(D))", "Turned(nn.GroupNorm(4, D))",
    "Turned(nn.MaxPool1d(3, 1, 1))", "Turned(nn.AvgPool1d(3, 1, 1))", "nn.utils.parametrizations.weight_norm(nn.Linear(D, D))",
    "nn.utils.parametrizations.spectral_norm(nn.Linear(D, D))", "Call(lambda x: x.softmax(-1))", "Call(lambda x: torch.cumsum(x, 1))",
    "Call(lambda x: F.normalize(x, dim=-1))", "Call(lambda x: torch.roll(x, 1, 1))", "Call(lambda x: x.flip(1))", "Call(lambda x: x.tril())",
    "Call(lambda x: torch.cat([x[..., ::2], x[..., 1::2]], -1))", "Call(lambda x: torch.where(x > 0, x, 0.1 * x))",
    "Call(lambda x: torch.einsum('bld,bmd->blm', x, x).softmax(-1) @ x)", "Call(lambda x: x + x.mean(1, keepdim=True))",
    "Call(lambda x: x.masked_fill(x > 2, 0.0))", "Call(lambda x: F.pad(x, (1, 1))[..., 1:-1])", "Call(lambda x: x.double().float())",
    "Call(lambda x: torch.logsumexp(x, -1, keepdim=True) + x)", "Call(lambda x: x.sort(-1).values)", "Call(lambda x: x.pow(2).sqrt())",
)  # fmt: skip
IMAGES = (
    *_ELEMENTWISE,
    "nn.Conv2d(C, C, 3, padding=1)", "nn.Conv2d(C, C, 1, bias=False)", "nn.Conv2d(C, C, 3, padding=1, groups=C)", "nn.BatchNorm2d(C)",
    "nn.Conv2d(C, C, 3, padding=2, dilation=2)", "nn.GroupNorm(4, C)", "nn.InstanceNorm2d(C, affine=True)", "nn.MaxPool2d(3, 1, 1)",
    "nn.AvgPool2d(3, 1, 1)", "nn.Dropout2d(0.1)", "nn.Conv2d(C, C, 3, stride=2, padding=1)", "nn.ConvTranspose2d(C, C, 2, stride=2)",
    "Residual(nn.Sequential(nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C), nn.ReLU()))", "Squeeze(C)",
    "nn.Sequential(nn.Conv2d(C, 4 * C, 1), nn.PixelShuffle(2), nn.AvgPool2d(2))", "nn.ChannelShuffle(4)", "Last(nn.LayerNorm(C))",
    "Last(nn.Linear(C, C))", "nn.AdaptiveAvgPool2d(12)", "nn.AdaptiveMaxPool2d(12)", "nn.ReplicationPad2d(1)", "nn.CircularPad2d(1)",
    "Call(lambda x: F.interpolate(x, scale_factor=2, mode='bilinear')[:, :, ::2, ::2])", "Call(lambda x: x.flip(-1))",
    "Call(lambda x: F.pad(x, (1, 1, 1, 1), mode='reflect')[:, :, 1:-1, 1:-1])", "Call(lambda x: torch.cat([x, x], 1)[:, ::2])",
    "Call(lambda x: F.unfold(x, 3, padding=1).view(*x.shape[:2], 9, *x.shape[2:]).mean(2))", "Call(lambda x: x.transpose(2, 3))",
    "Call(lambda x: x.flatten(2).transpose(1, 2).softmax(-1).transpose(1, 2).unflatten(2, x.shape[2:]))",
    "Again(Residual(nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.ReLU(), nn.Conv2d(C, C, 3, padding=1))))",
)  # fmt: skip
_OPTIMIZERS = (
    "SGD(P, 0.1)", "SGD(P, 0.1, momentum=0.9, nesterov=True)", "Adam(P)", "AdamW(P, weight_decay=0.1)", "AdamW(P, fused=True)",
    "Adam(P, foreach=False)", "Adam(P, amsgrad=True)", "RMSprop(P)", "Adagrad(P)", "Adamax(P)", "Adafactor(P)", "ASGD(P)",
)  # fmt: skip
_OF_SAMPLES = (
    "F.cross_entropy(out, y)", "F.cross_entropy(out, y, label_smoothing=0.1)", "F.nll_loss(out.log_softmax(1), y)",
    "F.mse_loss(out, F.one_hot(y, 10).float())", "F.multi_margin_loss(out.float(), y)",
)  # fmt: skip
_OF_PLACES = (
    "F.cross_entropy(out.flatten(0, 1), y.flatten())", "F.cross_entropy(out.transpose(1, 2), y)", "F.mse_loss(out, F.one_hot(y, 10).float())",
    "F.binary_cross_entropy_with_logits(out, F.one_hot(y, 10).float())", "-out.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean()",
    "F.kl_div(out.log_softmax(-1), F.one_hot(y, 10).float(), reduction='batchmean')", "out.logsumexp(-1).mean()",
)  # fmt: skip
_CASTS = {
    "float32": "",
    "float16": 'torch.autocast("cuda", dtype=torch.float16)',
    "bfloat16": 'torch.autocast("cuda", dtype=torch.bfloat16)',
}


def program(seed: int) -> str:
    """The cell of a seed."""
    r = random.Random(seed)
    of_images, batch = r.random() < 0.4, r.choice((1, 3, 8, 16, 32))
    width = r.choice((8, 16, 32, 40) if of_images else (32, 48, 64, 96, 128))
    model, x, y = _images(r, width, batch) if of_images else _sequences(r, width, batch)
    order = ".to(memory_format=torch.channels_last)" if of_images and r.random() < 0.4 else ""
    precision, whole = r.choice(tuple(_CASTS)), r.random() < 0.15
    dtype = ".bfloat16()" if whole else ""
    of_input = dtype if "randn" in x else ""
    lines = [HEAD, f"model = {model}.cuda(){dtype}{order}"]
    if r.random() < 0.15:
        lines.append(f"for p in list(model.parameters())[:{r.randint(1, 4)}]: p.requires_grad_(False)")
    lines.append("P = [p for p in model.parameters() if p.requires_grad]")
    lines.append(f"optimizer = torch.optim.{r.choice(_OPTIMIZERS)}")
    made = f"{x}{of_input}{order}, {y}"
    if fixed := r.random() < 0.4:
        lines.append(f"X, Y = {made}")
    accumulated = r.choice((1, 1, 1, 2))
    step = ["optimizer.step()", f"optimizer.zero_grad({r.choice(('', 'set_to_none=False'))})"]
    if r.random() < 0.25:
        step.insert(0, r.choice(("nn.utils.clip_grad_norm_(P, 1.0)", "nn.utils.clip_grad_value_(P, 1.0)")))
    cast = _CASTS[precision] if not whole else ""
    loss = r.choice(_OF_SAMPLES if of_images else _OF_PLACES)
    forward = [f"out = model(x){'.float()' if whole or r.random() < 0.3 else ''}", f"loss = {loss}"]
    body = [f"x, y = {'X, Y' if fixed else made}"]
    body += [f"with {cast}:", *(f"    {line}" for line in forward)] if cast else forward
    body.append("loss.backward()")
    body += [f"if i % {accumulated} == {accumulated - 1}:", *(f"    {line}" for line in step)]
    lines += [f"for i in range({3 * accumulated}):", *(f"    {line}" for line in body)]
    if r.random() < 0.3:
        lines += [
            "model.eval()",
            f"with torch.{r.choice(('no_grad', 'inference_mode'))}():",
            f"    out = model({x}{of_input}{order})",
        ]
    return "\n".join(lines) + "\n"


def _images(r: random.Random, width: int, batch: int) -> tuple[str, str, str]:
    layers = [
        f"nn.Conv2d(3, {width}, {r.choice((3, 7))}, padding=1)",
        *(r.choice(IMAGES) for _ in range(r.randint(2, 8))),
    ]
    layers += [
        r.choice(("nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveMaxPool2d(1)")),
        "nn.Flatten()",
        f"nn.Linear({width}, 10)",
    ]
    side = r.choice((16, 24, 33, 48))
    model = f"(lambda C: nn.Sequential({', '.join(layers)}))({width})"
    return model, f"torch.randn({batch}, 3, {side}, {side}).cuda()", f"torch.randint(0, 10, ({batch},)).cuda()"


def _sequences(r: random.Random, width: int, batch: int) -> tuple[str, str, str]:
    length, words = r.choice((7, 16, 32, 50, 64)), r.random() < 0.3
    layers = [
        *([f"nn.Embedding(1000, {width})"] if words else ()),
        *(r.choice(SEQUENCES) for _ in range(r.randint(2, 8))),
    ]
    model = f"(lambda D: nn.Sequential({', '.join([*layers, 'nn.Linear(D, 10)'])}))({width})"
    x = f"torch.randint(0, 1000, ({batch}, {length}))" if words else f"torch.randn({batch}, {length}, {width})"
    return model, f"{x}.cuda()", f"torch.randint(0, 10, ({batch}, {length})).cuda()"

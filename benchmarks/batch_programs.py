"""Training and inference cells whose first line is ``batch_size = …``: what the answers about batch sizes are held against.

`PROGRAMS` maps a name to a `Program`; models and batches are made on the card: where no kernel runs, that costs no time.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from benchmarks.gpt import BY_HAND, SDPA, gpt

#: Optimizer steps (or passes) of every cell.
STEPS = 6


class Program(NamedTuple):
    """A notebook cell, the batch size that stands in it, and allocator settings that it is run under."""

    text: str
    batch: int
    conf: str = ""

    def at(self, batch: int, steps: int = STEPS) -> str:
        """The cell with another batch size."""
        return f"batch_size = {batch}\nsteps = {steps}\n{self.text}"


_HEAD = """
import copy, math, torch, torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
"""
_SUPERVISED = """
with torch.device("cuda"):
INDENTED
model.train()
optimizer = torch.optim.OPTIMIZER
def batch():
    return BATCH
def loss_of(out, y):
    return F.cross_entropy(out, y)
LOOP
"""
_FP32 = """
for step in range(steps):
    x, y = batch()
    optimizer.zero_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
"""
_FP16 = """
scaler = torch.amp.GradScaler("cuda")
for step in range(steps):
    x, y = batch()
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = loss_of(model(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
"""
_BF16 = """
for step in range(steps):
    x, y = batch()
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
"""
_KEPT_GRADIENTS = """
for step in range(steps):
    x, y = batch()
    optimizer.zero_grad(set_to_none=False)
    loss = loss_of(model(x), y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
"""
_ACCUMULATED = """
for step in range(steps):
    optimizer.zero_grad()
    for _ in range(4):
        x, y = batch()
        loss = loss_of(model(x), y) / 4
        loss.backward()
    optimizer.step()
"""
_AVERAGED = """
average = torch.optim.swa_utils.AveragedModel(model)
for step in range(steps):
    x, y = batch()
    optimizer.zero_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
    average.update_parameters(model)
"""
_INFERENCE = """
model.eval()
kept = []
with torch.no_grad():
    for step in range(4 * steps):
        x, y = batch()
        kept.append(model(x).softmax(-1))
"""
_SGD = "SGD(model.parameters(), 0.1, momentum=0.9)"
_ADAM, _ADAMW = "Adam(model.parameters())", "AdamW(model.parameters())"
_ENDING = """
for x, y in ((torch.randn(n, 3, 224, 224, device="cuda"), torch.zeros(n, dtype=torch.long, device="cuda"))
             for n in [batch_size] * (steps - 1) + [max(1, batch_size // 3)] + [batch_size]):
    optimizer.zero_grad()
    loss = loss_of(model(x), y)
    loss.backward()
    optimizer.step()
"""


def _program(model: str, optimizer: str, loop: str, batch: str, at: int, conf: str = "") -> Program:
    text = _SUPERVISED.replace("INDENTED", textwrap.indent(model, "    "))
    text = text.replace("OPTIMIZER", optimizer).replace("BATCH", batch)
    return Program(_HEAD + text.replace("LOOP", loop), at, conf)


def _images(name: str, optimizer: str, loop: str = _FP32, at: int = 16, side: int = 224, conf: str = "") -> Program:
    batch = f"torch.randn(batch_size, 3, {side}, {side}, device='cuda'), torch.zeros(batch_size, dtype=torch.long, device='cuda')"
    return _program(f"model = torchvision.models.{name}(weights=None)", optimizer, loop, batch, at, conf)


_WORDS = "torch.zeros(batch_size, 256, dtype=torch.long, device='cuda'), torch.zeros(batch_size * 256, dtype=torch.long, device='cuda')"


def _gpt(
    optimizer: str, loop: str = _FP32, with_: str = "", attention: str = SDPA, run: str = "block(x)", after: str = ""
) -> Program:
    model = f"{gpt(attention, run)}model = GPT({with_})\n{after}"
    return _program(model, optimizer, loop.replace("model(x)", "model(x).flatten(0, 1)"), _WORDS, 4)


_CHECKPOINTED = "checkpoint(block, x, use_reentrant=False)"
_LORA = """
model.requires_grad_(False)
class Adapter(nn.Module):
    def __init__(self, layer, rank=8):
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))
for block in model.blocks:
    block.qkv, block.up = Adapter(block.qkv), Adapter(block.up)
"""
_UNET = """
def double(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(True), nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(True))
class UNet(nn.Module):
    def __init__(self, widths=(32, 64, 128, 256)):
        super().__init__()
        self.down = nn.ModuleList(double(a, b) for a, b in zip((3, *widths), widths))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(list(zip(widths, widths[1:]))))
        self.join = nn.ModuleList(double(2 * a, a) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], 2, 1)
    def forward(self, x):
        kept = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)
model = UNet()
"""
_GAN = (
    _HEAD
    + """
def up(a, b, *how):
    return nn.ConvTranspose2d(a, b, 4, *how, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)
def down(a, b):
    return nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)
g = nn.Sequential(*up(100, 512, 1, 0), *up(512, 256, 2, 1), *up(256, 128, 2, 1), *up(128, 64, 2, 1), nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh()).cuda()
d = nn.Sequential(*down(3, 64), *down(64, 128), *down(128, 256), *down(256, 512), nn.Conv2d(512, 1, 4), nn.Flatten(0)).cuda()
of_g, of_d = torch.optim.Adam(g.parameters()), torch.optim.Adam(d.parameters())
judge = F.binary_cross_entropy_with_logits
for step in range(steps):
    real, noise = torch.randn(batch_size, 3, 64, 64, device="cuda"), torch.randn(batch_size, 100, 1, 1, device="cuda")
    of_d.zero_grad()
    fake = g(noise)
    ones = torch.ones(batch_size, device="cuda")
    (judge(d(real), ones) + judge(d(fake.detach()), torch.zeros_like(ones))).backward()
    of_d.step()
    of_g.zero_grad()
    judge(d(fake), ones).backward()
    of_g.step()
"""
)
_VIDEO = (
    "torch.randn(batch_size, 3, 8, 112, 112, device='cuda'), torch.zeros(batch_size, dtype=torch.long, device='cuda')"
)
_PIXELS = "torch.randn(batch_size, 3, 256, 256, device='cuda'), torch.zeros(batch_size, 256, 256, dtype=torch.long, device='cuda')"
_MLP = "model = nn.Sequential(nn.Linear(1024, 8192), nn.ReLU(), nn.Linear(8192, 8192), nn.ReLU(), nn.Linear(8192, 10))"
_VECTORS = "torch.randn(batch_size, 1024, device='cuda'), torch.zeros(batch_size, dtype=torch.long, device='cuda')"
_FROM_A_SET = "data[(rows := torch.arange(batch_size, device='cuda') % len(data))], labels[rows]"
_SET = """
data, labels = torch.randn(2000, 3, 64, 64, device="cuda"), torch.zeros(2000, dtype=torch.long, device="cuda")
model = torchvision.models.resnet18(weights=None)
"""

PROGRAMS: dict[str, Program] = {
    "resnet18 SGD": _images("resnet18", _SGD),
    "resnet18 SGD, last batch smaller": _images("resnet18", _SGD, _ENDING),
    "resnet18 AdamW, gradients zeroed and clipped": _images("resnet18", _ADAMW, _KEPT_GRADIENTS),
    "resnet18 from a data set on the card": _program(_SET, _SGD, _FP32, _FROM_A_SET, 16),
    "resnet50 AdamW fp16": _images("resnet50", _ADAMW, _FP16, 8),
    "resnet50 Adam": _images("resnet50", _ADAM, at=8),
    "vgg16 SGD": _images("vgg16", _SGD, at=4),
    "alexnet Adam": _images("alexnet", _ADAM),
    "mobilenet_v3_large RMSprop": _images("mobilenet_v3_large", "RMSprop(model.parameters(), momentum=0.9)"),
    "efficientnet_b0 AdamW bf16": _images("efficientnet_b0", _ADAMW, _BF16, 8),
    "convnext_tiny AdamW": _images("convnext_tiny", _ADAMW, at=4),
    "vit_b_16 Adam": _images("vit_b_16", _ADAM, at=4),
    "vit_b_16 AdamW bf16": _images("vit_b_16", _ADAMW, _BF16, 4),
    "swin_t Adam fp16": _images("swin_t", _ADAM, _FP16, 4),
    "densenet121 Nesterov": _images("densenet121", "SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)", at=8),
    "shufflenet Adagrad": _images("shufflenet_v2_x1_0", "Adagrad(model.parameters())"),
    "fcn_resnet50 AdamW": _program(
        "model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)",
        _ADAMW, _FP32.replace("model(x)", "model(x)['out']"), _PIXELS, 4,
    ),
    "r3d_18 SGD": _program("model = torchvision.models.video.r3d_18(weights=None)", _SGD, _FP32, _VIDEO, 2),
    "unet Adam": _program(_UNET, _ADAM, _FP32, _PIXELS, 4),
    "gan, two Adams": Program(_GAN, 32),
    "mlp AdamW": _program(_MLP, _ADAMW, _FP32, _VECTORS, 256),
    "mlp Adadelta, averaged": _program(_MLP, "Adadelta(model.parameters())", _AVERAGED, _VECTORS, 256),
    "gpt AdamW": _gpt(_ADAMW),
    "gpt AdamW bf16": _gpt(_ADAMW, _BF16),
    "gpt AdamW bf16 weights": _gpt(_ADAMW, after="model = model.bfloat16()\n"),
    "gpt AdamW, attention by hand": _gpt(_ADAMW, attention=BY_HAND),
    "gpt AdamW, checkpointed": _gpt(_ADAMW, run=_CHECKPOINTED),
    "gpt AdamW bf16, checkpointed": _gpt(_ADAMW, _BF16, run=_CHECKPOINTED),
    "gpt AdamW, accumulated": _gpt(_ADAMW, _ACCUMULATED),
    "gpt wide, Adam fused": _gpt("Adam(model.parameters(), fused=True)", with_="width=1024, layers=4"),
    "gpt wide, Adam in a loop": _gpt("Adam(model.parameters(), foreach=False)", with_="width=1024, layers=4"),
    "gpt low-rank AdamW": _gpt("AdamW([p for p in model.parameters() if p.requires_grad])", after=_LORA),
    "resnet50 inference": _images("resnet50", _SGD, _INFERENCE, 16),
    "resnet50 SGD, expandable segments": _images("resnet50", _SGD, at=8, conf="expandable_segments:True"),
    "resnet50 SGD, max_split_size_mb:128": _images("resnet50", _SGD, at=8, conf="max_split_size_mb:128"),
    "gpt AdamW, max_split_size_mb:64": _gpt(_ADAMW)._replace(conf="max_split_size_mb:64"),
}  # fmt: skip

"""Training programs in plain torch and torchvision, to be estimated, and to be measured on a GPU, by the same code.

A `Case` says which program with which batch size, optimizer and precision; `program(case)` is the text of a notebook cell
that builds and trains it, so that an estimate, a measurement and a script run the very same lines.

    >>> for case in cases(): print(case.name)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 3


class Case(NamedTuple):
    """One program; its name is the key of stored results."""

    family: str
    batch: int
    optimizer: str  #: ``sgd``, ``adam`` or ``adamw``
    precision: str  #: ``fp32`` or ``amp``
    size: int = 0  #: pixels of a side, or length of a text; 0: what is usual for the family

    @property
    def name(self) -> str:
        return f"{self.family}-b{self.batch}-{self.optimizer}-{self.precision}"


Step = Callable[[], Any]
Builder = Callable[[Case, str], Step]
FAMILIES: dict[str, tuple[Builder, tuple[int, int]]] = {}


def cases(families: tuple[str, ...] = ()) -> Iterator[Case]:
    """Every family with every optimizer and precision, at two batch sizes."""
    for family in families or tuple(FAMILIES):
        for batch, optimizer, precision in itertools.product(
            FAMILIES[family][1], ("sgd", "adam", "adamw"), ("fp32", "amp")
        ):
            yield Case(family, batch, optimizer, precision)


def train(case: Case, device: str = "cuda", steps: int = STEPS) -> None:
    """Build the program of a case on ``device`` and run some steps of it."""
    torch.manual_seed(0)
    step = FAMILIES[case.family][0](case, device)
    for _ in range(steps):
        step()


def program(case: Case, device: str = "cuda", steps: int = STEPS) -> str:
    """The notebook cell of a case."""
    return f"from benchmarks.workloads import Case, train\ntrain({case!r}, {device!r}, {steps})\n"


_HALF = {"cuda": torch.float16, "cpu": torch.bfloat16}  # a CPU has no fast kernels for the former


# -- what every program shares -------------------------------------------------------------------------------------------


def _optimizer(case: Case, parameters: Any) -> torch.optim.Optimizer:
    parameters = [p for p in parameters if p.requires_grad]
    if case.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    return (torch.optim.Adam if case.optimizer == "adam" else torch.optim.AdamW)(parameters, lr=1e-4)


def _supervised(
    case: Case, device: str, model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], loss: Callable[..., Tensor]
) -> Step:
    """Forward, loss, backward and step; with AMP the loop of PyTorch's own recipe, with a gradient scaler."""
    model = model.to(device).train()
    optimizer, amp, kind = _optimizer(case, model.parameters()), case.precision == "amp", torch.device(device).type
    scaler = torch.amp.GradScaler(kind, enabled=amp)

    def step() -> None:
        inputs, targets = (t.to(device) for t in batch())
        optimizer.zero_grad()
        with torch.autocast(kind, dtype=_HALF[kind], enabled=amp):
            value = loss(model(inputs), targets)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _family(name: str, batches: tuple[int, int]) -> Callable[[Builder], Builder]:
    def register(builder: Builder) -> Builder:
        FAMILIES[name] = (builder, batches)
        return builder

    return register


# -- torchvision -----------------------------------------------------------------------------------------------------------


def _images(name: str, batches: tuple[int, int], size: int = 224) -> None:
    def build(case: Case, device: str) -> Step:
        model = getattr(torchvision.models, name)(weights=None)

        def batch() -> tuple[Tensor, Tensor]:
            side = case.size or size
            return torch.randn(case.batch, 3, side, side), torch.randint(0, 1000, (case.batch,))

        return _supervised(case, device, model, batch, F.cross_entropy)

    FAMILIES[name] = (build, batches)


for _name, _batches in (
    ("resnet18", (32, 128)), ("resnet50", (16, 64)), ("vgg16", (8, 32)), ("mobilenet_v3_large", (32, 128)),
    ("efficientnet_b0", (16, 64)), ("convnext_tiny", (16, 64)), ("vit_b_16", (16, 64)), ("swin_t", (16, 64)),
):  # fmt: skip
    _images(_name, _batches)


@_family("fcn_resnet50", (4, 16))
def _segmentation(case: Case, device: str) -> Step:
    model = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)

    def batch() -> tuple[Tensor, Tensor]:
        side = case.size or 256
        return torch.randn(case.batch, 3, side, side), torch.randint(0, 21, (case.batch, side, side))

    return _supervised(case, device, model, batch, lambda out, target: F.cross_entropy(out["out"], target))


# -- text ------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class Transformer(nn.Module):
    """GPT-like (causal, tied head) or BERT-like."""

    def __init__(self, causal: bool, words: int = 20_000, width: int = 512, layers: int = 6, length: int = 256) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, 8, causal) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _tokens(case: Case) -> Callable[[], tuple[Tensor, Tensor]]:
    shape = case.batch, case.size or 256
    return lambda: (torch.randint(0, 20_000, shape), torch.randint(0, 20_000, shape))


def _token_loss(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


@_family("gpt", (4, 16))
def _gpt(case: Case, device: str) -> Step:
    return _supervised(case, device, Transformer(causal=True), _tokens(case), _token_loss)


@_family("bert", (4, 16))
def _bert(case: Case, device: str) -> Step:
    return _supervised(case, device, Transformer(causal=False), _tokens(case), _token_loss)


class Adapter(nn.Module):
    """A frozen linear layer with a low-rank update that is trained."""

    def __init__(self, layer: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@_family("lora", (4, 16))
def _lora(case: Case, device: str) -> Step:
    model = Transformer(causal=True).requires_grad_(False)
    for block in model.blocks:
        block.attention.qkv = Adapter(block.attention.qkv)
        block.feed[0] = Adapter(block.feed[0])
    return _supervised(case, device, model, _tokens(case), _token_loss)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20_000, 256)
        self.lstm = nn.LSTM(256, 512, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)
        self.head = nn.Linear(1024, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.words(tokens))[0])


@_family("lstm", (16, 64))
def _lstm(case: Case, device: str) -> Step:
    def batch() -> tuple[Tensor, Tensor]:
        shape = case.batch, case.size or 128
        return torch.randint(0, 20_000, shape), torch.randint(0, 50, shape)

    return _supervised(case, device, Tagger(), batch, _token_loss)


# -- images in, images out -------------------------------------------------------------------------------------------------


def _double(before: int, after: int) -> nn.Sequential:
    def layer(a: int, b: int) -> tuple[nn.Module, ...]:
        return nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)

    return nn.Sequential(*layer(before, after), *layer(after, after))


class UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(a, b) for a, b in itertools.pairwise((3, *widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(list(itertools.pairwise(widths))))
        self.join = nn.ModuleList(_double(2 * a, a) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)


@_family("unet", (4, 16))
def _unet(case: Case, device: str) -> Step:
    def batch() -> tuple[Tensor, Tensor]:
        side = case.size or 256
        return torch.randn(case.batch, 3, side, side), torch.rand(case.batch, 1, side, side)

    return _supervised(case, device, UNet(), batch, F.binary_cross_entropy_with_logits)


def _generator(noise: int = 100, width: int = 64) -> nn.Sequential:
    sizes = (8 * width, 4 * width, 2 * width, width)
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(noise, sizes[0], 4, 1, 0, bias=False),
        nn.BatchNorm2d(sizes[0]),
        nn.ReLU(True),
    ]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(sizes[-1], 3, 4, 2, 1, bias=False), nn.Tanh())


def _discriminator(width: int = 64) -> nn.Sequential:
    sizes = (width, 2 * width, 4 * width, 8 * width)
    layers: list[nn.Module] = [nn.Conv2d(3, sizes[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, True)]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 4, 1, 0, bias=False), nn.Flatten(0))


@_family("gan", (32, 128))
def _gan(case: Case, device: str) -> Step:
    """DCGAN: two models, two optimizers, one scaler."""
    generator, discriminator = _generator().to(device), _discriminator().to(device)
    of_g, of_d = _optimizer(case, generator.parameters()), _optimizer(case, discriminator.parameters())
    kind, amp = torch.device(device).type, case.precision == "amp"
    scaler, judge = torch.amp.GradScaler(kind, enabled=amp), F.binary_cross_entropy_with_logits

    def step() -> None:
        real = torch.randn(case.batch, 3, 64, 64).to(device)
        noise = torch.randn(case.batch, 100, 1, 1, device=device)
        ones = torch.ones(case.batch, device=device)
        of_d.zero_grad()
        with torch.autocast(kind, dtype=_HALF[kind], enabled=amp):
            fake = generator(noise)
            loss = judge(discriminator(real), ones) + judge(discriminator(fake.detach()), torch.zeros_like(ones))
        scaler.scale(loss).backward()
        scaler.step(of_d)
        of_g.zero_grad()
        with torch.autocast(kind, dtype=_HALF[kind], enabled=amp):
            loss = judge(discriminator(fake), ones)
        scaler.scale(loss).backward()
        scaler.step(of_g)
        scaler.update()

    return step

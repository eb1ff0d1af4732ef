"""The cells that are measured: a function that trains, and the variables that a notebook would hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn


class Cell(NamedTuple):
    """``step`` is done ``steps`` times; ``namespace`` is what the notebook holds while it is."""

    step: Callable[[], None]
    steps: int
    namespace: dict[str, Any]

    def run(self) -> None:
        for _ in range(self.steps):
            self.step()


class SimpleCNN(nn.Module):
    """The network of PyTorch's CIFAR-10 tutorial: 62,006 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv1(x).relu())
        x = self.pool(self.conv2(x).relu())
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


class GPT(nn.Module):
    """Six blocks of causal attention, 10.9 million parameters."""

    def __init__(self, width: int = 384, depth: int = 6, words: int = 256, length: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(width, 6, 4 * width, batch_first=True, norm_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, words)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.words(ids) + self.places(torch.arange(length))
        return self.head(self.blocks(x, mask=mask, is_causal=True)).flatten(0, 1)


def _training(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Cell:
    optimizer, criterion = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()

    return Cell(step, steps, {"model": model, "optimizer": optimizer, "criterion": criterion, "x": x, "y": y})


def _images(model: Callable[[], nn.Module], batch: int, side: int) -> Callable[[int], Cell]:
    return lambda steps: _training(model(), torch.randn(batch, 3, side, side), torch.arange(batch) % 10, steps)


def _gpt(steps: int) -> Cell:
    ids = torch.randint(0, 256, (4, 128))
    return _training(GPT(), ids, ids.flatten(), steps)


def _inference(steps: int) -> Cell:
    model, x = torchvision.models.resnet18().eval(), torch.randn(8, 3, 64, 64)

    def step() -> None:
        with torch.no_grad():
            model(x)

    return Cell(step, steps, {"model": model, "x": x})


CELLS: dict[str, Callable[[int], Cell]] = {
    "SimpleCNN, batch 64": _images(SimpleCNN, 64, 32),
    "ResNet-18, batch 8, 64×64": _images(torchvision.models.resnet18, 8, 64),
    "ResNet-50, batch 4, 64×64": _images(torchvision.models.resnet50, 4, 64),
    "ViT-B/16, batch 1, 224×224": _images(torchvision.models.vit_b_16, 1, 224),
    "GPT-like, batch 4×128": _gpt,
    "ResNet-18 inference": _inference,
}


def make(name: str, steps: int) -> Cell:
    """A cell with its model initialised alike each time."""
    torch.manual_seed(0)
    return CELLS[name](steps)

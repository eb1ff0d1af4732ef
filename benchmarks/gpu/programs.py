"""The programs that are measured on a card: the estimate battery's families, and ways of training beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.workloads import FAMILIES, STEPS, Case, Transformer, train

WORDS = 20_000
_SMALL_SIZE = {"vit_b_16": 224}  # pixels, where 64 will not do
_SMALL_TEXT = ("gpt", "bert", "lora", "lstm")


class Program(NamedTuple):
    """One program; its name is the key of stored results."""

    name: str
    run: Callable[[str], object]  #: takes the device
    trains: bool = True
    regular: bool = True  #: one forward, one backward and one optimizer step after the other


def of_case(case: Case) -> Program:
    return Program(case.name, partial(train, case), regular=case.family != "gan")


def every(small: bool) -> list[Program]:
    """All programs, those that differ most from each other first; ``small``: what a CPU runs in seconds."""
    first, second = ([of_case(c) for c in _cases(i, small)] for i in (0, 1))
    others = [Program(name, partial(run, small), **how) for name, (run, how) in OTHERS.items()]
    return [*first, *others, *second]


def text_of(name: str, small: bool) -> str:
    """The notebook cell that runs a program on the card."""
    return f"from benchmarks.gpu import programs\nprograms.named({name!r}, {small}).run('cuda')\n"


def named(name: str, small: bool) -> Program:
    return next(p for p in every(small) if p.name == name)


def _cases(i: int, small: bool) -> list[Case]:
    optimizer, precision = ("adam", "adamw")[i], ("fp32", "amp")[i]
    if not small:
        return [Case(family, batches[i], optimizer, precision) for family, (_, batches) in FAMILIES.items()]
    sizes = {f: _SMALL_SIZE.get(f, 32 if f in _SMALL_TEXT else 64) for f in FAMILIES}
    heavy = {"vgg16": "sgd", "vit_b_16": "sgd"}  # 138 and 86 million parameters
    return [Case(f, 2, heavy.get(f, optimizer), precision, sizes[f]) for f in FAMILIES]


# -- ways of training ----------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Callable[[bool, str], object], dict[str, Any]]] = {}


def _other(name: str, **how: Any) -> Callable[[Callable[[bool, str], object]], Callable[[bool, str], object]]:
    def register(run: Callable[[bool, str], object]) -> Callable[[bool, str], object]:
        OTHERS[name] = (run, how)
        return run

    return register


def _text(small: bool, device: str) -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    shape = (2, 32) if small else (8, 256)
    model = Transformer(causal=True, layers=2 if small else 6).to(device)
    return model, lambda: (
        torch.randint(0, WORDS, shape).to(device),
        torch.randint(0, WORDS, shape).to(device),
    )


def _image(small: bool, device: str) -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    batch, side = (2, 64) if small else (32, 224)
    model = torchvision.models.resnet18(weights=None).to(device)
    return model, lambda: (
        torch.randn(batch, 3, side, side).to(device),
        torch.randint(0, 1000, (batch,)).to(device),
    )


def _loss(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, -2), target.flatten())


def _steps(
    model: nn.Module, batch: Callable[[], tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer, **zero: Any
) -> None:
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad(**zero)
        _loss(model(x), y).backward()
        optimizer.step()


class _Checkpointed(nn.Module):
    """A block whose forward is run again in the backward."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.block, x, use_reentrant=False)


@_other("gpt-checkpointed")
def _checkpointed(small: bool, device: str) -> None:
    model, batch = _text(small, device)
    model.blocks = nn.ModuleList(_Checkpointed(b) for b in model.blocks)  # type: ignore[union-attr]
    _steps(model, batch, torch.optim.AdamW(model.parameters(), lr=1e-4))


@_other("gpt-bfloat16")
def _bfloat16(small: bool, device: str) -> None:
    model, batch = _text(small, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            loss = _loss(model(x), y)
        loss.backward()
        optimizer.step()


@_other("gpt-half-precision-weights")
def _half(small: bool, device: str) -> None:
    model, batch = _text(small, device)
    _steps(model.to(torch.bfloat16), batch, torch.optim.AdamW(model.parameters(), lr=1e-4))


@_other("resnet18-accumulated", regular=False)
def _accumulated(small: bool, device: str) -> None:
    model, batch = _image(small, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in range(3):
            x, y = batch()
            (_loss(model(x), y) / 3).backward()
        optimizer.step()


@_other("resnet18-fine-tuned")
def _fine_tuned(small: bool, device: str) -> None:
    model, batch = _image(small, device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("layer4", "fc")))
    _steps(model, batch, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3))


@_other("resnet18-inference", trains=False)
def _inference(small: bool, device: str) -> list[Tensor]:
    model, batch = _image(small, device)
    model.eval()
    with torch.no_grad():
        return [model(batch()[0]) for _ in range(STEPS)]


@_other("gpt-inference", trains=False)
def _text_inference(small: bool, device: str) -> list[Tensor]:
    model, batch = _text(small, device)
    model.eval()
    with torch.inference_mode(), torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        return [model(batch()[0]).argmax(-1) for _ in range(STEPS)]


def _optimized(name: str, make: Callable[[Any], torch.optim.Optimizer], **zero: Any) -> None:
    @_other(f"resnet18-{name}")
    def run(small: bool, device: str) -> None:
        model, batch = _image(small, device)
        _steps(model, batch, make(model.parameters()), **zero)


_optimized("sgd-plain", partial(torch.optim.SGD, lr=0.01))
_optimized("rmsprop", partial(torch.optim.RMSprop, lr=1e-4, momentum=0.9))
_optimized("adagrad", partial(torch.optim.Adagrad, lr=1e-3))
_optimized("adamw-amsgrad", partial(torch.optim.AdamW, lr=1e-4, amsgrad=True))
_optimized("adam-loop", partial(torch.optim.Adam, lr=1e-4, foreach=False))
_optimized("adam-fused", partial(torch.optim.Adam, lr=1e-4, fused=True))
_optimized("adam-zeroed", partial(torch.optim.Adam, lr=1e-4), set_to_none=False)

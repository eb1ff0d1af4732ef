"""What measuring costs on a card: the same steps bare and measured, in turns, A B A B."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.rows import Row, note
from benchmarks.workloads import Transformer
from ipyvram.options import from_keywords
from ipyvram.run import Run

ROUNDS = 4
STEPS = 5
WORDS = 20_000

#: Name → options of the measured rounds; ``trace_steps`` beyond the steps: traced throughout.
WAYS: dict[str, dict[str, Any]] = {
    "as %%vram": {},
    "traced throughout": {"trace_steps": 1000},
    "sampler at 20 Hz": {"trace_steps": 1},
    "sampler at 200 Hz": {"trace_steps": 1, "interval": 5},
}


def checks(device: str, simulated: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """Programs by name; their data is on the card, so that nothing but training is timed."""
    image, text = ((2, 64), (2, 32)) if simulated else ((64, 224), (16, 256))

    def images(name: str, half: bool) -> Callable[[], Any]:
        batch, side = (2, 224) if simulated and name == "vit_b_16" else image
        model = getattr(torchvision.models, name)(weights=None).to(device)
        x, y = torch.randn(batch, 3, side, side, device=device), torch.randint(0, 1000, (batch,), device=device)
        return _step(model, x, y, half)

    def gpt() -> Callable[[], Any]:
        x, y = (torch.randint(0, WORDS, text, device=device) for _ in range(2))
        return _step(Transformer(causal=True).to(device), x, y, half=False)

    made: dict[str, Callable[[], Callable[[], Any]]] = {
        "resnet50": lambda: images("resnet50", half=False),
        "resnet50 amp": lambda: images("resnet50", half=True),
        "gpt": gpt,
        "vit_b_16 amp": lambda: images("vit_b_16", half=True),
    }
    found: dict[str, Callable[[], Iterator[Row]]] = {
        name: lambda name=name, make=make: of_program(name, make(), simulated)  # type: ignore[misc]
        for name, make in made.items()
    }
    return found | {"compiled": lambda: compiled(device, simulated)}


def _step(model: nn.Module, x: Tensor, y: Tensor, half: bool) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()

    return step


def of_program(name: str, step: Callable[[], Any], simulated: bool) -> Iterator[Row]:
    rounds, steps = (1, 2) if simulated else (ROUNDS, STEPS)
    for _ in range(2):
        step()
    for way, options in WAYS.items():
        # "sampler at": the traced step is run before the clock starts
        yield compare(f"{name}: {way}", step, options, rounds, steps, lead=1 if "sampler" in way else 0)


def compiled(device: str, simulated: bool) -> Iterator[Row]:
    """The compiler's own code under the history; it must stay compiled."""
    if simulated:
        yield note("overhead", "compiled", "left out: there is no compiler for a simulated card")
        return
    model = torch.compile(torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).to(device))
    optimizer, x = torch.optim.Adam(model.parameters()), torch.randn(512, 2048, device=device)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    try:
        for _ in range(3):
            step()
    except Exception as error:  # the compiler wants tools that a bare machine may lack
        yield note("overhead", "compiled", f"left out: nothing compiles here: {type(error).__name__}: {error}"[:200])
        return
    before = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    yield compare("compiled: as %%vram", step, {}, ROUNDS, STEPS * 4)
    graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
    yield Row("stays compiled", "compiled", graphs == before, f"{graphs - before} new graphs")


def compare(name: str, step: Callable[[], Any], options: dict[str, Any], rounds: int, steps: int, lead: int = 0) -> Row:
    """Rounds of bare and of measured steps in turns; medians of seconds a step."""
    bare, measured, ends = [], [], []
    for _ in range(rounds):
        bare.append(_seconds(step, steps))
        run = Run(from_keywords(None, **options))
        run.start()
        for _ in range(lead):
            step()
        measured.append(_seconds(step, steps))
        torch.cuda.synchronize()
        began = time.perf_counter()
        run.stop()
        ends.append(time.perf_counter() - began)
    a, b = statistics.median(bare), statistics.median(measured)
    text = (
        f"{b / a:.3f}× of {a * 1e3:.1f} ms a step; spread of bare {max(bare) / min(bare):.3f}×; stop {max(ends):.3f} s"
    )
    return note("overhead", name, text, bare_s=bare, measured_s=measured, stop_s=ends)


def _seconds(step: Callable[[], Any], steps: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps

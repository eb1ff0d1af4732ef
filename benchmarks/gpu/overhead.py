"""What measuring costs on a card: the same steps bare and measured, in turns, A B A B."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.rows import Row, note
from benchmarks.workloads import FAMILIES, Case
from ipyvram.options import from_keywords
from ipyvram.run import Run

CASES = (
    Case("resnet50", 64, "adam", "fp32"), Case("resnet50", 64, "adam", "amp"), Case("gpt", 16, "adam", "fp32"),
    Case("vit_b_16", 64, "adam", "amp"),
)  # fmt: skip
SMALL = (Case("unet", 2, "adam", "fp32"),)
ROUNDS = 4
STEPS = 5

#: Name → options of the measured rounds; ``trace_steps`` beyond the steps: traced throughout.
WAYS: dict[str, dict[str, Any]] = {
    "as %%vram": {},
    "traced throughout": {"trace_steps": 1000},
    "sampler at 20 Hz": {"trace_steps": 1},
    "sampler at 200 Hz": {"trace_steps": 1, "interval": 5},
}


def run(device: str, simulated: bool) -> Iterator[Row]:
    for case in SMALL if simulated else CASES:
        yield from of_case(case, device, simulated)
    yield from compiled(device, simulated)


def of_case(case: Case, device: str, simulated: bool) -> Iterator[Row]:
    step = FAMILIES[case.family][0](case, device)
    rounds, steps = (1, 2) if simulated else (ROUNDS, STEPS)
    for _ in range(2):
        step()
    for name, options in WAYS.items():
        # "sampler at": the traced step is run before the clock starts
        yield compare(f"{case.name}: {name}", step, options, rounds, steps, lead=1 if "sampler" in name else 0)


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

    for _ in range(3):
        step()
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

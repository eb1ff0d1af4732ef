"""A full card: the batch size that a sweep finds, and what is said when an allocation does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.gpu.measured import baseline, measure
from benchmarks.gpu.rows import Row, expect
from ipyvram.sweep.guard import memory_fraction
from ipyvram.units import MIB, format_bytes

MORE_STEPS = 10


def train(batch: int, device: str, steps: int = 100, width: int = 2048) -> None:
    """Memory that grows with the batch, and little computation."""
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(width, width), nn.GELU()))).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        x = torch.randn(batch, width, device=device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def sweep(device: str, simulated: bool) -> Iterator[Row]:
    """The size found runs on; the next one does not."""
    from ipyvram.sweep.comparing import compare_batches

    limit, multiple, width = (350 * MIB, 128, 512) if simulated else (4 << 30, 1024, 2048)
    held = baseline()
    found = compare_batches(
        lambda batch: train(batch, device, width=width), None, limit=f"{limit >> 20}MiB", multiple=multiple, steps=3
    )
    left = baseline()
    yield expect(
        "sweep: baseline", "after the trials", left - held <= MIB, f"{format_bytes(left - held)} more than before"
    )
    tried = ", ".join(f"{r.batch} {r.status}" for r in found.rows)
    if found.largest is None:
        yield expect("sweep: answer", "largest that fits", False, tried)
        return
    yield expect(
        "sweep: answer", "largest that fits", found.largest.status == "verified", f"{found.largest.batch} of {tried}"
    )
    yield _fits("the size found", found.largest.batch, True, device, limit, width)
    yield _fits("the next size", found.largest.beyond or found.largest.batch + multiple, False, device, limit, width)


def _fits(name: str, batch: int, fits: bool, device: str, limit: int, width: int) -> Row:
    baseline()
    with memory_fraction(limit):
        try:
            train(batch, device, steps=MORE_STEPS, width=width)
            ran = True
        except torch.OutOfMemoryError:
            ran = False
    baseline()
    return expect("sweep: " + ("runs" if fits else "fails"), f"{name}, {batch}", ran == fits, f"{MORE_STEPS} steps")


def out_of_memory(device: str, simulated: bool) -> Iterator[Row]:
    """A real out-of-memory: the report is there, its sums close, and the memory comes back."""
    held = baseline()
    fraction = 0.05 if simulated else 2e9 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(fraction)
    try:
        m = measure(lambda: train(1 << (15 if simulated else 17), device))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    report, text = m.report, f"{type(m.error).__name__}"
    yield expect("oom: raised", "measured cell", isinstance(m.error, torch.OutOfMemoryError), text)
    if m.error is not None:
        m.error.__traceback__ = None
    del m
    yield expect("oom: report", "measured cell", sum(report.peak.values()) == report.peak_bytes and bool(report.error))
    oom = report.oom
    closed = oom is not None and sum(oom.account.values()) == oom.allocated_bytes
    told = "" if oom is None else f"asked for {format_bytes(oom.requested_bytes)}, {len(oom.remedies)} ways out"
    yield expect("oom: explained", "measured cell", closed, told)
    left = baseline()
    yield expect("oom: baseline", "afterwards", left - held <= MIB, f"{format_bytes(left - held)} more than before")

"""Programs and settings that are unlike the rest: graphs, streams, the user's own history, other allocators, neighbours."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import battery
from benchmarks.gpu.measured import Measured, measure
from benchmarks.gpu.rows import Row, expect, note
from benchmarks.workloads import Case, train
from ipyvram.analysis import analyse
from ipyvram.options import from_keywords
from ipyvram.run import Run
from ipyvram.units import MIB, format_bytes

#: A process that has not used CUDA yet.
FIRST = "first cell"
#: What only a process of its own can show: name → environment.
ENVIRONMENTS = {
    FIRST: {},
    "expandable_segments": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    "max_split_size": {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"},
    "roundup_power2": {"PYTORCH_CUDA_ALLOC_CONF": "roundup_power2_divisions:4"},
    "cudaMallocAsync": {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
    "no caching": {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
}
_WITHOUT_HISTORY = ("cudaMallocAsync", "no caching")


def small(device: str, steps: int = 3) -> None:
    """Three layers and Adam."""
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        x = torch.randn(512, 1024, device=device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def closed(name: str, m: Measured) -> Iterator[Row]:
    yield from battery.sums(name, m)
    yield from battery.replayed(name, m.recording)


def checks(card: Any) -> dict[str, Callable[[], Iterator[Row]]]:
    """Everything that needs no process of its own."""
    return {
        "the user's own history": lambda: own_history(card.device),
        "two streams": lambda: streams(card),
        "a CUDA graph": lambda: graphs(card),
        "another process": lambda: neighbour(card),
        "an interrupted cell": lambda: interrupted(card.device),
        "measured twice": lambda: nothing_left_behind(card.device),
    }


def own_history(device: str) -> Iterator[Row]:
    # with stacks="all", torch's default, to read it may take minutes: torch looks up C++ symbols
    torch.cuda.memory._record_memory_history(stacks="python", max_entries=100_000)
    try:
        m = measure(lambda: small(device))
        on = bool(torch._C._cuda_isHistoryEnabled())
    finally:
        torch.cuda.memory._record_memory_history(None)
    yield from closed("the user's own history", m)
    said = any("already on" in n for n in m.report.measurement.notes)
    yield expect("left on, and said", "the user's own history", on and said)


def streams(card: Any) -> Iterator[Row]:
    def work() -> None:
        with card.side_stream():
            x = torch.zeros(8 * MIB, device=card.device)
        card.lend(x)
        y = x + 1
        del x
        small(card.device)
        del y

    m = measure(work)
    yield from closed("two streams", m)
    used = {int(s) for t in m.recording.traces for s in set(t.events.stream.tolist())}
    yield expect("streams", "two streams", len(used) >= 2, f"{len(used)} streams in the trace")


def graphs(card: Any) -> Iterator[Row]:
    layer = nn.Linear(1024, 1024).to(card.device).requires_grad_(False)
    x = torch.zeros(512, 1024, device=card.device)

    def work() -> None:
        replay = card.graph(lambda: layer(x).relu())
        for _ in range(3):
            replay()

    m = measure(work)
    yield from closed("a CUDA graph", m)
    said = [n for n in m.report.measurement.notes if "private pools" in n]
    yield expect("said", "a CUDA graph", bool(said), "; ".join(said))
    card._static = None


def neighbour(card: Any) -> Iterator[Row]:
    def work() -> None:
        small(card.device)
        time.sleep(0.3)

    alone = measure(work).report
    with card.neighbour(1 << 30) as count:
        beside = measure(work).report
    seen = beside.card.get("other_processes", 0) + beside.card.get("context", 0)
    before = alone.card.get("other_processes", 0) + alone.card.get("context", 0)
    text = f"{format_bytes(seen - before)} more beside a process that holds {format_bytes(count)}"
    yield expect("another process", "on the card", not alone.card or seen - before >= count, text)


def interrupted(device: str) -> Iterator[Row]:
    def work() -> None:
        threading.Timer(0.3, _thread.interrupt_main).start()
        until = time.monotonic() + 30
        while time.monotonic() < until:
            small(device, steps=1)

    # As in a kernel: a process that a shell started in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        m = measure(work)
    finally:
        signal.signal(signal.SIGINT, before)
    ended = isinstance(m.error, KeyboardInterrupt) and m.recording.error is not None and m.recording.error.interrupted
    yield expect("report", "an interrupted cell", ended and sum(m.report.peak.values()) == m.report.peak_bytes)
    yield _off("an interrupted cell")


def _off(name: str) -> Row:
    return expect("history off", name, not torch._C._cuda_isHistoryEnabled())


def nothing_left_behind(device: str) -> Iterator[Row]:
    """The counters that a user may watch are as they would be without us."""
    measure(lambda: small(device))
    retries = torch.cuda.memory_stats_as_nested_dict()["num_alloc_retries"]
    measure(lambda: small(device))
    again = torch.cuda.memory_stats_as_nested_dict()["num_alloc_retries"]
    yield expect("no retries", "measured twice", retries == again)
    yield _off("measured twice")


# -- in a process of their own -----------------------------------------------------------------------------------------


def environment(name: str, card: Any, script: Path, seconds: float, enough: float) -> Iterator[Row]:
    """The same checks in a child process with an environment of `ENVIRONMENTS`.

    Parameters
    ----------
    seconds, enough : float
        How long it may take, and how long that should be: with less it is left out, and does not fail.
    """
    command = [sys.executable, str(script), "--child", name, *card.environment()]
    try:
        done = subprocess.run(
            command, env=os.environ | ENVIRONMENTS[name], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        if seconds < enough:
            yield note("left out", name, f"not ended within the {seconds:.0f} s that were left")
        else:
            yield expect("ran", name, False, f"more than {seconds:.0f} s")
        return
    rows = [r for r in done.stdout.splitlines() if r.startswith('{"check"')]
    if done.returncode or not rows:
        yield expect("ran", name, False, (done.stderr.strip().splitlines() or ["no output"])[-1][:300])
    yield from (Row(**json.loads(r)) for r in rows)


def child(name: str, card: Any) -> Iterator[Row]:
    """What a child process checks."""
    if name == FIRST:
        yield from first_cell(card)
        return
    if name in _WITHOUT_HISTORY:
        m = measure(lambda: small(card.device))
        sources = {t.source for t in m.recording.traces}
        told = [n for n in m.report.measurement.notes if "history is unavailable" in n]
        yield expect("operators traced", name, sources == {"storages"} and m.error is None, str(sources))
        yield expect("said why", name, bool(told), "; ".join(told))
        accounts = {r.device: r for r in (m.report, *m.report.others)}
        devices = sorted({t.device for t in m.recording.traces}, key=lambda name: not name.startswith("cuda"))
        report = accounts[devices[0]]  # Adam counts its steps on the host
        yield expect("sums", name, sum(report.peak.values()) == report.peak_bytes > 0)
        share = report.peak["other"] / report.peak_bytes
        yield expect("other ≤ 1 %", name, share <= battery.OTHER, f"{share:.2%}")
        return
    cases = [Case("unet", 2, "adam", "fp32"), Case("gpt", 2, "adamw", "fp32")]
    for case in cases if card.simulated else [c._replace(batch=8) for c in cases]:
        m = measure(lambda case=case: train(case, card.device))
        yield from closed(f"{name}: {case.name}", m)
    peak = m.report.peak_reserved_bytes or 0
    yield note("reserved", name, f"{format_bytes(peak)} for {format_bytes(m.report.peak_bytes)} allocated")


def first_cell(card: Any) -> Iterator[Row]:
    """The cell that starts CUDA is traced from there on; until then a process may be forked that uses CUDA."""
    run = Run(from_keywords(None, trace_steps=1000))
    run.start()
    forked = card.simulated or _fork_may_use(card.device)
    yield expect("a fork may use CUDA", FIRST, forked)
    yield expect("not started by us", FIRST, not torch.cuda.is_initialized())
    card.begin()
    small(card.device)
    torch.cuda.synchronize()
    recording = run.stop()
    peaks = int(torch.cuda.max_memory_allocated()), int(torch.cuda.max_memory_reserved())
    yield from closed(FIRST, Measured(recording, analyse(recording), None, *peaks, {}, 0))
    yield _off(FIRST)


def _fork_may_use(device: str) -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.zeros(1, device=device)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

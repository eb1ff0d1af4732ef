"""Rows that are no pairs: loading, sampling, replaying, explaining a million events, what a report keeps. Each prints JSON.

``python -m benchmarks.alone ROW``
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.words import words

TRACES = Path(os.environ.get("IPYVRAM_TRACES") or Path(__file__).parents[2] / "shared" / "traces")


def timed(action: Callable[[], object], repeats: int = 5) -> dict[str, float]:
    """Median, lowest and highest seconds of wall clock, and the median of CPU."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"s": median(walls), "low_s": min(walls), "high_s": max(walls), "cpu_s": median(cpus)}


def load() -> dict[str, Any]:
    """``%load_ext ipyvram`` in a fresh process that has torch, pandas and IPython."""
    code = (
        "import torch, pandas, time\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "ip = InteractiveShell.instance()\n"
        "wall, cpu = time.perf_counter(), time.process_time()\n"
        "ip.run_line_magic('load_ext', 'ipyvram')\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    found = sorted(tuple(map(float, run.stdout.split()[-2:])) for run in runs)
    return {"s": median(w for w, _ in found), "cpu_s": median(c for _, c in found)}


def sampler(hz: int = 20, seconds: float = 10.0) -> dict[str, Any]:
    """Share of a core that the sampler's thread takes while the program sleeps, and while it computes."""
    import torch

    from ipyvram.probes import counters
    from ipyvram.probes.clock import Clock
    from ipyvram.sampler import Sampler, combined_reader

    def share(work: Callable[[], object]) -> float:
        found = Sampler(Clock(), combined_reader(None), counters.devices_in_use, 1 / hz)
        found.start()
        thread = found._thread
        assert thread is not None
        clock = time.pthread_getcpuclockid(thread.ident or threading.get_ident())
        begin, cpu = time.perf_counter(), time.clock_gettime(clock)
        while time.perf_counter() - begin < seconds:
            work()
        used = (time.clock_gettime(clock) - cpu) / (time.perf_counter() - begin)
        found.stop()
        return used

    torch.set_num_threads(1)
    a = torch.randn(256, 256)
    return {"hz": hz, "share_idle": share(lambda: time.sleep(0.01)), "share_computing": share(lambda: a @ a)}


def scale() -> dict[str, Any]:
    """Recordings of growing size: seconds to explain and to draw, memory for it, bytes of what is kept in the notebook.

    ``live`` is for each device. ``us_per_event`` falls until the events are what counts, and then stays: near linear.
    """
    from benchmarks.synthetic import recording
    from ipyvram.analysis import analyse
    from ipyvram.render.bundle import bundle

    rows = []
    for events, live, samples, devices in (
        (10_000, 1_000, 1_000, 1),
        (100_000, 10_000, 100_000, 1),
        (300_000, 10_000, 100_000, 1),
        (1_000_000, 10_000, 100_000, 1),
        (125_000, 1_250, 100_000, 8),
        (125_000, 10_000, 100_000, 8),
    ):
        made = recording(events, live, samples, devices, hours=10)
        report = analyse(made)
        explain, draw = timed(lambda r=made: analyse(r), 3), timed(lambda r=report: bundle(r), 3)
        sizes = {kind: len(json.dumps(data)) for kind, data in bundle(report).items()}
        total = sum(len(t.events) for t in made.traces)
        rows.append({"events": total, "live": live, "samples": samples, "devices": devices}
                    | {"analyse": explain, "us_per_event": 1e6 * explain["cpu_s"] / total, "render": draw}
                    | {"extra_peak_bytes": _peak_memory(lambda r=made: analyse(r)), "bytes": sizes})  # fmt: skip
    return {"rows": rows}


def _peak_memory(action: Callable[[], object]) -> int:
    """The most that Python and numpy held at once for it, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def rows_to_columns() -> dict[str, Any]:
    """From the tuples of a storage trace to arrays, a million of them."""
    from ipyvram.recording import Events

    rows = [(i % 2, i, 512, 0, i, 3, 5) for i in range(1_000_000)]
    return timed(lambda: Events.from_rows(rows), 3)


def report_memory() -> dict[str, Any]:
    """What one report keeps in memory: a cell with 10,000 live tensors and 100,000 events."""
    from benchmarks.synthetic import recording
    from ipyvram.analysis import analyse

    made = recording(100_000, 10_000, 100_000)
    analyse(made)
    gc.collect()
    tracemalloc.start()
    report = analyse(made)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"bytes": kept, "tensors": len(report.tensors_at_peak)}


def replay() -> dict[str, Any]:
    """Events of public allocator traces per second through the model, the largest first."""
    from ipyvram.caching_allocator import replay as follow
    from ipyvram.safe_pickle import load as read

    rows = {}
    for path in sorted(TRACES.glob("*.pickle.gz"), key=lambda p: -p.stat().st_size)[:4]:
        snapshot = read(path)
        events = sum(map(len, snapshot["device_traces"]))
        found = timed(lambda s=snapshot: follow(s), 3)
        rows[path.name] = found | {"events": events, "events_per_s": events / found["s"],
                                   "events_per_cpu_s": events / found["cpu_s"]}  # fmt: skip
    return {"rows": rows} if rows else {"error": "the public traces are not here"}


def estimate() -> dict[str, Any]:
    """Three steps of ResNet-50, batch 32 of 3×64×64, estimated for a card and run on this CPU."""
    import torch
    import torchvision

    import ipyvram

    torch.set_num_threads(1)

    def train(device: str = "cuda") -> None:
        model = torchvision.models.resnet50().to(device)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            x, y = torch.randn(32, 3, 64, 64).to(device), torch.arange(32).to(device) % 10
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    estimated = timed(lambda: ipyvram.estimate(train, card="24GiB"), 3)
    return {"estimate": estimated, "run": timed(lambda: train("cpu"), 1)}


def traced_steps() -> dict[str, Any]:
    """Where the time of three traced steps goes, in the cell of many small operators."""
    from benchmarks.parts import parts

    return parts("SimpleCNN, batch 64", 3, 25)


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "load": load,
    "sampler at 20 Hz": lambda: sampler(20),
    "sampler at 200 Hz": lambda: sampler(200),
    "rows to columns, 10⁶": rows_to_columns,
    "scale": scale,
    "report in memory": report_memory,
    "replay": replay,
    "estimate": estimate,
    "parts of 3 traced steps": traced_steps,
}

if __name__ == "__main__":
    (row,) = words(__doc__, row=ROWS)
    try:
        print(json.dumps(ROWS[row]()))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))

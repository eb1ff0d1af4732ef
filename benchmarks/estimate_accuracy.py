"""How good the estimate is: against real traces, against the CPU's storage trace, and stored for a GPU to be held against.

    python benchmarks/estimate_accuracy.py traces CHECKOUT     # a public program whose real traces are public too
    python benchmarks/estimate_accuracy.py battery [FAMILY …]  # predict every case of benchmarks/workloads.py
    python benchmarks/estimate_accuracy.py storages            # against the storage trace of the same programs on the CPU
    python benchmarks/estimate_accuracy.py speed               # ResNet-50, three steps, batch 16 to 256

Each prints a table; ``--out FILE`` writes it as JSON. ``traces`` wants a checkout of NiuHuangxiaozi/assignment2-systems (not
part of this project), einops and jaxtyping, and torch 2.6.0, with which the traces were made: decompositions change between
versions. The traces are looked for in ``$IPYVRAM_TRACES``, else in ``../shared/traces``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import gzip
import io
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ipyvram import cards  # noqa: E402
from ipyvram.analysis import analyse  # noqa: E402
from ipyvram.attribution import attribute  # noqa: E402
from ipyvram.caching_allocator import replay  # noqa: E402
from ipyvram.ledger import build  # noqa: E402
from ipyvram.marks import phase_spans  # noqa: E402
from ipyvram.options import Options  # noqa: E402
from ipyvram.recording import CATEGORIES, Cell, Recording  # noqa: E402
from ipyvram.report import Report  # noqa: E402
from ipyvram.simulated.estimation import Estimation  # noqa: E402
from ipyvram.units import MIB  # noqa: E402

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=_WHAT)
    parser.add_argument("names", nargs="*", help="a checkout, or families")
    parser.add_argument("--card", default=None, help="the card to predict for")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for row in _WHAT[options.what](options):
        print(_line(row), flush=True)
        rows.append(row)
    if options.out:
        table = {"torch": str(torch.__version__), "what": options.what, "rows": rows}
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    return "  ".join(_cell(key, value) for key, value in row.items() if not isinstance(value, (dict, list)))


def _cell(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{key.removesuffix('_bytes')} {'–' if value is None else f'{value / MIB:.3f} MiB'}"
    if key.endswith(("_error", "_match")):
        return f"{key} {'–' if value is None else f'{value:.3%}'}"
    return f"{key} {value:.2f}" if isinstance(value, float) else f"{value}"


def estimated(source: str, card: cards.Card, steps: int = 3) -> tuple[Recording, Report, Estimation]:
    """A program run for an estimate; what it prints is not shown."""
    namespace: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    code = compile(source, "<ipython-input-program>", "exec")
    estimation = Estimation(Options(trace_steps=steps), card, namespace, Cell(source, "<ipython-input-program>"))
    with contextlib.redirect_stdout(io.StringIO()):
        recording = estimation.run(lambda: exec(code, namespace), code=code)
    return recording, analyse(recording), estimation


# -- real traces of a public program -----------------------------------------------------------------------------------------

#: Trace → how its program was called: mode, context length, mixed precision.
_TRACES = {
    "niu_f_100": ("forward", 100, False),
    "niu_f_200": ("forward", 200, False),
    "niu_f_200_mixed": ("forward", 200, True),
    "niu_fb_100": ("training", 100, False),
    "niu_fb_200": ("training", 200, False),
}
_PROGRAM = """
import argparse, runpy
profile = runpy.run_path({file!r})["profile_memory"]
profile(argparse.Namespace(mode={mode!r}, context_length={length}, use_mixed_precision={amp}){mixed})
"""
_MIXED = ', torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16)'


def traces(options: argparse.Namespace) -> Iterator[Row]:
    """Allocated and reserved peaks, and the share of the real requests that were predicted in their order."""
    checkout = Path(options.names[0]).resolve()
    sys.path.insert(0, str(checkout))
    folder = Path(os.environ.get("IPYVRAM_TRACES", ROOT.parent / "shared" / "traces"))
    card = cards.find(options.card or "RTX 3090")
    for name, (mode, length, mixed) in _TRACES.items():
        with gzip.open(folder / f"{name}.pickle.gz") as file:
            snapshot = _BuiltinsOnly(file).load()
        script = "profile_mixprecision_memory.py" if mixed else "profile_memory.py"
        source = _PROGRAM.format(
            file=str(checkout / "cs336_systems" / "profile_memory" / script),
            mode=mode, length=length, amp=mixed, mixed=_MIXED if mixed else "",
        )  # fmt: skip
        started = time.perf_counter()
        _, report, estimation = estimated(source, card)
        real = replay(snapshot)
        asked = [e["size"] for e in snapshot["device_traces"][0] if e["action"] == "alloc"]
        predicted = [row.size for row in estimation.memory.rows if row.alloc]
        matcher = difflib.SequenceMatcher(None, asked, predicted, autojunk=False)
        yield {
            "case": name,
            "real_allocated_bytes": real.peak_allocated_bytes,
            "predicted_allocated_bytes": report.peak_bytes,
            "allocated_error": report.peak_bytes / real.peak_allocated_bytes - 1,
            "real_reserved_bytes": real.peak_reserved_bytes,
            "predicted_reserved_bytes": report.peak_reserved_bytes,
            "reserved_error": (report.peak_reserved_bytes or 0) / real.peak_reserved_bytes - 1,
            "requests": len(asked),
            "ordered_match": sum(b.size for b in matcher.get_matching_blocks()) / len(asked),
            "seconds": round(time.perf_counter() - started, 2),
        }


class _BuiltinsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a snapshot")


# -- the battery -------------------------------------------------------------------------------------------------------------


def battery(options: argparse.Namespace) -> Iterator[Row]:
    """Every case of `workloads`, predicted; ``measured_*`` waits for a GPU."""
    from benchmarks.workloads import cases, program

    card = cards.find(options.card or "A100 80GB")
    for case in cases(tuple(options.names)):
        started = time.perf_counter()
        _, report, _ = estimated(program(case), card)
        yield {
            "case": case.name,
            "card": card.name,
            "predicted_allocated_bytes": report.peak_bytes,
            "measured_allocated_bytes": None,
            "predicted_reserved_bytes": report.peak_reserved_bytes,
            "measured_reserved_bytes": None,
            "when": report.peak_when,
            "predicted": {name: count for name, count in report.peak.items() if count},
            "notes": list(report.measurement.notes),
            "seconds": round(time.perf_counter() - started, 2),
        }


# -- against the CPU's storage trace -----------------------------------------------------------------------------------------


def storages(options: argparse.Namespace) -> Iterator[Row]:
    """When the second step's forward ends, per category: requests of the estimate beside storages of a real run on the CPU."""
    from benchmarks.workloads import FAMILIES, Case, program
    from ipyvram.run import Run

    card = cards.find(options.card or "T4")
    for family in options.names or ("resnet18", "mobilenet_v3_large", "gpt", "bert", "lora", "unet", "gan"):
        case = Case(family, min(2, FAMILIES[family][1][0]), "adamw", "fp32")
        predicted, _, _ = estimated(program(case), card)
        run = Run(Options(trace_steps=3))
        run.start()
        exec(program(case, "cpu"), {"__name__": "__main__"})
        there, here = _after_forward(predicted, "cuda:0"), _after_forward(run.stop(), "cpu")
        names = [c for c in CATEGORIES if there[c] or here[c]]
        differing = {c: there[c] - here[c] for c in names if there[c] != here[c]}
        yield {
            "case": case.name,
            "predicted_bytes": sum(there.values()),
            "cpu_bytes": sum(here.values()),
            "without_workspaces_error": (sum(there.values()) - there["workspaces"]) / sum(here.values()) - 1,
            "differences": ", ".join(f"{c} {d / MIB:+.3f} MiB" for c, d in differing.items()) or "none",
            "predicted": {c: there[c] for c in names},
            "cpu": {c: here[c] for c in names},
        }


def _after_forward(recording: Recording, device: str) -> dict[str, int]:
    """Category → bytes asked for, when the second step's forward has ended."""
    trace = next(t for t in recording.traces if t.device == device)
    ledger = build(
        dataclasses.replace(trace, source="storages")
    )  # sizes as asked for, not as the allocator rounds them
    phases = [p for p in phase_spans(recording.marks, recording.stop_ns) if p.name == "backward" and p.step == 2]
    accounts = attribute(recording, ledger, device).accounts(ledger)
    instant = int(np.searchsorted(ledger.time_ns, phases[0].begin_ns)) - 1
    return {name: int(account[instant]) for name, account in accounts.items()}


# -- speed -------------------------------------------------------------------------------------------------------------------

_RESNET = """
import torchvision
model = torchvision.models.resnet50().to("cuda")
optimizer = torch.optim.Adam(model.parameters())
while True:
    x, y = torch.randn({batch}, 3, 224, 224, device="cuda"), torch.randint(0, 1000, ({batch},), device="cuda")
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""


def speed(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds of processor and wall time for three steps, and the memory that the estimate added to this process."""
    import psutil
    import torchvision  # noqa: F401 - imported before the clock starts

    process, card = psutil.Process(), cards.find(options.card or "A100 80GB")
    estimated("torch.zeros(1, device='cuda')", card)
    for batch in (16, 64, 256):
        before, wall, busy = process.memory_info().rss, time.perf_counter(), time.process_time()
        _, report, _ = estimated(_RESNET.format(batch=batch), card)
        yield {
            "case": f"resnet50-b{batch}",
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - busy,
            "added_bytes": process.memory_info().rss - before,
            "process_bytes": process.memory_info().rss,
            "predicted_allocated_bytes": report.peak_bytes,
        }


_WHAT: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "traces": traces, "battery": battery, "storages": storages, "speed": speed,
}  # fmt: skip

if __name__ == "__main__":
    main()

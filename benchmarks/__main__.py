"""``python -m benchmarks``: every row, a table, and a JSON file with versions and machine in ``benchmarks/results``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ipyvram
from benchmarks.alone import ROWS
from benchmarks.pair import summary

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "ipython", "memray", "scalene", "pytorch-memlab")
CNN, RN18, RN50 = "SimpleCNN, batch 64", "ResNet-18, batch 8, 64×64", "ResNet-50, batch 4, 64×64"
VIT, GPT, INFERENCE = "ViT-B/16, batch 1, 224×224", "GPT-like, batch 4×128", "ResNet-18 inference"
PROFILER, TRACKER, LINES = "torch.profiler, memory timeline", "MemTracker", "pytorch_memlab line profiler"

ROW_S = 600  # a row that takes longer is given up

#: cell, steps, tool, pairs
PAIRS = (
    (CNN, 3, "ipyvram", 20),
    (RN18, 3, "ipyvram", 5),
    (RN50, 3, "ipyvram", 5),
    (VIT, 3, "ipyvram", 3),
    (GPT, 3, "ipyvram", 5),
    (INFERENCE, 20, "ipyvram", 7),
    (CNN, 300, "ipyvram", 10),
    (CNN, 3, PROFILER, 7),
    (CNN, 3, TRACKER, 7),
    (CNN, 3, "memray", 7),
    (CNN, 3, LINES, 1),
    (RN18, 3, PROFILER, 3),
    (RN18, 3, TRACKER, 3),
    (RN18, 3, "memray", 3),
    (CNN, 300, "memray", 2),
    (CNN, 300, TRACKER, 3),
    (CNN, 100, "scalene", 1),
    (RN18, 300, "ipyvram", 3),
)


def _run(*command: str) -> dict[str, Any]:
    """A row in a process of its own; what it prints last is its JSON."""
    done = _process(*command)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def _process(*command: str) -> subprocess.CompletedProcess[str]:
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RESULTS.parents[1])}
    line = [sys.executable, *command]
    try:
        return subprocess.run(line, capture_output=True, text=True, env=alone, timeout=ROW_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, 1, "", f"not done after {ROW_S} s")


def _scalene(cell: str, steps: int, count: int) -> dict[str, Any]:
    """The script bare and under scalene, in turn; the cell times itself in both."""
    found: dict[str, list[dict[str, float]]] = {"bare": [], "tool": []}
    script = str(Path(__file__).with_name("script.py"))
    with tempfile.TemporaryDirectory() as folder:
        result, profile = Path(folder) / "cell.json", Path(folder) / "profile.json"
        for _ in range(count):
            for key, under in (("bare", ()), ("tool", ("-m", "scalene", "run", "-o", str(profile)))):
                done = _process(*under, script, *(("---",) if under else ()), cell, str(steps), str(result))
                if not result.exists():
                    return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
                found[key].append(json.loads(result.read_text(encoding="utf-8")))
                result.unlink()
    return found | {"summary": summary(found)}


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    versions = {"ipyvram": ipyvram.__version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "threads": 1,
        "versions": versions,
    }


def _pair_line(cell: str, steps: int, tool: str, row: dict[str, Any]) -> str:
    head = f"{cell:<28} {steps:>4}  {tool:<32}"
    if "error" in row:
        return f"{head} {row['error']}"
    s = row["summary"]
    extra = f"{row['extra_peak_bytes'] / 2**20:>6.0f}" if "extra_peak_bytes" in row else "     –"
    return (
        f"{head} {s['bare_s']:>8.3f} {s['ratio']:>7.3f} [{s['ratio_low']:.2f}…{s['ratio_high']:.2f}] "
        f"{s['ratio_cpu']:>7.3f} [{s['ratio_cpu_low']:.2f}…{s['ratio_cpu_high']:.2f}] "
        f"{s['ratio_cpu_with_report']:>7.2f} {1e3 * s['report_s']:>8.0f} {1e3 * s['report_cpu_s']:>8.0f} {extra}"
    )


def _alone_lines(name: str, row: dict[str, Any]) -> list[str]:
    if name != "scale" or "error" in row:
        return [f"{name:<28} {json.dumps(row)}"]
    head = (
        f"{name:<12} {'events':>9} {'live':>6} {'samples':>8} {'devices':>7} {'explain s':>10} {'CPU s':>6} {'µs/event':>8} "
        f"{'extra MiB':>9} {'draw s':>7} {'HTML KB':>8} {'JSON KB':>8}"
    )
    return [head] + [
        f"{'':<12} {r['events']:>9} {r['live']:>6} {r['samples']:>8} {r['devices']:>7} {r['analyse']['s']:>10.3f} "
        f"{r['analyse']['cpu_s']:>6.3f} {r['us_per_event']:>8.2f} {r['extra_peak_bytes'] / 2**20:>9.0f} "
        f"{r['render']['s']:>7.3f} {r['bytes']['text/html'] / 1e3:>8.0f} "
        f"{r['bytes']['application/vnd.ipyvram.report.v1+json'] / 1e3:>8.0f}"
        for r in row["rows"]
    ]


HEAD = (
    f"{'cell':<28} {'steps':>4}  {'under':<32} {'bare s':>8} {'wall ×':>7} {'lowest…highest':<13} {'CPU ×':>7} "
    f"{'lowest…highest':<13} {'with report':>7} {'report ms':>8} {'CPU ms':>6} {'extra MiB':>6}"
)


def main() -> None:
    """Run all rows, or those whose name contains ``--only``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose cell, tool or name contains this text")
    parser.add_argument("--pairs", type=int, help="pairs in each row, instead of as many as the table says")
    parser.add_argument(
        "--output", type=Path, help="the JSON file (benchmarks/results/overhead.json; some rows: build/overhead.json)"
    )
    chosen = parser.parse_args()
    found: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M"), "machine": machine(), "pairs": [], "alone": {}}
    path = (
        chosen.output or (Path("build") if chosen.only else RESULTS) / "overhead.json"
    )  # some rows are not the results
    path.parent.mkdir(exist_ok=True)
    for name in ROWS:
        if chosen.only in name:
            found["alone"][name] = _run("-m", "benchmarks.alone", name)
            for line in _alone_lines(name, found["alone"][name]):
                print(line, flush=True)
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(HEAD)
    for cell, steps, tool, count in PAIRS:
        if chosen.only in f"{cell} {tool}":
            count = chosen.pairs or count
            if tool == "scalene":
                row = _scalene(cell, steps, count)
            else:
                row = _run("-m", "benchmarks.pair", cell, str(steps), tool, str(count))
            print(_pair_line(cell, steps, tool, row), flush=True)
            runs = {f"{key}_runs": row.pop(key) for key in ("bare", "tool") if key in row}
            found["pairs"].append({"cell": cell, "steps": steps, "tool": tool, "pairs": count, **row, **runs})
            path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

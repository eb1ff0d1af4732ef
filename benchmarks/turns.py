"""What a traced step costs: a cell bare, measured, and under a dispatch mode that does nothing, in turns in one process.

    python -m benchmarks.turns                       # on the CPU
    python -m benchmarks.turns --stub                # torch's own CUDA over the stub of the tests: the cost on the host
    python -m benchmarks.turns --instructions        # under valgrind: how many instructions instead of how long
    python -m benchmarks.turns --against FOLDER      # and the same with ipyvram of another checkout, processes alternating

Another program on the machine can only make a run longer, so the shortest of many is what the code takes; a count of instructions
does not depend on others at all.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.cells import CELLS, Cell, make
from benchmarks.pair import once
from benchmarks.parts import EMPTY
from benchmarks.tools import NOTHING, TOOLS, Tool, ipyvram

ROOT = Path(__file__).resolve().parents[1]
TURN = {"bare": NOTHING, "empty mode": EMPTY, "ipyvram": TOOLS["ipyvram"]}
#: Samples are taken by the clock, and their number would tell how fast valgrind is.
UNSAMPLED = Tool(partial(ipyvram, interval_s=3600.0), True)
CNN, RN50 = "SimpleCNN, batch 64", "ResNet-50, batch 4, 64×64"

Figures = dict[str, list[float]]


def seconds(cell: Cell, rounds: int) -> Figures:
    """CPU seconds of the cell in each round, under each of `TURN`; after a round that does not count."""
    found: Figures = {name: [] for name in TURN}
    for i in range(rounds + 1):
        for name, tool in TURN.items():
            gc.collect()  # what the one before left is not this one's
            took = once(cell, tool)["cell_cpu_s"]
            if i:
                found[name].append(took)
    return found


def instructions(cell: Cell, count: Counter) -> Figures:
    """Instructions of the cell under each of `TURN`; this process runs in callgrind."""
    turn = TURN | {"ipyvram": UNSAMPLED}
    for tool in turn.values():
        once(cell, tool)
    found: Figures = {}
    for name, tool in turn.items():
        gc.collect()
        count.begin()
        armed, end = tool.start(cell)
        armed.run()
        found[name] = [count.end()]
        end()
    return found


class Counter:
    """Talks to callgrind, in which this process runs; built into ``folder``.

    Most of the time such a process imports torch, so only what is counted runs instrumented.
    """

    _SOURCE = """
    #include "callgrind.h"
    void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
    void end(void) { CALLGRIND_DUMP_STATS; CALLGRIND_STOP_INSTRUMENTATION; }
    """

    def __init__(self, folder: Path) -> None:
        source, library = folder / "counter.c", folder / "counter.so"
        source.write_text(self._SOURCE, encoding="ascii")
        headers = Path(torch.__file__).parent / "utils" / "benchmark" / "utils" / "valgrind_wrapper"
        subprocess.run(["cc", "-shared", "-fPIC", f"-I{headers}", "-o", library, source], check=True)
        self._folder, self._library = folder, ctypes.CDLL(str(library))

    def begin(self) -> None:
        """Count from here."""
        self._library.begin()

    def end(self) -> float:
        """How many since `begin`."""
        self._library.end()
        newest = max(self._folder.glob("callgrind.out.*.*"), key=lambda path: int(path.suffix[1:]))
        lines = newest.read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("totals:"))


def _child(chosen: argparse.Namespace, code: Path) -> Figures:
    """A process of its own, with ipyvram from ``code``."""
    command = [sys.executable, "-m", "benchmarks.turns", "--code", str(code), "--cell", chosen.cell]
    command += ["--steps", str(chosen.steps), "--rounds", str(chosen.rounds), "--device", chosen.device]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        if chosen.instructions:
            valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
            command = [*valgrind, f"--callgrind-out-file={folder}/callgrind.out.%p", *command, "--instructions"]
            environment["PYTHONHASHSEED"] = "0"
        if chosen.device == "cuda":
            from tests import cuda_stub

            environment |= cuda_stub.build(Path(folder))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(lines[-1])  # type: ignore[no-any-return]


def table(found: Figures, steps: int, unit: str) -> list[str]:
    """A line for each of `TURN`: shortest and median of a step, and both against the bare cell."""
    scale = 1e3 if unit == "ms" else 1e-6
    bare = found["bare"]
    return [f"{'':<12} {'lowest':>9} {'median':>9} {unit + ' a step':<12} {'× (lowest)':>10} {'× (median)':>10}"] + [
        f"{name:<12} {scale * min(runs) / steps:>9.3f} {scale * median(runs) / steps:>9.3f} {'':<12} "
        f"{min(runs) / min(bare):>10.3f} {median(a / b for a, b in zip(runs, bare, strict=True)):>10.3f}"
        for name, runs in found.items()
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.turns", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=CELLS, help=f"{CNN!r}; with --stub {RN50!r}")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30, help="in each process")
    parser.add_argument("--stub", dest="device", action="store_const", const="cuda", default="cpu")
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--against", type=Path, help="another checkout of ipyvram")
    parser.add_argument("--processes", type=int, default=3, help="for each checkout, with --against")
    parser.add_argument("--code", type=Path, help=argparse.SUPPRESS)  # measure here, with ipyvram of this checkout
    parser.add_argument("--device", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.cell = chosen.cell or (RN50 if chosen.device == "cuda" else CNN)
    if chosen.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind")
    return chosen


def _measure(chosen: argparse.Namespace) -> Figures:
    sys.path.insert(0, str(chosen.code))
    torch.set_num_threads(1)
    with torch.device(chosen.device):
        cell = make(chosen.cell, chosen.steps)
    return instructions(cell, Counter(Path.cwd())) if chosen.instructions else seconds(cell, chosen.rounds)


def main() -> None:
    """Print a table for each checkout."""
    chosen = _options()
    if chosen.code:
        print(json.dumps(_measure(chosen)))
        return
    codes = [code.resolve() for code in (chosen.against, ROOT) if code]
    found: dict[Path, dict[str, Any]] = {code: {name: [] for name in TURN} for code in codes}
    for _ in range(chosen.processes if chosen.against and not chosen.instructions else 1):
        for code in codes:
            for name, runs in _child(chosen, code).items():
                found[code][name] += runs
    where = "torch's CUDA over the stub, time on the host" if chosen.device == "cuda" else "CPU"
    print(f"{chosen.cell}, {chosen.steps} traced steps, {where}, torch {torch.__version__}")
    for code in codes:
        if chosen.against:
            print(code)
        print("\n".join(table(found[code], chosen.steps, "M instructions" if chosen.instructions else "ms")))


if __name__ == "__main__":
    main()

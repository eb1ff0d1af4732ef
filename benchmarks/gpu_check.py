"""Everything that ipyvram says must be true on a GPU: one command checks it, prints a table, writes JSON and recordings.

    python benchmarks/gpu_check.py [--out FOLDER] [--minutes 8] [--only battery,overhead,…]
    python benchmarks/gpu_check.py --simulate      # every check on a simulated card: proves the script, measures nothing

Needs torch, torchvision, numpy, pandas and nvidia-ml-py. Each part runs in a process of its own with a limit on its time, and
writes what it finds at once: whatever happens to one, the rest is there, and ``--only`` repeats it into the same folder.
``estimates`` needs no GPU and may be repeated elsewhere. Then: ``python -m benchmarks.gpu.install FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:  # ipyvram depends on it; a bare GPU machine may not have it
    import psutil  # noqa: F401
except ImportError:
    from benchmarks.gpu import psutil_standin

    sys.modules["psutil"] = psutil_standin  # type: ignore[assignment]

import torch  # noqa: E402

from benchmarks.gpu import oddities, rows  # noqa: E402
from benchmarks.gpu.about import about  # noqa: E402
from benchmarks.gpu.card import RealCard  # noqa: E402
from benchmarks.gpu.parts import PARTS, Work  # noqa: E402
from benchmarks.gpu.rows import Row, expect  # noqa: E402

_GRACE_S = 25.0  #: what a part gets beyond its share, to end by itself
_WITHOUT_CARD = ("estimates",)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every check passed, 1 when one failed, 2 when nothing could be checked."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = [options.part] if options.part else options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only {unknown[0]}: there are {', '.join(PARTS)}")
    if options.child:  # before anything starts CUDA
        return _child(options)
    if not options.simulate and not torch.cuda.is_available() and not set(names) <= set(_WITHOUT_CARD):
        print("No CUDA device here. --simulate runs every check on a simulated card; that measures nothing.")
        return 2
    if options.part:
        return _part(options)
    return _Check(options, names).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="folder for all that is found")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", default="", help="parts, separated by commas: " + ", ".join(PARTS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # within a process of its own
    parser.add_argument("--child", help=argparse.SUPPRESS)  # under another environment
    return parser


def _card(simulate: bool, stack: contextlib.ExitStack, begun: bool = True) -> Any:
    if simulate:
        from benchmarks.gpu.simulated import SimulatedCard

        return stack.enter_context(SimulatedCard(begun=begun))
    return RealCard()


def _child(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        card = _card(options.simulate, stack, begun=options.child != oddities.FIRST)
        for row in oddities.child(options.child, card):
            print(json.dumps(asdict(row), default=str), flush=True)
    return 0


def _part(options: argparse.Namespace) -> int:
    """One part: prints its rows, and appends each to its file."""
    until = time.monotonic() + options.minutes * 60
    path = rows.path_of(options.out, options.part)
    with contextlib.ExitStack() as stack:
        card = None
        if options.part not in _WITHOUT_CARD:
            card = _card(options.simulate, stack)
            rows.written(options.out / "about.json", json.dumps(about(card), indent=1) + "\n")
        work = Work(card, options.out, Path(__file__).resolve(), lambda: until - time.monotonic())
        for row in PARTS[options.part][0](work):
            rows.append(path, row)
            print(rows.line(row), flush=True)
    return 0


class _Check:
    """Runs the parts one after the other, in the time there is."""

    def __init__(self, options: argparse.Namespace, names: list[str]) -> None:
        self.options, self.names = options, names
        self.started = time.monotonic()

    def run(self) -> int:
        out: Path = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        if self.options.simulate:
            print("Simulated card: this proves the script and measures nothing.")
        seconds = {}
        for name in self.names:
            begun = time.monotonic()
            print(f"\n-- {name} ({begun - self.started:.0f} s)", flush=True)
            self._run(name)
            seconds[name] = round(time.monotonic() - begun, 1)
            found = rows.collect(out, seconds)
        print(f"\n{rows.summary(found)}\n{time.monotonic() - self.started:.0f} s")
        return int(any(r.ok is False for r in found))

    def _run(self, name: str) -> None:
        path = rows.path_of(self.options.out, name)
        path.unlink(missing_ok=True)
        left = self.options.minutes * 60 - (time.monotonic() - self.started)
        seconds = min(left, PARTS[name][1] * self.options.minutes * 60) if len(self.names) > 1 else left
        if seconds < 5:
            self._say(path, rows.note(name, "all", "left out: no time left"))
            return
        command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--out", str(self.options.out)]
        command += ["--minutes", str(seconds / 60), *(["--simulate"] if self.options.simulate else [])]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            status = process.wait(seconds + _GRACE_S)
        except subprocess.TimeoutExpired:
            self._say(path, expect(name, "the part itself", False, f"ended after {seconds + _GRACE_S:.0f} s"))
        else:
            if status:
                self._say(path, expect(name, "the part itself", False, f"ended with status {status}"))
        finally:
            _end(process)

    def _say(self, path: Path, row: Row) -> None:
        rows.append(path, row)
        print(rows.line(row), flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and what it started, if it is still there."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())

"""Everything that ipyvram says must be true on a GPU: one command checks it, prints a table, writes JSON and recordings.

    python benchmarks/gpu_check.py [--out FOLDER] [--minutes 8] [--only battery,overhead,…]
    python benchmarks/gpu_check.py --simulate      # every check in full, on a simulated card: proves the script, measures nothing

Needs torch, torchvision, numpy, pandas and nvidia-ml-py.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
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

import ipyvram  # noqa: E402
from benchmarks.gpu import battery, estimates, limits, oddities, overhead, rows  # noqa: E402
from benchmarks.gpu.rows import Row, expect, note  # noqa: E402

RECORDINGS_BYTES = 1_500_000
_CHILD_S = 100.0


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when every check passed."""
    options = _parser().parse_args(arguments)
    if not options.simulate and not torch.cuda.is_available():
        print("No CUDA device here. --simulate runs every check on a simulated card; that measures nothing.")
        return 2
    with contextlib.ExitStack() as stack:
        card = _card(options.simulate, stack)
        if options.child:
            for row in oddities.child(options.child, card):
                print(json.dumps(dataclasses.asdict(row)))
            return 0
        return _Check(card, options).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", default="", help="sections, separated by commas: " + ", ".join(_Check.SECTIONS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _card(simulate: bool, stack: contextlib.ExitStack) -> Any:
    if simulate:
        from benchmarks.gpu.simulated import SimulatedCard

        return stack.enter_context(SimulatedCard())
    from benchmarks.gpu.card import RealCard

    return RealCard()


class _Check:
    """The sections in order of importance; what does not fit into the time is left out, and said."""

    SECTIONS = ("battery", "oddities", "limits", "environments", "overhead", "estimates")

    def __init__(self, card: Any, options: argparse.Namespace) -> None:
        self.card, self.options = card, options
        self.rows: list[Row] = []
        self.measured: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.started = time.monotonic()

    def run(self) -> int:
        self.options.out.mkdir(parents=True, exist_ok=True)
        print(
            "Simulated card: this proves the script and measures nothing.\n"
            if self.card.simulated
            else self.card.name()
        )
        for name in self.options.only.split(",") if self.options.only else self.SECTIONS:
            print(f"\n-- {name} ({time.monotonic() - self.started:.0f} s)")
            self._section(name, getattr(self, "_" + name))
        print(f"\n{rows.summary(self.rows)}\n{time.monotonic() - self.started:.0f} s")
        rows.write(self.options.out / "results.json", self.rows, self._about())
        return int(any(r.ok is False for r in self.rows))

    def _section(self, name: str, section: Callable[[], Iterator[Row]]) -> None:
        try:
            for row in section():
                self.rows.append(row)
                print(rows.line(row), flush=True)
        except Exception as error:  # one broken section must not cost the others
            self.rows.append(expect(name, "the section itself", False, f"{type(error).__name__}: {error}"[:300]))
            print(rows.line(self.rows[-1]), flush=True)

    def _left(self) -> float:
        return self.options.minutes * 60 - (time.monotonic() - self.started)

    def _about(self) -> dict[str, Any]:
        return {
            "simulated": self.card.simulated, "card": self.card.name(), "card_bytes": self.card.total(),
            "torch": torch.__version__, "cuda": torch.version.cuda, "ipyvram": ipyvram.__version__,
            "python": platform.python_version(), "seconds": round(time.monotonic() - self.started, 1),
        }  # fmt: skip

    # -- sections ------------------------------------------------------------------------------------------------------

    def _battery(self) -> Iterator[Row]:
        written, folder = 0, self.options.out / "recordings"
        folder.mkdir(exist_ok=True)
        for case in battery.chosen(self.card.simulated):
            if self._left() < self.options.minutes * 60 * 0.5:
                yield note("battery", case.name, "left out: half of the time is used")
                continue
            m = battery.run(case, self.card.device)
            yield from battery.check(case, m)
            if m.error is None:
                self.measured[case.name] = (case, battery.figures(m.report))
                path = folder / f"{case.name}.ipyvram"
                m.recording.save(path)
                written += path.stat().st_size
                if written > RECORDINGS_BYTES:
                    written -= path.stat().st_size
                    path.unlink()
        kept = {n: figures for n, (_, figures) in self.measured.items() if (folder / f"{n}.ipyvram").exists()}
        (folder / "figures.json").write_text(json.dumps(kept, indent=1) + "\n")
        yield expect("recordings", "together", 0 < written <= RECORDINGS_BYTES, f"{written:,} bytes in {folder.name}/")

    def _oddities(self) -> Iterator[Row]:
        yield from oddities.run(self.card)

    def _limits(self) -> Iterator[Row]:
        yield from limits.out_of_memory(self.card.device, self.card.simulated)
        yield from limits.sweep(self.card.device, self.card.simulated)

    def _environments(self) -> Iterator[Row]:
        yield from oddities.environments(self.card, Path(__file__), max(30.0, min(_CHILD_S, self._left() / 3)))

    def _overhead(self) -> Iterator[Row]:
        if self._left() < 60:
            yield note("overhead", "all", "left out: no time left")
            return
        for row in overhead.run(self.card.device, self.card.simulated):
            yield row
            if self._left() < 30:
                yield note("overhead", "the rest", "left out: no time left")
                return

    def _estimates(self) -> Iterator[Row]:
        """After all else: on a simulated card the column called measured is of a CPU program, and proves only the code."""
        name = self._card_for_estimates()
        self.card.leave()
        for case, measured in self.measured.values():
            if self._left() < 10:
                yield note("estimate", case.name, "left out: no time left")
                continue
            yield from estimates.compare(case, name, measured)

    def _card_for_estimates(self) -> str:
        from ipyvram import cards

        try:
            return cards.find(self.card.name()).name
        except ValueError:
            return f"{self.card.total() >> 20}MiB"


if __name__ == "__main__":
    sys.exit(main())

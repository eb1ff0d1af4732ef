"""What a cell is run under: nothing, ipyvram, or a peer. Each runs the cell, then makes its report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.cells import Cell


class Tool(NamedTuple):
    """``start(cell)`` arms it and gives the cell to run and the function that ends it and makes the report.

    ``categories``: it tells what the memory is for.
    """

    start: Callable[[Cell], tuple[Cell, Callable[[], object]]]
    categories: bool


def _nothing(cell: Cell) -> tuple[Cell, Callable[[], object]]:
    return cell, lambda: None


def ipyvram(cell: Cell, **options: Any) -> tuple[Cell, Callable[[], object]]:
    """A whole measurement with these `Options`, from arming to what a notebook keeps of the report."""
    from ipyvram.analysis import analyse
    from ipyvram.options import Options
    from ipyvram.render.bundle import bundle
    from ipyvram.run import Run

    run = Run(Options(**options), namespace=cell.namespace)
    run.start()
    return cell, lambda: bundle(analyse(run.stop()))


def _profiler(cell: Cell) -> tuple[Cell, Callable[[], object]]:
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True, with_stack=True)
    profiler.__enter__()

    def end() -> object:
        profiler.__exit__(None, None, None)
        with tempfile.TemporaryDirectory() as folder:
            profiler.export_memory_timeline(str(Path(folder) / "timeline.raw.json.gz"), device="cpu")
        return None

    return cell, end


def _mem_tracker(cell: Cell) -> tuple[Cell, Callable[[], object]]:
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    tracker.track_external(*(v for k, v in cell.namespace.items() if k in ("model", "optimizer")))

    def step() -> None:
        with tracker:  # it follows one iteration at a time
            cell.step()
        tracker.reset_mod_stats()

    return cell._replace(step=step), lambda: tracker.get_tracker_snapshot("peak")


def _memray(cell: Cell) -> tuple[Cell, Callable[[], object]]:
    import memray

    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "trace.bin"
    tracker = memray.Tracker(path)
    tracker.__enter__()

    def end() -> object:
        tracker.__exit__(None, None, None)
        with memray.FileReader(path) as reader:
            found = sum(record.size for record in reader.get_high_watermark_allocation_records(merge_threads=True))
        folder.cleanup()
        return found

    return cell, end


def _line_profiler(cell: Cell) -> tuple[Cell, Callable[[], object]]:
    if not torch.cuda.is_available():
        raise RuntimeError("reads CUDA's counters only: nothing to run on a CPU")
    from pytorch_memlab import LineProfiler

    profiler = LineProfiler(cell.run)
    profiler.__enter__()

    def end() -> object:
        profiler.__exit__(None, None, None)
        return profiler.display()

    return cell, end


TOOLS = {
    "ipyvram": Tool(ipyvram, True),
    "torch.profiler, memory timeline": Tool(_profiler, True),
    "MemTracker": Tool(_mem_tracker, True),
    "memray": Tool(_memray, False),
    "pytorch_memlab line profiler": Tool(_line_profiler, False),
}
NOTHING = Tool(_nothing, False)

"""One row in this process: a cell bare and under a tool, in turn. Prints JSON.

``python -m benchmarks.pair CELL STEPS TOOL PAIRS``
"""

from __future__ import annotations

import json
import resource
import time
from statistics import median
from typing import Any

import torch

from benchmarks.cells import CELLS, Cell, make
from benchmarks.tools import NOTHING, TOOLS, Tool
from benchmarks.words import words


def once(cell: Cell, tool: Tool) -> dict[str, float]:
    """Seconds of the cell with the tool armed, and from its end to the report; wall and CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    armed, end = tool.start(cell)
    armed.run()
    wall_ran, cpu_ran = time.perf_counter(), time.process_time()
    end()
    wall_end, cpu_end = time.perf_counter(), time.process_time()
    return {
        "cell_s": wall_ran - wall,
        "cell_cpu_s": cpu_ran - cpu,
        "report_s": wall_end - wall_ran,
        "report_cpu_s": cpu_end - cpu_ran,
    }


def pairs(name: str, steps: int, tool: Tool, count: int) -> dict[str, Any]:
    """The cell bare (A) and under the tool (B): A B A B …, after one run of each that is not counted."""
    torch.set_num_threads(1)
    cell = make(name, steps)
    short = cell._replace(steps=min(steps, 3))
    once(short, NOTHING)
    before = _peak_bytes()
    once(short, tool)
    found: dict[str, list[dict[str, float]]] = {"bare": [], "tool": []}
    for _ in range(count):
        found["bare"].append(once(cell, NOTHING))
        found["tool"].append(once(cell, tool))
    return found | {"summary": summary(found), "extra_peak_bytes": _peak_bytes() - before}


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Medians over the pairs; of the ratios also the lowest and the highest."""

    def ratios(column: str, report: bool) -> list[float]:
        of_report = column.replace("cell", "report")
        return sorted(
            (b[column] + (b[of_report] if report else 0.0)) / a[column]
            for a, b in zip(found["bare"], found["tool"], strict=True)
        )

    result = {}
    for clock in ("", "_cpu"):
        cell = ratios(f"cell{clock}_s", report=False)
        result |= {
            f"bare{clock}_s": median(a[f"cell{clock}_s"] for a in found["bare"]),
            f"ratio{clock}": median(cell),
            f"ratio{clock}_low": cell[0],
            f"ratio{clock}_high": cell[-1],
            f"ratio{clock}_with_report": median(ratios(f"cell{clock}_s", report=True)),
            f"report{clock}_s": median(b[f"report{clock}_s"] for b in found["tool"]),
        }
    return result


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    name, steps, tool, count = words(__doc__, cell=CELLS, steps=int, tool=TOOLS, pairs=int)
    try:
        print(json.dumps(pairs(name, steps, TOOLS[tool], count)))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))

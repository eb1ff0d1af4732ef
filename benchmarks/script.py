"""A cell as a script of its own, for tools that run whole programs: writes seconds of the cell as JSON.

``python -m benchmarks.script CELL STEPS FILE``
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.cells import CELLS, make
from benchmarks.pair import once
from benchmarks.tools import NOTHING
from benchmarks.words import words

if __name__ == "__main__":
    name, steps, file = words(__doc__, cell=CELLS, steps=int, file=Path)
    torch.set_num_threads(1)
    cell = make(name, steps)
    once(cell._replace(steps=3), NOTHING)
    file.write_text(json.dumps(once(cell, NOTHING)), encoding="utf-8")

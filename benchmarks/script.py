"""A cell as a script of its own, for tools that run whole programs: writes seconds of the cell as JSON.

``python -m benchmarks.script CELL STEPS FILE``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from benchmarks.cells import make
from benchmarks.pair import once
from benchmarks.tools import NOTHING

if __name__ == "__main__":
    torch.set_num_threads(1)
    cell = make(sys.argv[1], int(sys.argv[2]))
    once(cell._replace(steps=3), NOTHING)
    Path(sys.argv[3]).write_text(json.dumps(once(cell, NOTHING)), encoding="utf-8")

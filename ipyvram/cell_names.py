"""What IPython calls the cells: a shell comes in; the file names of a cell's frames, and the numbers of cells, go out."""

from __future__ import annotations

import sys
from typing import Any

from ipyvram.recording import Cell

#: An ``InteractiveShell``. Its annotations differ from one IPython to the next, so they are not relied on.
Shell = Any


def cell_of(ip: Shell, source: str, filename: str) -> Cell:
    """A cell to be measured, with the numbers by which a person knows the others."""
    return Cell(source, filename, numbers=numbers(ip))


def numbers(ip: Shell) -> dict[str, int]:
    """File name of a cell's frames → its number, as in ``In[6]``; empty where this IPython does not tell."""
    return {name: n for name, n in getattr(ip.compile, "_filename_map", {}).items() if n}


def caller_filename(ip: Shell) -> str:
    """The file name that the frames of the running cell carry."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is not ip.user_global_ns:
        frame = frame.f_back
    return frame.f_code.co_filename if frame.f_globals is ip.user_global_ns else ""


def coming_filename(ip: Shell, raw_cell: str) -> str:
    """The file name that the frames of a cell will carry which is about to run; empty where this IPython does not tell."""
    try:
        return str(ip.compile.get_code_name(raw_cell, ip.transform_cell(raw_cell), ip.execution_count))
    except Exception:
        return ""

"""What the terminal can show: its width, whether it takes Unicode and colour. Asks the standard output and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TypedDict


class Looks(TypedDict):
    """Arguments of `render.text.text`."""

    width: int
    unicode: bool
    colour: bool


def looks() -> Looks:
    """As the terminal is; 80 columns without colour where the output is not one (a kernel, a file, a pipe)."""
    out = sys.stdout
    if out is None or not getattr(out, "isatty", lambda: False)():
        return {"width": 80, "unicode": True, "colour": False}
    width = max(40, min(120, shutil.get_terminal_size((80, 24)).columns))
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return {"width": width, "unicode": encodes(getattr(out, "encoding", None)), "colour": colour}


def encodes(encoding: str | None) -> bool:
    """Whether an encoding has the characters of the text form."""
    try:
        "█▓░·→×–≈≥".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

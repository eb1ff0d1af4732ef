"""The variables of the functions that are running at this instant; read, never changed, never kept alive."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

import torch

from ipyvram.probes.stacks import OURS, is_bottom

#: A variable: the identity of the code it belongs to, and its name.
Place = tuple[int, str]

_CLOSED = (OURS, os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), ""))
_DEPTH = 40  # frames: a trainer of a framework has about twenty between its loop and the optimizer
# Before 3.13 `f_locals` of a function is a copy that the frame keeps: it is emptied, else it would hold the last batch while
# the program makes the next one. A function that asks for that very copy itself is left alone.
_COPIES = sys.version_info < (3, 13)
OWN_COPY = frozenset({"locals", "vars"})
# There, a variable of an inlined comprehension that is a closure's elsewhere in the function ends the process when it is read
# (python/cpython#128396): what closures share is left out.
_CELLS_CRASH = (3, 13) <= sys.version_info < (3, 13, 3)


class Variables:
    """Reads the frames above its caller, down to where IPython starts the cell; none of torch's and none of ours.

    What comes out begins with the outermost: the loop of a notebook before the function that it calls. Of a function that
    calls itself the innermost counts.
    """

    def __init__(self) -> None:
        self._codes: dict[int, CodeType] = {}  # keeps identities unique

    def all(self) -> dict[Place, Any]:
        """Every variable in view whose name has no leading underscore."""
        found: dict[Place, Any] = {}
        for frame in _frames(sys._getframe(1)):
            code = frame.f_code
            if not code.co_filename.startswith(_CLOSED) and OWN_COPY.isdisjoint(code.co_names):
                self._codes[id(code)] = code
                found |= {(id(code), n): value for n, value in variables_of(frame).items() if not n.startswith("_")}
        return found

    def some(self, wanted: Mapping[int, tuple[str, ...]]) -> dict[Place, Any]:
        """Those of these names, by the identity of their code, that are in view."""
        parts: dict[int, dict[str, Any]] = {}
        frame: FrameType | None = sys._getframe(1)
        for _ in range(_DEPTH):  # spelled out: this runs at the end of every step
            if frame is None or len(parts) == len(wanted):
                break
            code = id(frame.f_code)
            if code in wanted and code not in parts:
                parts[code] = variables_of(frame, wanted[code])
            frame = frame.f_back
        return {(code, name): parts[code][name] for code in reversed(parts) for name in parts[code]}


def _frames(frame: FrameType | None) -> list[FrameType]:
    """Outermost first."""
    found: list[FrameType] = []
    while frame is not None and len(found) < _DEPTH and not is_bottom(frame.f_code):
        found.append(frame)
        frame = frame.f_back
    return found[::-1]


def variables_of(frame: FrameType, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """What a function that runs, or a generator that waits, holds in its variables; it goes on as if nobody had looked."""
    copied = _COPIES and bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)
    if copied and sys.gettrace() is not None:
        return {}  # a debugger writes the copy back into the function
    found = locals_of(frame, names)
    if copied:
        frame.f_locals.clear()
    return found


def locals_of(frame: FrameType, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """``frame.f_locals``, or these of them, where it is safe to read."""
    variables, code = frame.f_locals, frame.f_code
    if _CELLS_CRASH and (code.co_cellvars or code.co_freevars) and not isinstance(variables, dict):
        shared = {*code.co_cellvars, *code.co_freevars}
        names = tuple(name for name in names or code.co_varnames if name not in shared)
    return dict(variables) if names is None else {name: variables[name] for name in names if name in variables}

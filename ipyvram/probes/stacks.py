"""The user's own frames at this instant, as a short `Stack`: no torch, no installed package, none of ours."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import CodeType, FrameType
from typing import Generic, TypeVar

import ipyvram
from ipyvram.recording import Frame, Stack

T = TypeVar("T")

_OURS = os.path.dirname(os.path.abspath(ipyvram.__file__)) + os.sep
_FOREIGN = tuple({os.path.join(sysconfig.get_paths()[k], "") for k in ("stdlib", "platstdlib", "purelib", "platlib")})
_DEPTH = 8  # user frames kept: enough to tell a helper from its caller


class Interner(Generic[T]):
    """Equal values share one index; values come out in the order in which they were first seen."""

    def __init__(self) -> None:
        self._index: dict[T, int] = {}

    def __call__(self, value: T) -> int:
        return self._index.setdefault(value, len(self._index))

    def values(self) -> tuple[T, ...]:
        return tuple(self._index)


def is_user_file(filename: str) -> bool:
    """Whether frames of ``filename`` are the user's: a cell, a script or a module that is not installed."""
    if filename.startswith("<") and not filename.startswith("<ipython-input"):
        return False  # <frozen importlib>, <string>, generated code
    return not filename.startswith((_OURS, *_FOREIGN)) and "site-packages" not in filename


class StackReader:
    """Reads the current user stack cheaply: whether a file is the user's is looked up once per code object."""

    def __init__(self, stacks: Interner[Stack]) -> None:
        self._stacks = stacks
        self._user: dict[CodeType, bool] = {}

    def __call__(self) -> int:
        """Index of the current user stack in the interner, -1 when there is none."""
        frame: FrameType | None = sys._getframe(1)
        found: list[Frame] = []
        while frame is not None and len(found) < _DEPTH:
            code = frame.f_code
            user = self._user.get(code)
            if user is None:
                user = self._user[code] = is_user_file(code.co_filename)
            if user:
                found.append(Frame(code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        return self._stacks(tuple(found)) if found else -1

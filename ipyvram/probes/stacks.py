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

OURS = os.path.dirname(os.path.abspath(ipyvram.__file__)) + os.sep
_FOREIGN = tuple({os.path.join(sysconfig.get_paths()[k], "") for k in ("stdlib", "platstdlib", "purelib", "platlib")})
_TYPED = ("<ipython-input", "<timed exec>", "<timed eval>")  # cells, and what `%%time` runs
# Frames of C++ stand beside Python's where a program asked torch for both.
_NATIVE = (".c", ".cc", ".cpp", ".cu", ".cuh", ".cxx", ".h", ".hpp", ".S", "??")
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
    if filename.startswith("<") and not filename.startswith(_TYPED):
        return False  # <frozen importlib>, <string>, generated code
    return (
        not filename.startswith((OURS, *_FOREIGN))
        and "site-packages" not in filename
        and not filename.endswith(_NATIVE)
    )


class StackReader:
    """Reads the current user stack cheaply: what a file is, is looked up once per code object, a stack built once.

    What lies below a frame stands still while that frame runs. So from `anchor` to `release`, what is below the frame that
    called it is read once.
    """

    def __init__(self, stacks: Interner[Stack]) -> None:
        self._stacks = stacks
        self._anchor = 0  # identity of a frame; to hold it would keep the program's variables alive
        self._below: tuple[int, ...] | None = None  # the place of what is below the anchor
        # By identity, since a code object computes its hash from all its instructions; `_codes` keeps identities unique.
        self._kind: dict[int, int] = {}
        self._passed: set[int] = set()  # the foreign ones, most of all
        self._codes: list[CodeType] = []
        self._known: dict[tuple[int, ...], int] = {}

    def __call__(self, above: int = 0) -> int:
        """Index of the current user stack in the interner, -1 when there is none.

        Parameters
        ----------
        above : int
            So many callers are known not to be the user's, so they need not be looked at.
        """
        try:
            frame: FrameType | None = sys._getframe(above + 1)
        except ValueError:  # on a thread of the autograd engine there are fewer callers, none of them the user's
            frame = None  # not this one: a frame that holds itself keeps its callers' tensors until the next collection
        below = self._below if id(frame) == self._anchor else None  # as in all of a backward
        place = self._place(frame) if below is None else below
        index = self._known.get(place)
        if index is None:
            index = self._known[place] = self._build(frame, len(place) // 2)
        return index

    def anchor(self) -> None:
        """Called when a phase begins (a forward, a backward, a step), by way of what torch calls then."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        self._below = None
        if frame is not None and self._kind_of(frame) in (_FOREIGN_CODE, _ANCHOR):
            self._kind[id(frame.f_code)] = _ANCHOR
            self._passed.discard(id(frame.f_code))
            self._anchor = id(frame)

    def release(self) -> None:
        """The phase has ended."""
        self._anchor = 0

    def _place(self, frame: FrameType | None) -> tuple[int, ...]:
        """Codes and instructions of the user's frames from here on down."""
        kinds, passed = self._kind, self._passed
        key: list[int] = []
        while frame is not None:
            if id(frame.f_code) not in passed:
                kind = kinds.get(id(frame.f_code)) or self._kind_of(frame)
                if kind == _ANCHOR:
                    if id(frame) == self._anchor:
                        if self._below is None:
                            self._below = self._place(frame.f_back)
                        key += self._below
                        break
                elif kind != _FOREIGN_CODE:
                    if kind != _BOTTOM:
                        key += (id(frame.f_code), frame.f_lasti)  # the line would have to be decoded
                    if kind != _USER or len(key) == 2 * _DEPTH:
                        break
            frame = frame.f_back
        return tuple(key[: 2 * _DEPTH])

    def _kind_of(self, frame: FrameType) -> int:
        kind = self._kind.get(id(frame.f_code))
        if kind is None:
            kind = self._kind[id(frame.f_code)] = _kind(frame)
            self._codes.append(frame.f_code)
            if kind == _FOREIGN_CODE:
                self._passed.add(id(frame.f_code))
        return kind

    def _build(self, frame: FrameType | None, count: int) -> int:
        found: list[Frame] = []
        while frame is not None and len(found) < count:
            code = frame.f_code
            if self._kind[id(code)] in (_USER, _MAIN):
                found.append(Frame(code.co_filename, frame.f_lineno, code.co_name))
            frame = frame.f_back
        return self._stacks(tuple(found)) if found else -1


_FOREIGN_CODE, _USER, _MAIN, _BOTTOM, _ANCHOR = 0, 1, 2, 3, 4  # the last: foreign, and an anchor has been this code


def _kind(frame: FrameType) -> int:
    """Whose frame it is. Below the main module there is nothing of the user's either."""
    code = frame.f_code
    if is_user_file(code.co_filename):
        main = code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__"
        return _MAIN if main else _USER
    return _BOTTOM if is_bottom(code) else _FOREIGN_CODE


def is_bottom(code: CodeType) -> bool:
    """Whether this is IPython's function that runs a cell: below it there is nothing of the user's."""
    return code.co_name == "run_code" and "interactiveshell" in code.co_filename

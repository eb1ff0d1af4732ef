"""Begins and ends of cells come in, as IPython tells of them; which cell a thread is running goes out.

A cell may run others inside it (``%run``, ``%%capture``) and those fire the same events: cells are known by the identity of
their ``ExecutionInfo``.
"""

from __future__ import annotations

import threading
from typing import Any

#: An ``ExecutionInfo``.
Info = Any


class RunningCells:
    """The cells that have begun and not ended, on any thread."""

    def __init__(self) -> None:
        self._cells: list[tuple[int, Info]] = []  # with their threads, innermost last

    def __contains__(self, info: Info) -> bool:
        return any(running is info for _, running in self._cells)

    def begin(self, info: Info) -> None:
        """This thread runs it from here on."""
        self._cells.append((threading.get_ident(), info))

    def end(self, info: Info) -> Info:
        """The cell that ended, taken off the list; None where it is none of this thread's.

        Where a cell ends by an exception outside its own code (an interrupt inside IPython), the event carries a new
        ``ExecutionInfo`` or nothing at all: then it is this thread's innermost cell, if the text agrees.
        """
        mine = self._mine()
        index = next((i for i in mine if self._cells[i][1] is info), None)
        if index is None and mine and (info is None or info.raw_cell == self._cells[mine[-1]][1].raw_cell):
            index = mine[-1]
        if index is None:
            return None
        ended = self._cells[index][1]
        for i in reversed([i for i in mine if i >= index]):  # cells inside it whose end was not announced go with it
            del self._cells[i]
        return ended

    def innermost(self) -> Info:
        """The innermost cell that this thread is running, None where it is running none."""
        mine = self._mine()
        return self._cells[mine[-1]][1] if mine else None

    def _mine(self) -> list[int]:
        """Places of this thread's cells."""
        return [i for i, (thread, _) in enumerate(self._cells) if thread == threading.get_ident()]

"""Our own faults, kept from the cell: each becomes one line of the report, and the time that ours took is counted."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ipyvram.probes import ending

MAX_NOTES = 50


class Guard:
    """Runs what ipyvram does during a cell; call it with what would be lost, in words, and the action.

    Attributes
    ----------
    notes : list of str
        One line for each kind of fault, and whatever else was noted.
    seconds : float
        Time spent in guarded actions.
    after : callable
        Called when the program goes on.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.seconds = 0.0
        self.after: Callable[[], None] = lambda: None
        self._depth = 0

    def __call__(self, what: str, action: Callable[[], None]) -> None:
        """Run ``action``; a failure becomes a note and costs only what ``action`` would have recorded."""
        begin, self._depth = time.perf_counter(), self._depth + 1
        try:
            # A mode or a class of the user's is not to see what we ask of tensors.
            with torch._C.DisableTorchFunction():
                action()
        except Exception as error:
            info = ending.error_info(error)
            self.note(f"{what}: {info.type}: {info.message}".rstrip(": ")[:300])
        finally:
            self._depth -= 1
            if not self._depth:  # what runs within another is in that one's time
                self.after()
                self.seconds += time.perf_counter() - begin

    def note(self, text: str) -> None:
        """Have one more line in the report, unless it is there or there are too many."""
        if text not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(text)

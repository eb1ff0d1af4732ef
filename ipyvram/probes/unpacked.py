"""Which nodes of a graph keep tensors as they are: numbers of nodes come in, yes or no goes out.

Newer torch shows what a node saved as it lies there. Older torch only unpacks it, which is harmless where no hook packed it,
and runs a checkpoint's forward again where one did. So there `saved_tensors_hooks` are watched while a cell is traced: a node
that was made in that time, outside of all of them, may be asked.
"""

from __future__ import annotations

import gc
import sys
import threading
from bisect import bisect_right
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from ipyvram.patches import Patches

_OPEN = sys.maxsize


class Unpacked:
    """Ranges of sequence numbers, ascending; they are those of one thread."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._thread = 0
        self._depth = 0

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._begins, number) - 1
        return place >= 0 and number < self._ends[place]

    def watch(self, patches: Patches) -> None:
        """Look from now on, until ``patches`` are undone.

        Nothing is known where hooks may be in place already: torch does not tell, but whoever set them holds their context.
        """
        owner: Any = torch._C._autograd
        number = getattr(owner, "_get_sequence_nr", None)
        push, pop = owner._push_saved_tensors_default_hooks, owner._pop_saved_tensors_default_hooks
        if number is None or any(issubclass(kind, saved_tensors_hooks) for kind in set(map(type, gc.get_objects()))):
            return
        if threading.get_ident() != self._thread:  # other numbers
            self._begins, self._ends, self._thread = [], [], threading.get_ident()
        self._depth = 0

        def pushed(*hooks: Any) -> Any:
            result = push(*hooks)
            if threading.get_ident() == self._thread:
                self._depth += 1
                self._end(number())
            return result

        def popped() -> Any:
            result = pop()
            if threading.get_ident() == self._thread:
                self._depth -= 1
                if not self._depth:
                    self._begin(number())
            return result

        patches.set(owner, push.__name__, pushed)
        patches.set(owner, pop.__name__, popped)
        patches.later(lambda: self._end(number()))
        self._begin(number())

    def _begin(self, number: int) -> None:
        self._begins.append(number)
        self._ends.append(_OPEN)

    def _end(self, number: int) -> None:
        if self._ends and self._ends[-1] == _OPEN:
            self._ends[-1] = number


#: Of this process.
UNPACKED = Unpacked()

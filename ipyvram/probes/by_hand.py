"""Steps that no optimizer tells of: the ends of backwards come in, how many steps were made since goes out.

A program may update its parameters itself (``p -= lr * p.grad``), and an optimizer in a compiled function runs no hook. What is left of
a step is that the next backward finds the gradient gone, replaced or zeroed, or the parameter changed.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ipyvram.probes.tensors import is_parameter
from ipyvram.recording import BY_HAND, Mark

#: Steps after which it is sure that no optimizer will tell of them: the first may be a part of one (SAM looks from elsewhere first).
_SURE = 2
#: Looks at all objects there are for the optimizers among them; one takes 20 to 100 ms.
_SEARCHES = 4


class _End(NamedTuple):
    """Of a backward, or the begin of a traced stretch: how many marks there were, and the time."""

    marks: int
    time_ns: int


class _Left(NamedTuple):
    """What a backward has left: a leaf with its gradient, if it made that, and how often each had been written to."""

    leaf: weakref.ref[Tensor]
    version: int
    shape: torch.Size
    gradient: weakref.ref[Tensor] | None
    gradient_version: int

    @classmethod
    def of(cls, leaf: Tensor) -> _Left:
        gradient = leaf.grad
        ref, version = (None, 0) if gradient is None else (weakref.ref(gradient), gradient._version)
        return cls(weakref.ref(leaf), leaf._version, leaf.shape, ref, version)

    def changed(self) -> bool:
        """Whether the leaf was written to since."""
        leaf = self.leaf()
        return leaf is not None and leaf._version != self.version

    def anew(self) -> bool:
        """Whether the gradient is gone, another one, or was written to since (zeroed)."""
        leaf = self.leaf()
        if leaf is None or self.gradient is None:
            return False
        return leaf.grad is None or leaf.grad is not self.gradient() or leaf.grad._version != self.gradient_version


class ByHand:
    """Watches one leaf that the last backward reached: a parameter, where there is one.

    A gradient begun anew or a leaf that has changed tell of a step. Where an optimizer has the leaf, only both do: it would tell itself
    if it did not run in compiled code, gradients may be taken one by one before (of each task, of each sample), and a forward may
    bound the norm of its weights.

    Attributes
    ----------
    found : bool
        Whether steps were found, and no optimizer tells of any.
    """

    def __init__(self) -> None:
        self.found = self._told = False
        self._waiting: list[_End] = []  # ends of the backwards after which there seems to have been a step
        self._end = _End(0, 0)
        self._left: _Left | None = None
        self._asked = False  # whether the step since then was found
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}  # by id of a parameter
        self._searched: set[int] = set()  # ids of leaves whose optimizer was looked for
        self._searches = 0

    def told(self) -> None:
        """An optimizer tells of a step; its steps are those of the program."""
        if not self._told:
            self.found, self._told, self._left = False, True, None
            self._waiting.clear()

    def traced(self, marks: int, time_ns: int) -> None:
        """A traced stretch begins, with so many marks from those before."""
        self._end = _End(marks, time_ns)

    def ended(self, leaves: Sequence[Tensor] | None = None, marks: int = 0, time_ns: int = 0) -> None:
        """A backward has ended that reached these leaves; None: it was not traced, and reached the same as before."""
        if self._told:
            return
        left = self._left
        leaf = _first(leaves) if leaves is not None else left.leaf() if left is not None else None
        if leaf is None:
            self._asked &= leaves is not None  # made anew in each step, and gone now
            return
        if leaf.grad is None and left is not None and left.gradient is not None:
            return  # of `torch.autograd.grad`, within a step of others
        if left is not None and left.leaf() is None and left.shape != leaf.shape and not self.found:
            self._waiting.clear()  # the one before is not made anew, it is gone: this is something else
        self._left, self._end, self._asked = _Left.of(leaf), _End(marks, time_ns), False

    def steps(self, marks: list[Mark], step: int, over: bool = False, failed: bool = False) -> int:
        """How many steps are known now and were not before; ``marks``, the last of which are of ``step``, has them then.

        Parameters
        ----------
        over : bool
            The program has ended, and ``failed`` or not; else the next backward begins.
        """
        if self._told or self._left is None:
            return 0
        if not self._asked and self._stepped(self._left, over and not failed):
            self._waiting.append(self._end)
            self._asked = True
        if over:
            self._left = None
        if len(self._waiting) < _SURE and not self.found and not over:
            return 0
        made, self._waiting = self._waiting, []
        self.found |= bool(made)
        _put(marks, made, step)
        return len(made)

    def _stepped(self, left: _Left, well: bool) -> bool:
        """Whether a step was made since the last backward; ``well``: the program has ended well."""
        if well and (self.found or self._waiting):
            return True  # as after the backwards before
        if left.leaf() is None:  # each step makes its parameters anew; `torch.func.grad` does so within any
            return left.gradient is not None and not well
        changed, anew = left.changed(), left.anew() and not well
        return (changed or anew) and (self.optimizer() is None or (changed and anew))

    def optimizer(self) -> torch.optim.Optimizer | None:
        """The one that has the leaf."""
        leaf = None if self._left is None else self._left.leaf()
        if leaf is None:
            return None
        if id(leaf) not in self._searched and self._searches < _SEARCHES:
            self._searches += 1
            # By the type: `isinstance` asks an object for its class, which lazy proxies answer by loading.
            found = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
            self._optimizers |= {
                id(p): weakref.ref(o) for o in found for group in o.param_groups for p in group["params"]
            }
        self._searched.add(id(leaf))
        found_ref = self._optimizers.get(id(leaf))
        return None if found_ref is None else found_ref()


def _first(leaves: Sequence[Tensor]) -> Tensor | None:
    """The leaf that is watched of these: one with a gradient before others, a parameter before others."""
    given = [leaf for leaf in leaves if leaf.grad is not None] or leaves
    return next(filter(is_parameter, given), given[0] if given else None)


def _put(marks: list[Mark], ends: Sequence[_End], step: int) -> None:
    """End a step after each of these backwards: where the next model is called, or at once where none is."""
    for n, end in reversed(list(enumerate(ends))):
        following = range(end.marks, ends[n + 1].marks if n + 1 < len(ends) else len(marks))
        at = next((i for i in following if marks[i].kind == "forward" and marks[i].begin), None)
        time_ns = end.time_ns if at is None else marks[at].time_ns
        later = [mark._replace(step=mark.step + 1) for mark in marks[end.marks if at is None else at :]]
        both = [Mark(time_ns, "optimizer", begin, step, BY_HAND) for begin in (True, False)]
        marks[end.marks if at is None else at :] = both + later

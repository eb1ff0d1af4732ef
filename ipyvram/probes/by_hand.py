"""Steps that no optimizer tells of: the ends of backwards come in, how many steps were made since goes out.

A program may update its parameters itself (``p -= lr * p.grad``), and an optimizer in a compiled function runs no hook. What is left of
a step is that the next backward finds the gradient gone, replaced or zeroed, or the parameter changed.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Sequence
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
    """What a backward has left: a leaf with its gradient, and how often each had been written to."""

    leaf: weakref.ref[Tensor]
    gradient: weakref.ref[Tensor]
    versions: tuple[int, int]
    shape: torch.Size


class ByHand:
    """Watches one leaf that the last backward reached: a parameter, where there is one.

    A gradient that is begun anew is not enough where an optimizer has the leaf: it will tell of its step, and gradients may be taken
    one by one before (of each task, of each sample). Then the leaf must have changed, too.

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
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}  # by id of a parameter
        self._asked: set[int] = set()  # ids of leaves whose optimizer was looked for
        self._searches = 0

    def told(self) -> None:
        """An optimizer tells of a step; its steps are those of the program."""
        if not self._told:
            self.found, self._told, self._left = False, True, None
            self._waiting.clear()

    def traced(self, marks: int, time_ns: int) -> None:
        """A traced stretch begins, with so many marks from those before."""
        self._end = _End(marks, time_ns)

    def ended(self, leaves: Iterable[Tensor] = (), marks: int = 0, time_ns: int = 0) -> None:
        """A backward has ended that reached these leaves; without any, the same as the one before, which was not traced."""
        if self._told:
            return
        given = [leaf for leaf in leaves if leaf.grad is not None]
        if (
            not given
            and self._left is not None
            and (before := self._left.leaf()) is not None
            and before.grad is not None
        ):
            given = [before]
        if not given:
            return  # gone, or made by `torch.autograd.grad`: what the one before has left is asked for on
        leaf = next(filter(is_parameter, given), given[0])
        assert leaf.grad is not None
        if self._left is not None and self._left.leaf() is None and self._left.shape != leaf.shape and not self.found:
            self._waiting.clear()  # the one before is not made anew, it is gone: this is something else
        self._left = _Left(weakref.ref(leaf), weakref.ref(leaf.grad), (leaf._version, leaf.grad._version), leaf.shape)
        self._end = _End(marks, time_ns)

    def steps(self, marks: list[Mark], step: int, over: bool = False, failed: bool = False) -> int:
        """How many steps are known now and were not before; ``marks``, the last of which are of ``step``, has them then.

        Parameters
        ----------
        over : bool
            The program has ended, and ``failed`` or not; else the next backward begins.
        """
        if self._told or self._left is None:
            return 0
        goes_on = over and not failed and (self.found or bool(self._waiting))  # as after the backwards before
        if goes_on or self._stepped(self._left, surely=over and not failed):
            self._waiting.append(self._end)
        if over:
            self._left = None
        if len(self._waiting) < _SURE and not self.found and not over:
            return 0
        made, self._waiting = self._waiting, []
        self.found |= bool(made)
        _put(marks, made, step)
        return len(made)

    def _stepped(self, left: _Left, surely: bool) -> bool:
        """Whether a step was made since the last backward; ``surely``: by what has changed, not by what was let go of."""
        leaf, gradient = left.leaf(), left.gradient()
        if leaf is not None and leaf._version != left.versions[0]:
            return True
        if surely:
            return False
        if leaf is None:  # each step makes its parameters anew
            return True
        now = leaf.grad
        anew = now is None or now is not gradient or now._version != left.versions[1]
        return anew and self.optimizer() is None

    def optimizer(self) -> torch.optim.Optimizer | None:
        """The one that has the leaf."""
        leaf = None if self._left is None else self._left.leaf()
        if leaf is None:
            return None
        if id(leaf) not in self._asked and self._searches < _SEARCHES:
            self._searches += 1
            # By the type: `isinstance` asks an object for its class, which lazy proxies answer by loading.
            found = [o for o in gc.get_objects() if issubclass(type(o), torch.optim.Optimizer)]
            self._optimizers |= {
                id(p): weakref.ref(o) for o in found for group in o.param_groups for p in group["params"]
            }
        self._asked.add(id(leaf))
        found_ref = self._optimizers.get(id(leaf))
        return None if found_ref is None else found_ref()


def _put(marks: list[Mark], ends: Sequence[_End], step: int) -> None:
    """End a step after each of these backwards: where the next model is called, or at once where none is."""
    for n, end in reversed(list(enumerate(ends))):
        following = range(end.marks, ends[n + 1].marks if n + 1 < len(ends) else len(marks))
        at = next((i for i in following if marks[i].kind == "forward" and marks[i].begin), None)
        time_ns = end.time_ns if at is None else marks[at].time_ns
        later = [mark._replace(step=mark.step + 1) for mark in marks[end.marks if at is None else at :]]
        both = [Mark(time_ns, "optimizer", begin, step, BY_HAND) for begin in (True, False)]
        marks[end.marks if at is None else at :] = both + later

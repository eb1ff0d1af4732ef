"""How many steps the program has made: hooks of all optimizers tell of them, or where none does, what backwards find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import optimizer as optimizer_hooks

from ipyvram.patches import Patches
from ipyvram.probes.backward import watch_engine
from ipyvram.probes.by_hand import ByHand
from ipyvram.probes.clock import Clock
from ipyvram.probes.stepping import News, Stepping, within_own_step
from ipyvram.probes.uncompiled import uncompiled
from ipyvram.recording import Mark


class StepCount:
    """Counts from the first traced stretch to the end of the cell.

    Parameters
    ----------
    marks : list of Mark
        Of the traced steps: those that no optimizer tells of are put in.
    on_step : callable
        Called with the number of finished steps, after each; within a backward, when that is over.
    on_update : callable
        Called with each optimizer whose step begins (True) or has ended (False) in a traced stretch.
    on_compiled : callable
        Called with an optimizer that made a traced step in compiled code.

    Attributes
    ----------
    tracing : bool
    stepped : set of int
        Ids of the optimizers that have made a step in this stretch.
    news : News or None
        Of an optimizer that no trace has covered.
    in_backward : int
        How many backwards are running, one inside the other.
    """

    def __init__(
        self,
        clock: Clock,
        marks: list[Mark],
        guard: Callable[[str, Callable[[], None]], None],
        on_step: Callable[[int], None],
        on_update: Callable[[torch.optim.Optimizer, bool], None],
        on_compiled: Callable[[torch.optim.Optimizer], None],
    ) -> None:
        self._clock, self._marks, self._guard = clock, marks, guard
        self._on_step, self._on_update, self._on_compiled = on_step, on_update, on_compiled
        self.tracing = False
        self.stepped: set[int] = set()
        self.news: News | None = None
        self.in_backward = 0
        self._stepping = Stepping()
        self._by_hand = ByHand()
        self._untold = False  # a step was made that was not told yet
        self._hooks: list[Any] = []
        self._backwards = Patches()  # where steps are counted by the backwards, between traces

    @property
    def steps(self) -> int:
        """Steps of the program so far, traced or not; see `Stepping`."""
        return self._stepping.steps

    @property
    def by_hand(self) -> bool:
        """Whether no optimizer tells of the steps."""
        return self._by_hand.found

    @property
    def optimizer(self) -> str:
        """The class of the optimizer that stepped first; empty while none has."""
        return self._stepping.first

    # -- life --------------------------------------------------------------------------------------------------------

    def trace(self) -> None:
        """A traced stretch begins."""
        self.tracing = True
        self.stepped.clear()
        self.news = None
        if not self._hooks:  # they stay to the end: hooks of all cannot be taken away while torch walks through them
            self._hooks = [
                optimizer_hooks.register_optimizer_step_pre_hook(self._before_step),
                optimizer_hooks.register_optimizer_step_post_hook(self._after_step),
            ]
        self._by_hand.traced(len(self._marks), self._clock())
        self._backwards.undo()

    def stop_tracing(self) -> None:
        """The stretch has ended: steps are still counted."""
        self.tracing = False
        if self._by_hand.found:
            watch_engine(self._backwards, self._count_backward)

    def over(self, failed: bool) -> None:
        """The program has ended: it may have made a step since its last backward."""
        self._find(over=True, failed=failed)

    def stop(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._backwards.undo()

    # -- optimizers tell ---------------------------------------------------------------------------------------------

    @uncompiled
    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if within_own_step(optimizer):
            return
        self._by_hand.told()
        if self.tracing:
            self._on_update(optimizer, True)

    @uncompiled
    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if within_own_step(optimizer):
            return
        if self.tracing:
            self._on_update(optimizer, False)
        self._guard("optimizer", lambda: self._count(optimizer))

    def _count(self, optimizer: torch.optim.Optimizer) -> None:
        news = None
        if self.tracing:
            self.stepped.add(id(optimizer))
            self._stepping.cover(optimizer)
        else:
            news = self._stepping.news(optimizer)
            self.news = news or self.news
        if self._stepping.stepped(optimizer, begins=news is not None):
            self._untold = True
            self._tell()

    def _tell(self) -> None:
        """A step within a backward (an optimizer in the hook of each parameter) is told when that is over: a trace ends whole."""
        if self._untold and not self.in_backward:
            self._untold = False
            self._guard("optimizer", lambda: self._on_step(self.steps))

    # -- backwards find ----------------------------------------------------------------------------------------------

    def begin_backward(self) -> None:
        """The engine begins."""
        self.in_backward += 1
        if self.in_backward == 1:
            self._guard("steps could not be counted", self._find)

    def end_backward(self, leaves: Sequence[Tensor] | None = None) -> None:
        """The engine has ended; it reached these leaves, None where that was not traced."""
        self.in_backward -= 1
        if not self.in_backward and leaves is None:
            self._by_hand.ended()
        elif not self.in_backward:
            self._by_hand.ended(leaves, len(self._marks), self._clock())
        self._tell()

    def _count_backward(self, roots: Any) -> Callable[[], None]:
        self.begin_backward()
        return self.end_backward

    def _find(self, over: bool = False, failed: bool = False) -> None:
        """Steps since the last backward that no optimizer told of; they are told at the end of this one."""
        made = self._by_hand.steps(self._marks if self.tracing else [], self.steps + 1, over, failed)
        if not made:
            return
        optimizer = self._by_hand.optimizer()
        self._stepping.by_hand(made, optimizer)
        self._untold = not over
        if optimizer is not None and self.tracing:
            self._on_compiled(optimizer)

"""What the program does comes in: forwards, ends of steps, evaluations, figures; out comes when its traced stretches begin and end.

The first steps are traced, and others later where there is a reason to. Between these stretches what is left costs nothing you
notice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils import _python_dispatch as dispatch_modes

from ipyvram.bounds import Bounds
from ipyvram.devices import cuda_possible
from ipyvram.guarding import Guard
from ipyvram.probes import counters
from ipyvram.probes.clock import Clock
from ipyvram.probes.evaluations import FORWARDS, Evaluations
from ipyvram.probes.owners import Owners
from ipyvram.probes.phases import Phases
from ipyvram.recording import Observation
from ipyvram.tracing import Tracing
from ipyvram.watch import Watch

#: At least so long between two looks at the allocator's counters when steps end; a look takes 50 µs.
STEP_PERIOD_S = 0.005


class Arming:
    """Arms what traces, on the thread that calls `start`, and takes it away.

    Parameters
    ----------
    clock, guard
        Those of the run.
    steps : int
        Steps to trace at first; 0 for all there are.
    namespace : mapping
        See `Owners`.
    budget : mapping of str to int, optional
        See `StorageTrace`.
    by_hand : callable, optional
        See `Run`.

    Attributes
    ----------
    tracing, owners, phases, watch
        What is armed, and what decides whether it is again.
    armed : bool
        Whether a stretch is being traced.
    over : bool
        Nothing is armed any more.
    traced_steps : int
        Steps of the stretches that have ended.
    rose : Observation or None
        The last step, not traced, by whose end memory had risen.
    error : BaseException or None
        What the cell has ended with, until its last stretch has ended too.
    """

    def __init__(
        self,
        clock: Clock,
        guard: Guard,
        steps: int,
        namespace: Mapping[str, Any],
        budget: Mapping[str, int] | None,
        by_hand: Callable[[int], None] | None,
    ) -> None:
        self._clock, self._guard, self._by_hand = clock, guard, by_hand
        self.tracing = Tracing(clock, guard, self._expired, budget)
        self.owners = Owners(clock, self.tracing.identify, namespace, self.tracing.use)
        self.phases = Phases(clock, self.owners, self._on_step, self._on_forward, guard, self.tracing.phase)
        self.watch = Watch()
        self.rose: Observation | None = None
        self.error: BaseException | None = None
        self._evaluations = Evaluations(self._on_evaluation)
        self._bounds = Bounds(steps)  # of the traced stretch
        self.armed = self.over = False
        self._ran = False  # whether a model or a backward has run
        self.traced_steps = self._seen_ns = 0
        self._thread = threading.get_ident()

    def start(self, undo: Callable[[str, Callable[[], None]], None]) -> None:
        """Arm the first stretch; ``undo`` is told what takes everything away, and what to say should that fail."""
        self._thread = threading.get_ident()
        undo("phases did not stop cleanly", self.phases.stop)
        undo("an evaluation is still waited for", self._evaluations.stop)
        self._guard("an evaluation would not be noticed", self._evaluations.start)
        undo("tracing did not stop cleanly", partial(self.tracing.stop, "end of cell"))
        undo("tracing did not stop cleanly", partial(self.stop, "end of cell"))
        self._begin(before=True)

    def _begin(self, before: bool) -> None:
        """Arm the probes of one traced stretch; ``before``: what the namespace holds was there before the cell."""
        self._bounds.begin(self.phases.count.steps, self._clock(), self._guard.seconds)
        self.tracing.start(cuda_possible())
        self.armed = True
        self._guard("the namespace could not be read", lambda: self.owners.variables.claim(before=before, left=True))
        if before:
            self._guard("what was there before is not in the budget", lambda: self.tracing.count(self.owners.claims))
        self._guard("phases are unavailable", self.phases.start)

    def _on_forward(self, module: nn.Module | None, args: tuple[Any, ...]) -> None:
        """Notice a model on the CPU of a machine with a GPU; end the trace of a cell without steps at its bounds."""
        if not self._ran:
            self._ran = True
            self._bounds.begin(self._bounds.first, self._clock(), self._guard.seconds)
        self._bounds.passes += 1
        if module is not None:
            if self.tracing.notice(module):
                self.owners.forget()  # what no trace followed so far
            if threading.get_ident() != self._thread and not cuda_possible():
                self._guard.note(
                    "a model ran on another thread than the cell's: what operators allocated there is not traced"
                )
            if self._bounds.evaluation and self.armed and self._evaluations.forward(module):
                self.stop(f"{FORWARDS} forwards of an evaluation")
        if reason := self.tracing.ended_by or self._expired():
            self.stop(reason)

    def _expired(self) -> str:
        """Why a trace without an optimizer step should end, an empty string while it should not."""
        if not self.armed:
            return ""
        return self._bounds.expired(
            self.phases.count.steps, self._clock(), self._guard.seconds, self.tracing.event_count
        )

    def _on_step(self, steps: int) -> None:
        self._follow_step(steps)
        if self._by_hand is not None and self.phases.count.by_hand:
            self._by_hand(steps)

    def _follow_step(self, steps: int) -> None:
        if not self.armed:
            self._guard("the watch for growth is blind", self._see_figures)
            reason, news, self.phases.count.news = self.watch.reason(), self.phases.count.news, None
            if (rose := self.watch.rose) is not None:
                self.rose = Observation("rose", rose[1], count=steps, device=rose[0])
                self.watch.rose = None
            if news is not None:
                self._retrace(Bounds(why=news.why, awaited=news.optimizer))
            elif reason:
                self._retrace(Bounds(why=reason))
            return
        self.watch.learn_step()
        if not self.watch.doubling() and (reason := self._bounds.reached(steps, self.phases.count.stepped)):
            self.stop(reason)

    def _on_evaluation(self, module: nn.Module | None, args: tuple[Any, ...]) -> None:
        """Trace an evaluation that begins; ``module`` is about to run, None where nothing is yet."""

        def begin() -> None:
            if self._retrace(Bounds(why="an evaluation began", evaluation=True)) and module is not None:
                self.phases.join(module, args)

        self._guard("an evaluation is not traced", begin)

    def _see_figures(self) -> None:
        """Read the allocator's counters between two samples too: a few quick steps may be over before the next."""
        if (self._clock() - self._seen_ns) / 1e9 < STEP_PERIOD_S:
            return
        for device in counters.devices_in_use():
            if device != "cpu":
                self.watch.see_figures(device, counters.read(device))
        self._seen_ns = self._clock()

    def see(self, device: str, figures: Mapping[str, float]) -> None:
        """What the sampler has read, on its thread."""
        look = self.watch.learn_figures if self.armed else self.watch.see_figures
        look(device, figures)

    def stop(self, ended_by: str) -> None:
        """End the stretch that is being traced, if one is; ``ended_by`` is why, in words."""
        if not self.armed:
            return
        self.traced_steps += self.phases.count.steps - self._bounds.first
        self._guard("the namespace could not be read", self.owners.variables.claim)
        if self.error is not None:  # right after the variables: `x` says more than an argument of some frame
            self._guard("what the error holds is unknown", partial(self.owners.variables.held_by, self.error))
        self._guard("kept graphs could not be read", lambda: self.owners.graphs.kept(self.phases.read))
        self._guard("the watch for growth is blind", self._learn_figures)
        self.armed = False
        self._guard("phases did not stop cleanly", self.phases.stop_tracing)
        self.tracing.stop(ended_by)
        self._evaluations.listen()

    def _learn_figures(self) -> None:
        for device in counters.devices_in_use():
            self.watch.learn_figures(device, counters.read(device))

    def retrace(self, reason: str) -> bool:
        """Trace from here to the end of the next optimizer step, if no trace is running and the bound allows it.

        Parameters
        ----------
        reason : str
            In words; the report shows it.

        Returns
        -------
        bool
            Whether a trace was started. Off CUDA not inside somebody's dispatch mode: leaving it would take ours away.
        """
        return self._retrace(Bounds(why=reason))

    def _retrace(self, bounds: Bounds) -> bool:
        if self.armed or self.over or not self.watch.allows():
            return False
        inside = bool(dispatch_modes._get_current_dispatch_mode_stack()) and not cuda_possible()
        if inside or threading.get_ident() != self._thread:
            return False
        self._evaluations.silence()
        self.watch.retraces += 1
        self._bounds = bounds
        self.owners.forget()
        self._begin(before=False)
        return True

"""What a trial lets see of itself: the shape of its batches and the time of its steps; ends it when that is enough.

The end is a private `BaseException` out of the optimizer's post-hook (of a backward, where no optimizer tells of steps): an
``except Exception`` of the user's does not swallow it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as optimizer_hooks

from ipyvram.probes.stepping import within_own_step
from ipyvram.sweep.batch_seen import BatchSeen


class Enough(BaseException):
    """The trial has seen its steps."""


class Watch:
    """Hooks of one trial.

    Parameters
    ----------
    warmup, timed : int
        Optimizer steps before the clock counts, and those that it counts; the last of them ends the trial.
    clock : callable
        Seconds.

    Attributes
    ----------
    steps : int
        Finished steps of the first optimizer; of the program, where none tells.
    """

    def __init__(self, warmup: int, timed: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._warmup, self._timed, self._clock = warmup, timed, clock
        self._batches = BatchSeen(self._count)
        self.steps = 0
        self._seconds: list[float] = []
        self._samples: list[int] = []
        self._total = self._since = 0  # samples since the start, since the last step
        self._optimizer: int | None = None
        self._last = self._begin = 0.0
        self._handle: Any = None
        self._duration = 0.0

    def start(self) -> None:
        """Register the hooks; after those of the measurement, so that its work is not in our times."""
        self._batches.start()
        self._handle = optimizer_hooks.register_optimizer_step_post_hook(self._after_step)
        self._begin = self._last = self._clock()

    def stop(self) -> None:
        """Take the hooks away."""
        self._batches.stop()
        if self._handle is not None:
            self._handle.remove()
            self._duration = self._clock() - self._begin
        self._handle = None

    @property
    def shape(self) -> tuple[int, ...]:
        """See `BatchSeen.shape`."""
        return self._batches.shape

    @property
    def timed_steps(self) -> int:
        """Steps that were timed."""
        return len(self._seconds)

    @property
    def step_s(self) -> float | None:
        """Median seconds of a timed step; None without one."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def samples_per_s(self) -> float | None:
        """Samples through the root module a second: in the timed steps, or in all where there were no steps."""
        if self._seconds:
            samples = statistics.median(self._samples)
            return samples / statistics.median(self._seconds) if samples else None
        return self._total / self._duration if self._total and self._duration and not self.steps else None

    def _count(self, samples: int) -> None:
        self._total += samples
        self._since += samples

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if within_own_step(optimizer):
            return
        if self._optimizer is None:
            self._optimizer, self.steps = id(optimizer), 0  # with several optimizers, the first one counts the steps
        if id(optimizer) == self._optimizer:
            self._made(1)

    def by_hand(self, steps: int) -> None:
        """So many steps have been made of which no optimizer tells, up to the backward that ends now."""
        if self._optimizer is None:
            self._made(steps - self.steps)

    def _made(self, steps: int) -> None:
        self.steps += steps
        if self.steps >= self._warmup:
            synchronize()
        now = self._clock()
        if self.steps > self._warmup:
            self._seconds.append(now - self._last)
            self._samples.append(self._since)
        self._last, self._since = now, 0
        if self.steps >= self._warmup + self._timed:
            raise Enough


def synchronize() -> None:
    """Wait for the devices that are in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()

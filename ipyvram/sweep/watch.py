"""What a trial lets see of itself: the shape of its batches and the time of its steps; ends it when that is enough.

The end is a private `BaseException` out of the optimizer's post-hook: an ``except Exception`` of the user's does not
swallow it.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.optim import optimizer as optimizer_hooks

from ipyvram.probes.tensors import tensors_in


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
    shape : tuple of int
        Of the largest batch (by dim 0) that a root module was given; empty where none was.
    steps : int
        Finished steps of the first optimizer.
    """

    def __init__(self, warmup: int, timed: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._warmup, self._timed, self._clock = warmup, timed, clock
        self.shape: tuple[int, ...] = ()
        self._learns = False  # whether a module with parameters was given it: a loss may be given the words of all samples in a row
        self.steps = 0
        self._seconds: list[float] = []
        self._samples: list[int] = []
        self._total = self._since = 0  # samples since the start, since the last step
        self._depth = 0
        self._root: nn.Module | None = None
        self._unseen = False  # inside a root module that was not given a tensor by position
        self._leader: int | None = None
        self._optimizer: int | None = None
        self._last = self._begin = 0.0
        self._thread = threading.get_ident()
        self._handles: list[Any] = []
        self._duration = 0.0

    def start(self) -> None:
        """Register the hooks; after those of the measurement, so that its work is not in our times."""
        self._handles = [
            global_hooks.register_module_forward_pre_hook(self._before_forward),
            global_hooks.register_module_forward_hook(self._after_forward, always_call=True),
            optimizer_hooks.register_optimizer_step_post_hook(self._after_step),
        ]
        self._begin = self._last = self._clock()

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self._duration = self._clock() - self._begin
        self._handles, self._root = [], None  # a model that is held here would count as left over

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

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread:
            return
        if self._depth == 0:
            self._unseen = not self._look(module, args)
            self._root = module
        elif self._unseen:  # called with keywords only, which these hooks are not shown: its first part tells
            self._unseen = not self._look(self._root, args)
        self._depth += 1

    def _look(self, root: nn.Module | None, args: tuple[Any, ...]) -> bool:
        batch = next((t for t in tensors_in(args) if isinstance(t, Tensor) and t.dim() > 0), None)
        if batch is None:
            return False
        shape = tuple(batch.shape)
        learns = root is not None and next(root.parameters(), None) is not None
        if not self.shape or (learns, shape[0]) > (self._learns, self.shape[0]):
            self.shape, self._learns = shape, learns
        if self._leader is None:
            self._leader = id(root)
        if id(root) == self._leader:
            self._total += shape[0]
            self._since += shape[0]
        return True

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == self._thread:
            self._depth = max(0, self._depth - 1)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._optimizer is None:
            self._optimizer = id(optimizer)  # with several optimizers, the first one counts the steps
        if id(optimizer) != self._optimizer:
            return
        self.steps += 1
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

"""Whether this process uses CUDA yet, and what is to happen at the moment it begins; nothing here begins it.

To ask the allocator before that ends the process (`_cuda_isHistoryEnabled` reads an empty list of devices), and to switch
its history on starts the driver, after which forked processes cannot use CUDA: `notebook_launcher` would fail because of us.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch


def in_use() -> bool:
    """Whether torch has started CUDA in this process."""
    return bool(torch.cuda.is_initialized())


def when_in_use(action: Callable[[], None]) -> Callable[[], None]:
    """Run ``action`` now, or when the program starts CUDA, before its first allocation there.

    Parameters
    ----------
    action : callable
        Torch calls it on the thread that starts CUDA, within ``torch.cuda._lazy_init``: an error of it would be the
        program's, so a late one is swallowed; what is to be told of it, it has to tell itself.

    Returns
    -------
    callable
        Calls the action off if it has not run yet.
    """
    if in_use():
        action()
        return lambda: None
    waiting = _Waiting(action)
    queue: Any = getattr(torch.cuda, "_lazy_call", None)
    if queue is not None:
        queue(waiting)
    return waiting.cancel


class _Waiting:
    """Runs its action once at most, and not in a process that was forked meanwhile: nobody would end it there."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action
        self._process = os.getpid()

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None and os.getpid() == self._process:
            try:
                action()
            except Exception:
                pass

    def cancel(self) -> None:
        if self._action is None:
            return
        self._action = None
        queued: Any = getattr(torch.cuda, "_queued_calls", None)
        if isinstance(queued, list):
            queued[:] = [entry for entry in queued if entry[0] is not self]

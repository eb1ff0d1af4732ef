"""Threads that the estimated code starts: they see the simulated card as the code itself does, and what is the user's ends with it.

A loader that copies to the card on a thread of its own would else ask this machine for a GPU; and one that waits for room in
its queue, which nobody empties any more, would keep its batches.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ipyvram.patches import Patches
from ipyvram.probes.stacks import is_user_file
from ipyvram.simulated.device import OnCard
from ipyvram.simulated.front import Front

#: How long the estimate waits for its threads to end, all of them together.
_WAIT_S = 0.5


class Threads:
    """The threads of one estimate.

    Parameters
    ----------
    modes : callable
        Gives the two modes for one thread.
    enough : type
        What ends the estimate; a thread that trains ends by it too.
    """

    def __init__(self, modes: Callable[[], tuple[Front, OnCard]], enough: type[BaseException]) -> None:
        self._modes, self._enough = modes, enough
        self._started: list[threading.Thread] = []
        self._entered: list[Front | OnCard] = []

    def install(self, patches: Patches) -> None:
        """From here on a thread that code under our modes starts has them, too."""
        start = threading.Thread.start

        def started(thread: threading.Thread) -> None:
            if any(isinstance(mode, OnCard) for mode in _get_current_dispatch_mode_stack()):
                vars(thread)["run"] = functools.partial(self._run, thread, thread.run)
                self._started.append(thread)
            start(thread)

        patches.set(threading.Thread, "start", started)

    def _run(self, thread: threading.Thread, run: Callable[[], Any]) -> None:
        vars(thread).pop("run", None)  # the thread held itself
        front, on_card = self._modes()
        self._entered += (front, on_card)
        with contextlib.suppress(self._enough, SystemExit), front, on_card:
            run()

    def finish(self) -> None:
        """The estimate is over. Functions of the user's end where they are; a library's thread goes on without our modes."""
        for mode in self._entered:
            mode.over = True
        living = [thread for thread in self._started if thread.is_alive() and _end(thread)]
        until = time.monotonic() + _WAIT_S
        for thread in living:
            thread.join(max(0.0, until - time.monotonic()))
        self._started.clear()


def _end(thread: threading.Thread) -> bool:
    """Whether the user's code runs on it: Python ends that when it next runs, and what waits for a queue or an event is woken."""
    frames, frame = list[FrameType](), sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    if not any(is_user_file(frame.f_code.co_filename) for frame in frames):
        return False
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    waits = (frame.f_locals.get("self") for frame in frames if frame.f_code is threading.Condition.wait.__code__)
    condition = next(waits, None)
    if isinstance(condition, threading.Condition) and condition.acquire(timeout=0.1):
        try:
            condition.notify_all()
        finally:
            condition.release()
    return True

"""Ctrl-C that arrives while Python tells us that a storage has ended: it comes in through a hook and is sent once more.

What is raised in the callback of a weak reference is printed and dropped. In a tight loop of operators on the CPU a good part
of the time is spent there, and the user's interrupt would be lost with it.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from typing import Any

#: Seconds until the interrupt is sent again: by then the callback has returned.
_AGAIN_S = 0.01


class Interrupts:
    """Watches one callback from `start` to `stop`.

    Parameters
    ----------
    callback : function or method
        The callback of the weak references.
    repair : callable
        Called after an interrupt: does what the callback was about to do.
    """

    def __init__(self, callback: Callable[..., None], repair: Callable[[], None]) -> None:
        self._code, self._repair = callback.__code__, repair
        self._before: Callable[[Any], Any] | None = None

    def start(self) -> None:
        """Stand before the hook that prints what was raised where nothing can be raised."""
        self._before = sys.unraisablehook
        sys.unraisablehook = self._raised

    def stop(self) -> None:
        """Give the place back, unless somebody else stands there now."""
        if self._before is not None and sys.unraisablehook == self._raised:
            sys.unraisablehook = self._before

    def _raised(self, unraisable: Any) -> None:
        # It begins in the callback; from Python 3.14 on nothing else says which one it was.
        trace = unraisable.exc_traceback
        if unraisable.exc_type is KeyboardInterrupt and trace is not None and trace.tb_frame.f_code is self._code:
            self._repair()
            again = threading.Timer(_AGAIN_S, _thread.interrupt_main)
            again.daemon = True
            again.start()
        elif self._before is not None:
            self._before(unraisable)

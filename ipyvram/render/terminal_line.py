"""One line of a terminal that is rewritten in place and never in the way: texts come in, what the cell prints stays whole.

While the line is shown, what the cell writes to the terminal is looked at on its way: the line is erased before it, and is
drawn again only where the cell's text ended with a line. So neither is ever mixed with the other, and a progress bar, which leaves
its line open, has the terminal to itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from ipyvram.render.columns import display_width


class TerminalLine:
    """From `__init__` to `close`, on standard error."""

    def __init__(self) -> None:
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._write, self._flush = sys.stderr.write, sys.stderr.flush  # past our own eyes
        self._dumb = os.environ.get("TERM") == "dumb"  # then a line is erased with spaces
        self._width, self._open = 0, False  # of what is shown; whether the cell's last line goes on
        streams = {id(stream): stream for stream in (sys.stdout, sys.stderr)}.values()
        self._undo = [self._observed(stream) for stream in streams if getattr(stream, "isatty", lambda: False)()]

    def show(self, text: str) -> None:
        """Replace what was shown; not while the cell's own line is open."""
        with self._lock:
            if not self._open:
                self._rewrite(text)

    def close(self) -> None:
        """Erase the line and look at nothing any more."""
        with self._lock:
            self._erase()
            for undo in self._undo:
                undo()
            self._undo = []

    def _observed(self, stream: Any) -> Callable[[], None]:
        """Have the stream tell of each text; gives what undoes that."""
        write = stream.write

        def observed(text: str) -> Any:
            __tracebackhide__ = True
            if os.getpid() != self._pid:  # a forked child: the lock may be held by a thread that it has not
                return write(text)
            with self._lock:
                with contextlib.suppress(Exception):
                    self._make_way(text)
                return write(text)

        def undo() -> None:
            if vars(stream).get("write") is observed:
                del stream.write

        try:
            stream.write = observed
        except AttributeError:  # a stream that cannot be told from outside
            return lambda: None
        return undo

    def _make_way(self, text: str) -> None:
        self._erase()
        if text:
            self._open = not text.endswith("\n")

    def _erase(self) -> None:
        if self._width:
            self._rewrite("")

    def _rewrite(self, text: str) -> None:
        self._write(("\r" + " " * self._width + "\r" if self._dumb else "\r\x1b[K") + text)
        self._flush()
        self._width = display_width(text)

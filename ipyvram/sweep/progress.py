"""One line that says how far a sweep is: texts come in; a display that is updated, or a line of a terminal, goes out."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

#: ``publish_display_data`` of IPython, or nothing outside of a kernel.
Publish = Callable[..., Any]


class ProgressLine:
    """Shows each text in place of the one before; an empty text takes the line away.

    Parameters
    ----------
    publish : callable or None
        Publishes a display in a notebook; None for a line of the terminal, if there is one.
    """

    def __init__(self, publish: Publish | None = None) -> None:
        self._publish, self._id, self._shown = publish, uuid.uuid4().hex, ""

    def __call__(self, text: str) -> None:
        """Show a text."""
        if text == self._shown:
            return
        if self._publish is not None:
            self._publish({"text/plain": text}, transient={"display_id": self._id}, update=bool(self._shown))
        elif sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K" + text)
            sys.stderr.flush()
        self._shown = text

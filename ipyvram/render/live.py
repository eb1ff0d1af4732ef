"""The live meter: shows what a running cell takes, from a thread, until the report appears.

In a notebook it has one place among the outputs of the cell (`render.place`); the thread only ever says what that place is to
show, a few times a second and only when its words changed, and never prints or clears. In a terminal it is one line on
stderr (`render.terminal_line`). A fault ends the meter, nothing else.
"""

from __future__ import annotations

import contextvars
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from IPython.core.displaypub import CapturingDisplayPublisher

from ipyvram.pulse import Pulse
from ipyvram.render.meter import Meter
from ipyvram.render.meter_html import meter_html
from ipyvram.render.place import AnyPlace, place_for
from ipyvram.render.terminal import encodes
from ipyvram.render.terminal_line import TerminalLine

FIRST_S = 1.0  # a cell that ends earlier shows no meter
PERIOD_S = 0.35
_JOIN_S = 1.0  # of a thread that cannot get the interpreter; it ends by itself later


class Screen(Protocol):
    """Where a meter is shown: `show` on the meter's thread, `close` on the cell's."""

    def show(self, meter: Meter) -> None:
        """Replace what was shown."""

    def close(self) -> str | None:
        """Take it away; see `render.place.AnyPlace.close` for what it answers."""


class NotebookScreen:
    """A place among the outputs of the cell."""

    def __init__(self, place: AnyPlace) -> None:
        self._place, self._shown = place, ""

    def show(self, meter: Meter) -> None:
        """Update the place, if there is anything new to say."""
        html = meter_html(meter)
        if html != self._shown:
            self._shown = html
            self._place.show({"text/plain": meter.text(), "text/html": html})

    def close(self) -> str | None:
        """Empty the place."""
        return self._place.close()


class TerminalScreen:
    """One line of the terminal, rewritten."""

    def __init__(self) -> None:
        self._line = TerminalLine()
        self._unicode = encodes(getattr(sys.stderr, "encoding", None))

    def show(self, meter: Meter) -> None:
        """Rewrite the line."""
        self._line.show(meter.line(shutil.get_terminal_size((80, 24)).columns - 1, self._unicode))

    def close(self) -> str | None:
        """Erase the line."""
        self._line.close()
        return None


def screen_for(ip: Any) -> Screen | None:
    """Where this shell can show a meter; None where it cannot (output to a file, a pipe or a ``%%capture``)."""
    if isinstance(ip.display_pub, CapturingDisplayPublisher):
        return None
    if hasattr(ip, "kernel"):
        return NotebookScreen(place_for(ip))
    return TerminalScreen() if getattr(sys.stderr, "isatty", lambda: False)() else None


class LiveMeter:
    """Asks for a pulse and shows it, from `start` to `stop`; neither raises.

    Parameters
    ----------
    pulse : callable
        The running cell now, or None when there is nothing to tell yet. Called on the meter's thread.
    """

    def __init__(self, screen: Screen, pulse: Callable[[], Pulse | None], first_s: float = FIRST_S) -> None:
        self._screen, self._pulse, self._first_s = screen, pulse, first_s
        self._stop = threading.Event()
        # With the cell's context: ipykernel 7.0 finds the cell that an output belongs to in a context variable.
        work = (contextvars.copy_context().run, self._work)
        self._thread = threading.Thread(target=work[0], args=(work[1],), name="ipyvram-meter", daemon=True)

    def start(self) -> None:
        """Begin; the first second is silent."""
        self._thread.start()

    def stop(self) -> str | None:
        """End, and take the meter away.

        Returns
        -------
        str or None
            The display id under which the report is to be shown, where a display of its own would wipe what the cell left.
        """
        self._stop.set()
        self._thread.join(_JOIN_S)
        try:
            return self._screen.close()
        except Exception:
            return None  # the output is gone: so is the meter

    def _work(self) -> None:
        meter, wait = Meter(), self._first_s
        while not self._stop.wait(wait):
            wait = PERIOD_S
            try:
                pulse = self._pulse()
                if pulse is not None:
                    meter.feed(pulse)
                    if not self._stop.is_set():
                        self._screen.show(meter)
            except Exception:
                return  # a meter that cannot be shown is no reason to disturb the cell

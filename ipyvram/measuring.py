"""One measurement that cannot harm what it measures: options and a cell come in, a `Report` or one-line notes go out.

`run.Run` observes and `analysis.analyse` explains; this holds them together for `magic` and for `measure`, turns every
fault of theirs into a note, and sees to it that only one measurement runs at a time.
"""

from __future__ import annotations

import linecache
import logging
import re
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ipyvram import journal
from ipyvram.options import DEFAULT_SHARE, Options, from_keywords

if TYPE_CHECKING:
    from ipyvram.pulse import Pulse
    from ipyvram.recording import Cell, Recording
    from ipyvram.report import Report
    from ipyvram.run import Run

logger = logging.getLogger("ipyvram")

_UNCLEAN = "could not stop its probes cleanly"
_NO_CARD = (
    "ipyvram: --limit {:g}% is a share of a card, and there is none here: add --card 24GiB, or write a size as 8GiB"
)

_lock = threading.Lock()
_current: Measurement | None = None


def is_busy() -> bool:
    """Whether a measurement is running."""
    return _current is not None


def fault(what: str, error: BaseException) -> str:
    """A failure of ours in one line: ``could not start: KeyError: 'x'``."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"ipyvram {what}: {text[:300]}"


class Measurement:
    """A run from `start` to `finish`; neither raises anything but what the user's Ctrl-C raises in `start`.

    Attributes
    ----------
    notes : list of str
        One line each about what did not work and what that means.
    refused : bool
        Once finished: whether the budget refused an allocation, also where the program got over that.
    recording : Recording or None
        Once finished: what was observed, if the report is not kept.

    Parameters
    ----------
    budget : dict of str to int, optional
        Bytes that may be live on a device type without an allocator of its own; see `probes.storages.StorageTrace`.
    keep : bool
        Whether the report becomes the newest one of the session.
    by_hand : callable, optional
        See `Run`.
    """

    def __init__(
        self,
        options: Options,
        cell: Cell,
        namespace: dict[str, Any] | None,
        *,
        budget: dict[str, int] | None = None,
        keep: bool = True,
        by_hand: Callable[[int], None] | None = None,
    ) -> None:
        self.options, self.notes = options, list[str]()
        self._by_hand = by_hand
        self._cell, self._namespace = cell, namespace
        self._budget, self._keep = budget, keep
        self.refused = False
        self.recording: Recording | None = None
        self._run: Run | None = None

    def start(self) -> None:
        """Start the probes, unless another measurement is running."""
        global _current
        with _lock:
            if _current is not None:
                other = _current.options.label
                inside = f"{other!r}" if other else "another measured cell"
                self.notes.append(f"ipyvram: not measured on its own: it ran inside {inside}, which includes it")
                return
            _current = self
        try:
            from ipyvram.run import Run

            self._run = Run(self.options, self._cell, self._namespace, self._budget, self._by_hand)
            self._run.start()
        except Exception as error:
            self.notes.append(fault("could not start, so this ran unmeasured", error))
            self.abandon()
        except BaseException:  # the user's Ctrl-C
            self.abandon()
            raise

    def pulse(self) -> Pulse | None:
        """What the run tells of itself now; None where nothing is running."""
        run = self._run
        return run.pulse() if run is not None else None

    def finish(self, error: BaseException | None = None) -> Report | None:
        """Stop the probes and explain what they saw; None, and a note, where that fails."""
        run = self._run
        if run is None:
            return None
        doing = _UNCLEAN
        try:
            recording, self.refused = run.stop(error), run.refused
            self.recording = None if self._keep else recording
            doing = "measured this but could not analyse it"
            from ipyvram.analysis import analyse

            report = analyse(recording)
            share, size = self.options.limit
            if share is not None and size is None and share != DEFAULT_SHARE and report.limit_bytes is None:
                self.notes.append(_NO_CARD.format(share * 100))
            if self._keep:
                journal.add(report)
        except (Exception, KeyboardInterrupt) as failure:
            self.notes.append(fault(doing, failure))
            return None
        else:
            return report
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the run and of all that it holds, whatever state it is in."""
        global _current
        run, self._run, self._namespace = self._run, None, None
        try:
            if run is not None:
                run.stop()  # does nothing where it has stopped already
        except (Exception, KeyboardInterrupt) as failure:
            note = fault(_UNCLEAN, failure)
            if note not in self.notes:
                self.notes.append(note)
        finally:
            with _lock:
                if _current is self:
                    _current = None


class measure:
    """Measure a block of code: ``with ipyvram.measure("baseline") as m: train()``, then ``m.report``.

    Parameters
    ----------
    label : str, optional
        A name for the report.
    **options
        ``note``, ``limit``, ``card``, ``interval``, ``trace_steps``, ``device``: as for ``%%vram``, as text or number.

    Attributes
    ----------
    report : Report or None
        What was measured, once the block has ended, also when it raised. None where ipyvram itself failed: the
        ``ipyvram`` logger then says why in one line. The block's own exceptions always pass untouched.

    Raises
    ------
    ValueError
        An option's value is wrong or the device is not there; before the block runs.
    TypeError
        There is no such option.

    Examples
    --------
    >>> with measure("baseline", limit="90%") as m:  # doctest: +SKIP
    ...     train()
    >>> m.report.peak_bytes  # doctest: +SKIP
    """

    def __init__(self, label: str | None = None, **options: Any) -> None:
        self.options = from_keywords(label, **options)
        self.report: Report | None = None
        self._measurement: Measurement | None = None

    def __enter__(self) -> measure:
        if self.options.device is not None:
            from ipyvram.run import check_device

            check_device(self.options.device)
        caller = sys._getframe(1)
        # A function's locals are not handed over: a snapshot of them would keep alive what the block deletes.
        namespace = caller.f_globals if caller.f_locals is caller.f_globals else None
        self.report = None
        self._measurement = Measurement(self.options, _cell_of(caller), namespace)
        self._measurement.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        measurement, self._measurement = self._measurement, None
        if measurement is not None:
            self.report = measurement.finish(error)
            for note in measurement.notes:
                logger.warning(note)


def retrace() -> bool:
    """Trace the running measurement again, exactly, from here to the end of its next optimizer step.

    For the step that you want to see and that comes after the traced ones: ``if step == 500: ipyvram.retrace()``.

    Returns
    -------
    bool
        Whether a trace was started. False where none is measured, where one is being traced anyway, beyond the bound of
        four, on another thread than the cell's, and inside a dispatch mode of your own.
    """
    current = _current
    run = None if current is None else current._run
    return run is not None and run.retrace("asked for")


def _cell_of(caller: FrameType) -> Cell:
    """Where a ``with`` block stands: its file, its first line and the text from there on."""
    from ipyvram.recording import Cell

    filename, first = caller.f_code.co_filename, caller.f_lineno
    lines = linecache.getlines(filename, caller.f_globals)[first - 1 : first - 1 + 200]
    end = 1
    for end, line in enumerate(lines[1:], 1):  # noqa: B007 - the block ends where the indentation goes back
        if line.strip() and _indent(line) <= _indent(lines[0]) and not re.match(r"\s*[)\]}]", line):
            break
    else:
        end = len(lines)
    return Cell(source="".join(lines[:end]), filename=filename, first_line=first)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())

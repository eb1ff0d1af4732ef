"""The thread that samples at a period: readers of devices in, `Samples` out, in bounded memory however long the cell.

A sample is late when the interpreter is busy or the machine suspends; the longest gap is kept, so that nobody takes a
sampled peak for an exact one.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ipyvram.probes import counters
from ipyvram.recording import SAMPLE_COLUMNS, Samples

if TYPE_CHECKING:
    from ipyvram.probes.nvml import Cards

Figures = Mapping[str, float]
Reader = Callable[[str], Figures]

MAX_ROWS = 8192  # per device, 1 MB; when full, rows are merged two by two, so that a row stands for more samples
_JOIN_S = 2.0  # a driver call that hangs for longer is left behind with its daemon thread


def combined_reader(cards: Cards | None) -> Reader:
    """One reader of torch's counters and of the card: through the driver, or where that says nothing through CUDA."""

    def read(device: str) -> dict[str, float]:
        found: dict[str, float] = dict(counters.read(device))
        if cards is not None:
            found |= cards.read(device)
        if "device_used" not in found:
            found |= counters.card_memory(device)
        if "process_used" in found and not _of_one_moment(device, found):
            found.pop("process_used")
            found.pop("other_processes", None)
        return found

    return read


def _of_one_moment(device: str, found: Figures) -> bool:
    """Whether the driver's figure for this process goes with torch's: else their difference is not the context."""
    if found["process_used"] < found.get("reserved", 0.0):
        return False  # somebody else's PID in the driver's numbering
    return counters.read(device).get("reserved") == found.get("reserved")  # or memory was taken meanwhile


class Sampler:
    """Samples every device in use from `start` to `stop`.

    Parameters
    ----------
    clock : callable
        Time in ns.
    reader : callable
        Device id → its figures now, named as `recording.SAMPLE_COLUMNS`; other names are passed over.
    devices_in_use : callable
        Ids of the devices to read, asked before every sample.
    interval_s : float
        Seconds from one sample to the next.

    Attributes
    ----------
    latest : mapping of str to mapping
        Device id → the figures of the last sample; replaced as a whole, never changed in place.
    on_sample : callable or None
        Called with `latest` on the sampler's thread after each sample; one that raises is not called again.
    notes : list of str
        What could not be read, one line each.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        reader: Reader,
        devices_in_use: Callable[[], Sequence[str]],
        interval_s: float,
    ) -> None:
        self._clock, self._reader, self._devices, self._interval_s = clock, reader, devices_in_use, interval_s
        self.latest: Mapping[str, Figures] = {}
        self.on_sample: Callable[[Mapping[str, Figures]], None] | None = None
        self.notes: list[str] = []
        self._series: dict[str, _Series] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take one sample here, and the next ones on a thread of their own."""
        self.sample()
        # Within a copy of this context an update of a display finds the cell it belongs to.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._loop,), name="ipyvram-sampler", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        due = self._clock() + self._interval_s * 1e9
        while not self._stop.wait(max(0.0, (due - self._clock()) / 1e9)):
            try:
                self.sample()
            except Exception as error:  # on stderr it would be the cell's
                self._note(f"sampling stopped early: {_line(error)}")
                return
            due = max(due + self._interval_s * 1e9, self._clock())  # after a gap: no burst to catch up

    def stop(self) -> tuple[Samples, ...]:
        """Stop the thread, take a last sample, and hand over everything. Returns at once, whatever the period."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(_JOIN_S)
            if thread.is_alive():
                self._note(f"a sample did not come back within {_JOIN_S:.0f} s and was left behind")
                return self._samples()
            self.sample()
        return self._samples()

    def sample(self) -> None:
        """Read every device once. A fault costs the figures of one device in one sample, and a note."""
        latest: dict[str, Figures] = {}
        try:
            devices = self._devices()
        except Exception as error:
            self._note(f"devices in use could not be listed: {_line(error)}")
            devices = list(self._series)
        for device in devices:
            now = self._clock()
            figures: Figures = {}
            try:
                figures = self._reader(device)
            except Exception as error:
                self._note(f"{device} could not be sampled: {_line(error)}")
            with self._lock:
                series = self._series.get(device)
                if series is None:
                    series = self._series[device] = _Series(MAX_ROWS)
                series.add(now, figures)
            latest[device] = figures
        self.latest = latest
        if self.on_sample is not None:
            try:
                self.on_sample(latest)
            except Exception as error:
                self.on_sample = None
                self._note(f"the live view stopped: {_line(error)}")

    def _samples(self) -> tuple[Samples, ...]:
        with self._lock:
            return tuple(series.samples(device, self._interval_s) for device, series in self._series.items())

    def _note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 20:
            self.notes.append(text)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


class _Series:
    """Samples of one device in at most ``max_rows`` rows; a row is each column's maximum over ``stride`` samples."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows, self._stride, self._rows, self._filled = max_rows, 1, 0, 0
        self._time = np.empty(256, np.int64)
        self._values = np.full((256, len(SAMPLE_COLUMNS)), np.nan)
        self.count, self._last_ns, self._longest_ns = 0, 0, 0

    def add(self, time_ns: int, figures: Figures) -> None:
        if self.count:
            self._longest_ns = max(self._longest_ns, time_ns - self._last_ns)
        self.count, self._last_ns = self.count + 1, time_ns
        if self._filled == 0:
            self._open_row(time_ns)
        row = self._values[self._rows - 1]
        for name, value in figures.items():
            column = _COLUMN.get(name)
            if column is not None and not row[column] >= value:  # also where the row still holds NaN
                row[column] = value
        self._filled = (self._filled + 1) % self._stride

    def _open_row(self, time_ns: int) -> None:
        if self._rows == self._max_rows:
            self._merge()
        if self._rows == len(self._time):
            room = min(len(self._time), self._max_rows - len(self._time))
            self._time = np.concatenate([self._time, np.empty(room, np.int64)])
            self._values = np.concatenate([self._values, np.full((room, len(SAMPLE_COLUMNS)), np.nan)])
        self._time[self._rows] = time_ns
        self._rows += 1

    def _merge(self) -> None:
        """Two rows become one. All rows are full here: one is only opened when the last one is."""
        half = self._rows // 2
        self._time[:half] = self._time[: 2 * half : 2]
        self._values[:half] = np.fmax(self._values[: 2 * half : 2], self._values[1 : 2 * half : 2])
        self._values[half:] = np.nan
        self._rows, self._stride = half, self._stride * 2

    def samples(self, device: str, period_s: float) -> Samples:
        values = self._values[: self._rows]
        columns: dict[str, NDArray[np.float64]] = {
            name: values[:, i].copy() for name, i in _COLUMN.items() if not np.isnan(values[:, i]).all()
        }
        return Samples(device, self._time[: self._rows].copy(), columns, self.count, self._longest_ns / 1e9, period_s)


_COLUMN = {name: i for i, name in enumerate(SAMPLE_COLUMNS)}

"""What the allocator's counters and the sampler say of one device comes in; what was reserved, and the rest of the card, goes out."""

from __future__ import annotations

import numpy as np

from ipyvram.ledger import Ints
from ipyvram.recording import Recording, Samples
from ipyvram.thinning import pick

#: Columns of samples that a timeline shows; the first that there is says which instants are kept.
_SHOWN = ("allocated", "reserved", "device_used", "process_rss")


class DeviceFigures:
    """Figures beside the account, bytes.

    Parameters
    ----------
    recording : Recording
    device : str
        Its id.
    samples : Samples or None
        What the sampler saw of it.
    reserved : int64 or None
        Bytes in segments at each instant of the trace, see `Ledger`.
    """

    def __init__(self, recording: Recording, device: str, samples: Samples | None, reserved: Ints | None) -> None:
        self._samples, self._reserved = samples, reserved
        self._before, self._after = recording.counters_start.get(device, {}), recording.counters_end.get(device, {})

    def reserved_at(self, instant: int, allocated: int) -> int | None:
        """At an instant of the trace with so many bytes allocated; without segments, the most that was sampled."""
        if self._reserved is not None:
            return max(int(self._reserved[instant]), allocated)
        sampled = self._most_sampled()
        return None if sampled is None else max(sampled, allocated)

    def peak_reserved(self) -> int | None:
        """The most that any of them tells of."""
        figures = [int(self._reserved.max())] if self._reserved is not None else []
        if self._after.get("reserved_peak", 0) > self._before.get("reserved_peak", 0):
            figures.append(self._after["reserved_peak"])
        if (sampled := self._most_sampled()) is not None:
            figures.append(sampled)
        return max(figures, default=None)

    def _most_sampled(self) -> int | None:
        column = None if self._samples is None else self._samples.columns.get("reserved")
        return None if column is None else int(np.nanmax(column, initial=0))

    def card(self, time_ns: int, allocated: int, reserved: int | None, card_bytes: int) -> dict[str, int]:
        """The rest of the card, from the sample nearest to a time; what is unknown counts as free."""
        held = reserved if reserved is not None else allocated
        context = others = 0
        row = self._nearest_sample(time_ns, "process_used")
        used, process, at_sample = row.get("device_used"), row.get("process_used"), row.get("reserved")
        if used is not None and at_sample is not None:
            mine = process if process is not None else used
            context, others = max(0, mine - at_sample), max(0, used - mine)
        return {
            "cache": held - allocated,
            "context": context,
            "other_processes": others,
            "free": card_bytes - held - context - others,
        }

    def _nearest_sample(self, time_ns: int, wanted: str) -> dict[str, int]:
        """The sample nearest to a time, of those that have the wanted figure, if any has."""
        if self._samples is None or not len(self._samples.time_ns):
            return {}
        apart = np.abs(self._samples.time_ns - time_ns).astype(np.float64)
        if wanted in self._samples.columns:
            apart[np.isnan(self._samples.columns[wanted])] = np.inf
        i = int(np.argmin(apart))
        return {name: int(c[i]) for name, c in self._samples.columns.items() if not np.isnan(c[i])}

    def allocator(self) -> dict[str, int]:
        """How often the allocator had to retry in this cell, and its bytes before it and at the end."""
        before, after = self._before, self._after
        changes: dict[str, int] = {
            name: after[name] - before.get(name, 0) for name in ("retries", "ooms") if name in after
        }
        if before.get("reserved"):
            changes["reserved_before"] = before["reserved"]
        return changes | {name: after[name] for name in ("allocated", "reserved", "inactive_split") if name in after}

    def sampled(self, points: int) -> tuple[Ints, dict[str, tuple[int | None, ...]]]:
        """Times of about so many samples, and their figures; None where one was unavailable."""
        if self._samples is None or not len(self._samples.time_ns):
            return np.array([], np.int64), {}
        columns = {c: self._samples.columns[c] for c in _SHOWN if c in self._samples.columns}
        leading = next(iter(columns.values()), np.zeros(len(self._samples.time_ns)))
        rows = pick(self._samples.time_ns.astype(np.float64), np.nan_to_num(leading).astype(np.int64), points)
        return self._samples.time_ns[rows], {c: tuple(map(_whole, values[rows])) for c, values in columns.items()}


def _whole(value: float) -> int | None:
    return None if np.isnan(value) else int(value)

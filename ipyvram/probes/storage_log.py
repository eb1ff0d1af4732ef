"""What each device's storages did, as rows of a trace; and the budget that ends it as a full card would."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch

from ipyvram.recording import Block, Events, OomEvent, Trace

#: As in `recording.Events`: action, address, size, stream, time, stack, origin.
Row = tuple[int, int, int, int, int, int, int]


class Live(weakref.ref):  # type: ignore[type-arg]
    """A live storage; the reference tells when it ends."""

    __slots__ = ("key", "log", "node", "serial", "size")
    key: int  # identity of the storage while it lives
    serial: int  # its address in the trace, never used again
    size: int
    node: int  # the node of the autograd graph that made it
    log: StorageLog


class StorageLog:
    """Rows and baseline of one device.

    Parameters
    ----------
    name : str
        The device, as the trace calls it.
    budget : int or None
        Bytes that may be live.
    """

    __slots__ = ("baseline", "budget", "bytes", "name", "rows")

    def __init__(self, name: str, budget: int | None) -> None:
        self.name, self.budget, self.bytes = name, budget, 0
        self.rows: list[Row] = []
        self.baseline: list[Block] = []

    def fits(self, more: int) -> bool:
        """Whether ``more`` bytes are within the budget."""
        return self.budget is None or self.bytes + more <= self.budget

    def refusal(self, size: int, time_ns: int, stack: int, origin: int) -> OomEvent:
        """The record of an allocation that does not fit."""
        return OomEvent(
            time_ns=time_ns,
            device=self.name,
            requested_bytes=size,
            limit_bytes=self.budget,
            allocated_bytes=self.bytes,
            free_bytes=max(0, (self.budget or 0) - self.bytes),
            budget=True,
            stack=stack,
            origin=origin,
        )

    def trace(self, start_ns: int, stop_ns: int, ended_by: str) -> Trace:
        """Everything so far; threads may have interleaved, so rows are sorted by time."""
        events = Events.from_rows(sorted(self.rows, key=_time_of))
        return Trace(self.name, "storages", start_ns, stop_ns, events, tuple(self.baseline), ended_by=ended_by)

    def out_of_memory(self, size: int) -> str:
        """In the words of the CUDA allocator, so that code which reads them (and people) need not learn others."""
        kind, _, index = self.name.partition(":")
        budget = self.budget or 0
        return (
            f"{kind.upper()} out of memory. Tried to allocate {_size(size)}. {'GPU ' + index if index else self.name} has a "
            f"total capacity of {_size(budget)} of which {_size(max(0, budget - self.bytes))} is free. Of the allocated "
            f"memory {_size(self.bytes)} is allocated by PyTorch."
        )


class DeviceLogs:
    """The log of each device that is followed, by the name that the trace gives it.

    Parameters
    ----------
    budget, names, skip
        ``budget``, ``device_names`` and ``skip`` of `StorageTrace`.
    """

    def __init__(self, budget: Mapping[str, int], names: Mapping[str, str], skip: frozenset[str]) -> None:
        self._budget, self._names, self._skip = budget, names, skip
        self._logs: dict[torch.device, StorageLog | None] = {}
        self.by_name: dict[str, StorageLog] = {}

    def name(self, device: torch.device) -> str:
        """What the trace calls a device."""
        name = str(device)
        return self._names.get(name) or self._names.get(device.type) or name

    def of(self, storage: torch.UntypedStorage) -> StorageLog | None:
        """The log of a storage's device, None where that is not followed."""
        device = storage.device
        try:
            return self._logs[device]
        except KeyError:
            name = self.name(device)
            log = None
            if device.type not in self._skip and (name != "meta" or "meta" in self._names):
                budget = self._budget.get(name, self._budget.get(name.partition(":")[0]))
                log = self.by_name.setdefault(name, StorageLog(name, budget))
            self._logs[device] = log
            return log

    def traces(self, start_ns: int, stop_ns: int, ended_by: str) -> tuple[Trace, ...]:
        """One for each device that was used."""
        used = [log for log in self.by_name.values() if log.rows or log.baseline]
        return tuple(log.trace(start_ns, stop_ns, ended_by) for log in used)


def _time_of(row: Row) -> int:
    return row[4]


def _size(count: int) -> str:
    """As c10 writes it: two digits after the point, ``bytes`` below a KiB."""
    if count < 1024:
        return f"{count} bytes"
    unit, name = next((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if count >= u)
    return f"{count / unit:.2f} {name}"

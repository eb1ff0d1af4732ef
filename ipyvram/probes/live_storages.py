"""Storages that are made, met, resized and freed come in; which is which, and rows of their device's log, go out.

A weak reference on each storage tells its end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch

from ipyvram.probes.clock import Clock
from ipyvram.probes.engine import OUTSIDE, current_node
from ipyvram.probes.storage_log import DeviceLogs, Live, Row, StorageLog
from ipyvram.probes.uncompiled import alone
from ipyvram.recording import Action, Block

_ALLOC, _FREE = int(Action.ALLOC), int(Action.FREE_REQUESTED)
_ABOVE = 4  # calls between an operator and what reads its stack: `made`, `_output`, `record` and the mode


class _Held(NamedTuple):
    """Host memory that the cell has not used so far; ``first``: it was met before anything happened."""

    storage: weakref.ref[torch.UntypedStorage]
    serial: int
    first: bool


class LiveStorages:
    """Knows every storage of a trace while that lives, by a serial number that is never used for another one.

    Parameters
    ----------
    clock : Clock
    stacks : callable
        See `StorageTrace`.
    logs : DeviceLogs
        Where rows are written; a storage on a device without a log is not followed.
    followed : mapping of int to Live, optional
        What an earlier trace of the cell has left in `followed`: it counts from the start of this one.

    Attributes
    ----------
    by_key : dict of int to Live
        Identity of each storage → what is known of it. The same dict from begin to end.
    serial : int
        The last number that was given.
    event_count : int
        Rows written so far, on all devices.
    followed : dict of int to Live
        After `close`: what this and earlier traces have seen and is still there.
    """

    def __init__(
        self, clock: Clock, stacks: Callable[[int], int], logs: DeviceLogs, followed: Mapping[int, Live] | None = None
    ) -> None:
        self.by_key: dict[int, Live] = {}
        self.serial = self.event_count = 0
        self.followed = dict(followed or {})
        self._clock, self._stacks, self._log_of = clock, stacks, logs.of
        self._held: dict[int, _Held] = {}
        self._reusing: tuple[Live, Live, Row] | None = None  # operand, result, and its row if the operand survives

    def close(self) -> None:
        """What ends from here on is nobody's business."""
        self.flush()
        both = self.followed | self.by_key
        self.followed = {key: live for key, live in both.items() if live() is not None}
        self.by_key.clear()
        self._held.clear()

    # -- who is who --------------------------------------------------------------------------------------------------

    def known(self, storage: torch.UntypedStorage) -> Live | None:
        """A storage that the trace follows already and that takes memory."""
        live = self.by_key.get(storage._cdata)
        return live if live is not None and live.size else None

    def identify(self, storage: torch.UntypedStorage, before: bool = False) -> int:
        """The serial number of a storage, its address in the trace; never used for another one.

        Parameters
        ----------
        storage : torch.UntypedStorage
            A storage not seen so far is recorded as found: ``before`` says that it was there when the trace began, else it
            appeared now (data that no operator of this thread made). Host memory that was there before counts from when
            the cell uses it: the rest of a process's tensors are not this cell's.
        """
        known = self.by_key.get(storage._cdata)
        if known is None:
            log = self._log_of(storage)
            if log is None:
                self.serial += 1
                return self.serial  # matches nothing
            held = self._held.get(storage._cdata)
            if held is not None and held.storage() is storage:
                return held.serial
            if before and storage.device.type == "cpu" and not self._is_followed(storage):
                self.serial += 1
                self._held[storage._cdata] = _Held(weakref.ref(storage), self.serial, first=not self.event_count)
                return self.serial
            known = self.found(storage, log, before)
        return known.serial

    def use(self, storage: torch.UntypedStorage) -> bool:
        """Compiled code uses it, which no operator tells: it counts from the begin if it was met before all events.

        Returns
        -------
        bool
            Whether it counts from now on, and did not before.
        """
        held, log = self._held.get(storage._cdata), self._log_of(storage)
        if log is None or held is None or held.storage() is not storage:
            return False
        self.found(storage, log, before=held.first, used=True)
        return not held.first

    def count(self, serials: Collection[int]) -> None:
        """These of the host memory that was met count from now on, used or not."""
        for held in [held for held in self._held.values() if held.serial in serials]:
            if (storage := held.storage()) is not None:
                self.use(storage)

    def _is_followed(self, storage: torch.UntypedStorage) -> bool:
        """Whether an earlier trace of the cell has seen it: then it is the cell's, used or not."""
        live = self.followed.get(storage._cdata)
        return live is not None and live() is storage

    # -- begins and ends ---------------------------------------------------------------------------------------------

    def found(
        self, storage: torch.UntypedStorage, log: StorageLog, before: bool, origin: int = -1, used: bool = False
    ) -> Live:
        """A storage that no operator was seen to make."""
        held = self._held.pop(storage._cdata, None)
        live = self._watch(storage, storage.nbytes(), log, OUTSIDE)
        if held is not None and held.storage() is storage:
            live.serial, before = held.serial, before or not used
        if before:
            log.baseline.append(Block(live.serial, live.size, live.size))
        else:
            self.flush()
            self.event_count += 1
            log.rows.append((_ALLOC, live.serial, live.size, 0, self._clock(), self._stacks(0), origin))
        return live

    def made(
        self, storage: torch.UntypedStorage, size: int, log: StorageLog, origin: int, reused: Live | None = None
    ) -> None:
        """An operator has made it; without the mode it would be written over ``reused``, if nobody else holds that."""
        live = self._watch(storage, size, log, current_node())
        if self._reusing is not None:
            self.flush()
        row = _ALLOC, live.serial, size, 0, self._clock(), self._stacks(_ABOVE), origin
        if reused is None:
            self.event_count += 1
            log.rows.append(row)
        else:
            self._reusing = reused, live, row

    def _watch(self, storage: torch.UntypedStorage, size: int, log: StorageLog, node: int) -> Live:
        live = Live(storage, self.freed)
        self.serial += 1
        live.key, live.serial, live.size = storage._cdata, self.serial, size
        live.log, live.node = log, node
        self.by_key[live.key] = live
        log.bytes += size
        return live

    def resized(self, live: Live, size: int, origin: int) -> None:
        """It lies elsewhere now."""
        self.flush()
        self.event_count += 2
        log, serial = live.log, live.serial
        log.rows.append((_FREE, serial, live.size, 0, self._clock(), -1, -1))
        log.bytes += size - live.size
        live.size = size
        log.rows.append((_ALLOC, serial, size, 0, self._clock(), self._stacks(0), origin))

    @alone
    def freed(self, live: Live) -> None:
        """The weak reference on it says that it has ended."""
        if self.by_key.get(live.key) is not live:
            return  # closed meanwhile
        del self.by_key[live.key]
        live.log.bytes -= live.size
        reusing = self._reusing
        if reusing is not None:
            if reusing[0] is live:
                reusing[1].serial = live.serial  # the result lives on in the place of its operand
                self._reusing = None
                return
            self.flush()
        self.event_count += 1
        live.log.rows.append((_FREE, live.serial, live.size, 0, self._clock(), -1, -1))

    def free_the_dead(self) -> None:
        """For a storage whose end we were not told."""
        for live in [live for live in self.by_key.values() if live() is None]:
            self.freed(live)

    def flush(self) -> None:
        """The operand of the last sum outlived it: the sum took memory of its own after all."""
        if self._reusing is not None:
            _, live, row = self._reusing
            self._reusing = None
            self.event_count += 1
            live.log.rows.append(row)

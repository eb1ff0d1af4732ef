"""The simulated card's memory: storages and scratch of a running program in, an allocator's trace out.

While the program runs, allocations are only numbered, in the order in which they are made. Addresses, segments and cache
come afterwards from the model of the caching allocator, with what was on the card before the cell placed first.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch

from ipyvram.probes.clock import Clock
from ipyvram.recording import Origin

DEVICE = "cuda:0"


EMPTIED = 0  #: as the serial of a row: the allocator's cache was emptied


class Row(NamedTuple):
    """An allocation (``alloc``) or the free of one; ``serial`` numbers allocations from 1 and is never used twice."""

    alloc: bool
    serial: int
    size: int
    time_ns: int
    stack: int
    origin: int


class DeviceMemory:
    """What is on the simulated card.

    Parameters
    ----------
    clock : Clock
    read_stack : callable
        Index of the current user stack.
    origins : callable
        Index of an `Origin`.

    Attributes
    ----------
    rows : list of Row
        What happened while the cell ran.
    before : dict of int to int
        Serial → bytes of what was there before the cell, in the order in which the cell came to it.
    before_alloc : callable
        Called before memory is asked for.
    aside : set of int
        Stacks of what other threads than the code's own allocated.
    """

    def __init__(self, clock: Clock, read_stack: Callable[[], int], origins: Callable[[Origin], int]) -> None:
        self._clock, self._read_stack, self._origins = clock, read_stack, origins
        self.rows: list[Row] = []
        self.before: dict[int, int] = {}
        self.before_alloc: Callable[[], None] = lambda: None
        self.aside: set[int] = set()
        self._thread = threading.get_ident()
        self.allocated = self.peak = 0  # bytes asked for, as far as known while the program runs
        self._serials: dict[int, int] = {}  # storage → serial, while it lives
        self._sizes: dict[int, int] = {}  # serial → bytes of its storage, as far as they are followed
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._waiting: dict[int, int] = {}  # storages of earlier cells that the cell has not touched yet → serial
        self._ignored: dict[int, torch.UntypedStorage] = {}  # kept, so that none takes the place of another
        self._numbers = itertools.count(1)  # threads of the program share it

    # -- storages ----------------------------------------------------------------------------------------------------

    def expect(self, storage: torch.UntypedStorage, resident: bool) -> None:
        """A storage of an earlier cell; if it was ``resident`` on a GPU it counts, else when the cell touches it."""
        key, serial = storage._cdata, self._number()
        self._waiting[key] = serial
        self._references[serial] = weakref.ref(storage, functools.partial(self._unused, key, serial))
        if resident:
            self._begin_before(storage)

    def see(self, storage: torch.UntypedStorage, op: str, tensor: torch.Tensor) -> int:
        """Serial of a storage that an operator used or made; a new one is an allocation now, one of another size another."""
        key = storage._cdata
        serial = self._serials.get(key)
        if serial is None:
            return self._begin_before(storage) if key in self._waiting else self._begin(storage, op, tensor)
        if self._sizes.get(serial, size := storage.nbytes()) == size:
            return serial
        # `resize_bytes_cuda` (Resize.cpp): the new memory, a copy, then the old goes.
        resized = self._begin(storage, op, tensor)
        self._freed(key, serial)
        return resized

    def ignore(self, storage: torch.UntypedStorage) -> None:
        """A storage that a real run would not make on the card."""
        self._serials.setdefault(storage._cdata, self._number())
        self._ignored[storage._cdata] = storage

    def ignores(self, storage: torch.UntypedStorage) -> bool:
        """Whether a real run would not have this storage on the card."""
        return storage._cdata in self._ignored

    def resident(self) -> set[int]:
        """Keys of the storages of earlier cells that count."""
        return {key for key, serial in self._serials.items() if serial in self.before}

    def release(self, key: int) -> None:
        """A storage of an earlier cell is let go of by the program, though not by us."""
        serial = self._serials.get(key)
        if serial in self.before:
            self._freed(key, serial)

    def identify(self, storage: torch.UntypedStorage) -> int:
        """Serial of a storage that somebody claims, 0 where it is unknown."""
        key = storage._cdata
        return self._serials.get(key) or self._waiting.get(key, 0)

    def is_newest(self, storage: torch.UntypedStorage) -> bool:
        """Whether the last thing that happened was the allocation of this storage."""
        return bool(self.rows) and self.rows[-1].alloc and self._serials.get(storage._cdata) == self.rows[-1].serial

    def _begin(self, storage: torch.UntypedStorage, op: str, tensor: torch.Tensor) -> int:
        origin = self._origins(Origin(op, tuple(tensor.size()), str(tensor.dtype).removeprefix("torch.")))
        serial = self._alloc(storage.nbytes(), origin)
        self._follow(storage, serial)
        return serial

    def _begin_before(self, storage: torch.UntypedStorage) -> int:
        serial, size = self._waiting.pop(storage._cdata), storage.nbytes()
        if size:
            self.before[serial] = size
            self._count(size)
        self._follow(storage, serial)
        return serial

    def _follow(self, storage: torch.UntypedStorage, serial: int) -> None:
        key = storage._cdata
        self._serials[key], self._sizes[serial] = serial, storage.nbytes()
        self._references[serial] = weakref.ref(storage, functools.partial(self._freed, key, serial))

    def _freed(self, key: int, serial: int, reference: object = None) -> None:
        if self._serials.get(key) == serial:
            del self._serials[key]
        if self._references.pop(serial, None) is not None:
            self.free(serial, self._sizes.pop(serial))

    def free_the_dead(self) -> None:
        """For storages whose end we were not told."""
        keys = {serial: key for key, serial in self._serials.items()}
        for serial in [n for n, reference in self._references.items() if reference() is None and n in self._sizes]:
            self._freed(keys.get(serial, -1), serial)

    def _unused(self, key: int, serial: int, reference: object) -> None:
        """The code let go of something that it never touched; another may come to lie there."""
        if self._waiting.get(key) == serial:
            del self._waiting[key], self._references[serial]

    # -- plain memory ------------------------------------------------------------------------------------------------

    def scratch(self, size: int, op: str) -> int:
        """Memory an operator asks for besides its results; give it back with `free`."""
        return self._alloc(size, self._origins(Origin(op)))

    def _number(self) -> int:
        return next(self._numbers)

    def _alloc(self, size: int, origin: int) -> int:
        self.before_alloc()
        serial = self._number()
        if size:  # torch asks its allocator for nothing when a tensor is empty
            stack = self._read_stack()
            if stack >= 0 and threading.get_ident() != self._thread:
                self.aside.add(stack)
            self.rows.append(Row(True, serial, size, self._clock(), stack, origin))
            self._count(size)
        return serial

    def free(self, serial: int, size: int) -> None:
        if size:
            self.rows.append(Row(False, serial, size, self._clock(), -1, -1))
            self._count(-size)

    def empty_cache(self) -> None:
        """`torch.cuda.empty_cache` was called."""
        self.rows.append(Row(False, EMPTIED, 0, self._clock(), -1, -1))

    def _count(self, size: int) -> None:
        rounded = (abs(size) + 511) // 512 * 512
        self.allocated += rounded if size > 0 else -rounded
        self.peak = max(self.peak, self.allocated)

    def stop(self) -> None:
        """What dies from now on dies after the cell."""
        if self.aside:  # a thread may have read the time, and another come before it
            self.rows.sort(key=lambda row: row.time_ns)
        self._references.clear()
        self._serials.clear()

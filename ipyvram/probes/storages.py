"""Storages that are allocated, resized and freed while a cell runs come in; one `Trace` per device goes out.

A dispatch mode sees the outputs of every operator, `LiveStorages` which of them are new and when each ends. This is the same
stream of events as the CUDA allocator's history, for devices that keep none. Not seen is what a kernel takes and gives
back within one operator, and what compiled code allocates for itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ipyvram.patches import Patches
from ipyvram.probes.clock import Clock
from ipyvram.probes.dispatch import Mode
from ipyvram.probes.engine import REUSING, may_reuse
from ipyvram.probes.interrupts import Interrupts
from ipyvram.probes.live_storages import LiveStorages
from ipyvram.probes.stacks import Interner
from ipyvram.probes.storage_log import DeviceLogs, Live, StorageLog
from ipyvram.probes.tensors import (
    NO_STORAGE,
    SEVERAL,
    TENSOR,
    Kinds,
    dtype_name,
    plain_tensors,
    shape_of,
    storage_of,
)
from ipyvram.probes.tracer import watch_tracer
from ipyvram.probes.uncompiled import alone
from ipyvram.recording import OomEvent, Origin, Trace

#: Events after which the trace ends by itself: a million rows are about 200 MB of Python objects.
MAX_EVENTS = 1_000_000

_CHECK_EVERY = 1024  # operators between two looks at the bounds
_aten = torch.ops.aten
#: In-place operators that may give their tensor another storage, or another size. By identity: an overload's own hash is
#: a Python function.
_RESIZING = frozenset(
    id(getattr(packet, overload))
    for packet in (_aten.resize_, _aten.resize_as_, _aten.set_)
    for overload in packet.overloads()
)


class StorageTrace:
    """Records every storage that operators make on the thread that calls `start`, and what autograd makes for it.

    Parameters
    ----------
    clock : Clock
    stacks : callable
        Index of the current user stack; given how many callers are not the user's. See `StackReader`.
    origins : Interner of Origin
        Where operators, shapes and dtypes of allocations are kept.
    budget : mapping of str to int, optional
        Bytes that may be live on a device type (``{"cpu": 8 * 2**30}``) or device (``"cuda:0"``), by the name that the
        trace gives it. The operator whose result would go beyond raises `torch.OutOfMemoryError` instead of returning,
        with a message like the CUDA allocator's, and its result is not counted.
    device_names : mapping of str to str, optional
        How to present devices: ``{"meta": "cuda:0"}`` makes meta tensors those of a card. Sizes stay those of the
        storages; rounding is the allocator model's business. Meta tensors are not followed unless named here, since
        they take no memory.
    skip : collection of str
        Device types that another probe follows.
    expired : callable, optional
        Asked now and then; a text that is not empty ends the trace, and says why.
    followed : mapping of int to Live, optional
        See `LiveStorages`.

    Attributes
    ----------
    live : LiveStorages
        Which storage is which.
    logs : DeviceLogs
        What was written down so far.
    notes : list of str
        What the trace could not see, one line each.
    active : bool
        Whether events are being recorded.
    refused : OomEvent or None
        The last allocation that the budget refused.
    """

    def __init__(
        self,
        clock: Clock,
        stacks: Callable[[int], int],
        origins: Interner[Origin],
        *,
        budget: Mapping[str, int] | None = None,
        device_names: Mapping[str, str] | None = None,
        skip: frozenset[str] = frozenset(),
        expired: Callable[[], str] = str,
        followed: Mapping[int, Live] | None = None,
    ) -> None:
        self.logs = DeviceLogs(budget or {}, device_names or {}, skip)
        self.live = LiveStorages(clock, stacks, self.logs, followed)
        self.notes: list[str] = []
        self.refused: OomEvent | None = None
        self._clock, self._stacks, self._origins, self._expired = clock, stacks, origins, expired
        self._live = self.live.by_key
        self._kinds = Kinds()
        self._origin_of: dict[Any, int] = {}
        self._op_names: dict[int, str] = {}  # by identity: to ask takes a microsecond
        self._mode: Mode | None = None
        self._interrupts: Interrupts | None = None
        self._patches = Patches()
        self.active = False
        self._operators = 0
        self._start_ns = self._stop_ns = 0
        self._ended_by = "end of cell"

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch every operator of this thread."""
        self._start_ns = self._clock()
        self._mode = Mode(self)
        self._mode.enter()
        self._interrupts = Interrupts(self.live.freed, self.live.free_the_dead)
        self._interrupts.start()
        watch_tracer(self._patches, self._away)
        self.active = True

    def stop(self, ended_by: str = "end of cell") -> None:
        """Stop recording. The mode leaves at once, or, below one that the cell entered, when that has gone."""
        if self._interrupts is not None:
            self._interrupts.stop()
            self._interrupts = None
        self._patches.undo()
        self._leave()
        if self.active:
            self._stop_ns = self._clock()
            self.live.close()
            self.active, self._ended_by = False, ended_by

    def _leave(self) -> None:
        if self._mode is not None and self._mode.leave():
            self._mode = None

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """Without the mode, where it is on top; what is made meanwhile and kept is met when the cell uses it."""
        mode = self._mode
        left = mode is not None and mode.leave()
        try:
            yield
        finally:
            if left and mode is not None:
                mode.enter()
                if not self.active:  # it has ended meanwhile
                    self._leave()

    @property
    def ended_by(self) -> str:
        """Why the trace stopped."""
        return self._ended_by

    def traces(self) -> tuple[Trace, ...]:
        """One trace per device that the cell used; call it after `stop`."""
        self._leave()
        return self.logs.traces(self._start_ns, self._stop_ns or self._clock(), self._ended_by)

    # -- operators ---------------------------------------------------------------------------------------------------

    @alone
    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, result: Any) -> None:
        """Write down what an operator allocated; inputs not seen before first."""
        # Spelled out, not called: this runs for every operator, and nearly all that it meets is known.
        live, kinds = self._live, self._kinds
        for value in (*args, *kwargs.values()) if kwargs else args:
            kind = kinds[type(value)]
            if kind == TENSOR:
                try:
                    if value.untyped_storage()._cdata not in live:
                        self._input(value)
                except NO_STORAGE:
                    self._input(value)
            elif kind == SEVERAL:
                for item in value:
                    if kinds[type(item)] == TENSOR:
                        self._input(item)
        kind = kinds[type(result)]
        if kind == TENSOR:
            if not args or result is not args[0] or id(func) in _RESIZING:  # else in place
                self._output(func, args, result)
        elif kind == SEVERAL:
            for item in result:
                if kinds[type(item)] == TENSOR:
                    self._output(func, args, item)
        self._operators += 1
        if self._operators % _CHECK_EVERY == 0:
            reason = f"{MAX_EVENTS:,} events" if self.live.event_count > MAX_EVENTS else self._expired()
            if reason:
                self.stop(reason)

    def _input(self, tensor: Tensor) -> None:
        storage = storage_of(tensor)
        if storage is None:
            for part in plain_tensors(tensor):
                if part is not tensor:
                    self._input(part)
            return
        if storage._cdata in self._live:
            return
        log = self.logs.of(storage)
        if log is not None and storage.nbytes() and not tensor._is_zerotensor():
            # What wants a gradient was made by an operator, before; data that no operator made has no such wish.
            self.live.found(storage, log, tensor.requires_grad, self._origin("", tensor))

    def _output(self, func: Any, args: tuple[Any, ...], tensor: Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except NO_STORAGE:
            if tensor.layout is not torch.strided:
                for part in plain_tensors(tensor):
                    self._output(func, args, part)
            return
        known, size = self._live.get(storage._cdata), storage.nbytes()
        if known is not None:
            if known.size != size:
                origin = self._origin(func, tensor)
                if not known.log.fits(size - known.size):
                    self._refuse(known.log, size, origin)
                self.live.resized(known, size, origin)
            return
        log = self.logs.of(storage)
        if log is None or not size or tensor._is_zerotensor():  # the zeros of forward-mode derivatives take no memory
            return
        origin = self._origin(func, tensor)
        reused = self._reused(func, args, size) if id(func) in REUSING else None
        if reused is None and not log.fits(size):  # what is written over its operand needs no room of its own
            self._refuse(log, size, origin)
        self.live.made(storage, size, log, origin, reused)

    def _reused(self, func: Any, args: tuple[Any, ...], size: int) -> Live | None:
        """The storage that the engine would write the result over, if nobody else held it.

        Whether somebody does shows at once: else it is freed before anything else happens, which `LiveStorages.freed` sees.
        """
        if torch._C._current_graph_task_id() == -1 or not isinstance(args[0], Tensor):
            return None
        storage = storage_of(args[0])
        operand = None if storage is None else self._live.get(storage._cdata)
        if operand is None or operand.size != size:
            return None
        newest = operand.serial == self.live.serial
        return operand if may_reuse(func, args[0], operand.node, newest=newest) else None

    def _origin(self, func: Any, tensor: Tensor) -> int:
        shape = shape_of(tensor)
        key = (id(func), shape, tensor.dtype)
        index = self._origin_of.get(key)
        if index is None:
            name = self._op_names.get(id(func))
            if name is None:
                name = self._op_names[id(func)] = _op_name(func)
            index = self._origins(Origin(name, tuple(shape), dtype_name(tensor.dtype)))
            self._origin_of[key] = index
        return index

    def _refuse(self, log: StorageLog, size: int, origin: int) -> NoReturn:
        """An allocation does not fit the budget: note the instant and raise what the CUDA allocator would."""
        self.live.flush()
        self.refused = log.refusal(size, self._clock(), self._stacks(0), origin)
        raise torch.OutOfMemoryError(log.out_of_memory(size))

    def failed(self, func: Any, error: Exception) -> None:
        """Recording an operator went wrong: the trace ends, the program goes on."""
        self.notes.append(f"the storage trace stopped at {func}: {type(error).__name__}: {error}"[:300])
        self.stop("a fault of ipyvram")


def _op_name(func: Any) -> str:
    """``aten.conv2d`` of ``aten.conv2d.default``; an overload's name says nothing to the reader."""
    packet = getattr(func, "overloadpacket", None)
    return str(packet if packet is not None else func)

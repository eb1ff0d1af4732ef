"""Storages that are allocated, resized and freed while a cell runs come in; one `Trace` per device goes out.

A dispatch mode sees the outputs of every operator, a weak reference on each storage sees its end. This is the same
stream of events as the CUDA allocator's history, for devices that keep none. Inside a kernel nothing is seen, nor is
what compiled code allocates for itself: neither outlives one call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _python_dispatch as dispatch_modes
from torch.utils._python_dispatch import TorchDispatchMode

from ipyvram.probes.clock import Clock
from ipyvram.probes.stacks import Interner
from ipyvram.probes.tensors import dtype_name, plain_tensors, storage_of
from ipyvram.recording import Action, Block, Events, OomEvent, Origin, Trace

#: Events after which the trace ends by itself: a million rows are about 200 MB of Python objects.
MAX_EVENTS = 1_000_000

Row = tuple[int, int, int, int, int, int, int]

_ADD = torch.ops.aten.add.Tensor
_ADD_ = torch.ops.aten.add_.Tensor
_DISABLED = Tensor.__torch_dispatch__
_OUTSIDE = -1  # no node: not in the engine
_ALLOC, _FREE = int(Action.ALLOC), int(Action.FREE_REQUESTED)


class StorageTrace:
    """Records every storage that operators make on the thread that calls `start`, and what autograd makes for it.

    Parameters
    ----------
    clock : Clock
    stacks : callable
        Index of the current user stack, as `StackReader` gives it.
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

    Attributes
    ----------
    notes : list of str
        What the trace could not see, one line each.
    refused : OomEvent or None
        The last allocation that the budget refused.
    """

    def __init__(
        self,
        clock: Clock,
        stacks: Callable[[], int],
        origins: Interner[Origin],
        *,
        budget: Mapping[str, int] | None = None,
        device_names: Mapping[str, str] | None = None,
        skip: frozenset[str] = frozenset(),
    ) -> None:
        self.notes: list[str] = []
        self.refused: OomEvent | None = None
        self._clock, self._stacks, self._origins = clock, stacks, origins
        self._budget, self._names, self._skip = dict(budget or {}), dict(device_names or {}), skip
        self._live: dict[int, _Live] = {}
        self._held: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}  # known, not used by the cell so far
        self._logs: dict[torch.device, _Log | None] = {}
        self._by_name: dict[str, _Log] = {}
        self._origin_of: dict[Any, int] = {}
        self._serial = 0
        self._folding: tuple[_Live, _Live, Row] | None = None
        self._mode: _Mode | None = None
        self._active = False
        self._start_ns = self._stop_ns = 0
        self._ended_by = "end of cell"

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch every operator of this thread."""
        self._start_ns = self._clock()
        self._mode = _Mode(self)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        self._active = True

    def stop(self, ended_by: str = "end of cell") -> None:
        """Stop recording. The mode leaves at once, or, below one that the cell entered, when that has gone."""
        if self._active:
            self._stop_ns = self._clock()
            self._flush()
            self._active, self._ended_by = False, ended_by
            self._live.clear()
            self._held.clear()
        self._leave()

    def _leave(self) -> None:
        mode = self._mode
        if mode is not None and dispatch_modes._get_current_dispatch_mode() is mode:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode = None

    @property
    def active(self) -> bool:
        """Whether events are being recorded."""
        return self._active

    @property
    def event_count(self) -> int:
        """Events recorded so far, on all devices."""
        return sum(len(log.rows) for log in self._by_name.values())

    def traces(self) -> tuple[Trace, ...]:
        """One trace per device that the cell used; call it after `stop`."""
        self._leave()
        return tuple(
            Trace(
                device=name,
                source="storages",
                start_ns=self._start_ns,
                stop_ns=self._stop_ns or self._clock(),
                events=Events.from_rows(sorted(log.rows, key=_time_of)),
                baseline=tuple(log.baseline),
                ended_by=self._ended_by,
            )
            for name, log in self._by_name.items()
            if log.rows or log.baseline
        )

    # -- who is who --------------------------------------------------------------------------------------------------

    def device_name(self, device: torch.device) -> str:
        """What the trace calls a device."""
        name = str(device)
        return self._names.get(name) or self._names.get(device.type) or name

    def identify(self, storage: torch.UntypedStorage, before: bool = False) -> int:
        """The serial number of a storage, its address in the trace; never used for another one.

        Parameters
        ----------
        storage : torch.UntypedStorage
            A storage not seen so far is recorded as found: ``before`` says that it was there when the trace began, else it
            appeared now (data that no operator of this thread made). Host memory that was there before counts from when
            the cell uses it: the rest of a process's tensors are not this cell's.
        """
        known = self._live.get(storage._cdata)
        if known is None:
            log = self._log(storage)
            if log is None or not self._active:
                self._serial += 1
                return self._serial  # matches nothing
            held = self._held.get(storage._cdata)
            if held is not None and held[0]() is storage:
                return held[1]
            if before and storage.device.type == "cpu":
                self._serial += 1
                self._held[storage._cdata] = (weakref.ref(storage), self._serial)
                return self._serial
            known = self._found(storage, log, before)
        return known.serial

    def _found(
        self, storage: torch.UntypedStorage, log: _Log, before: bool = False, tensor: Tensor | None = None
    ) -> _Live:
        """A storage that no operator was seen to make."""
        held = self._held.pop(storage._cdata, None)
        live = self._watch(storage, log)
        if held is not None and held[0]() is storage:
            live.serial, before = held[1], True
        if before or (tensor is not None and tensor.requires_grad):  # data that no operator made has no such wish
            log.baseline.append(Block(live.serial, live.size, live.size))
        else:
            self._flush()
            origin = -1 if tensor is None else self._origin("", tensor)
            log.rows.append((_ALLOC, live.serial, live.size, 0, self._clock(), self._stacks(), origin))
        return live

    def _watch(self, storage: torch.UntypedStorage, log: _Log) -> _Live:
        live = _Live(storage, self._freed)
        self._serial += 1
        live.key, live.serial, live.size = storage._cdata, self._serial, storage.nbytes()
        live.log, live.node = log, _OUTSIDE
        self._live[live.key] = live
        log.bytes += live.size
        return live

    def _freed(self, live: _Live) -> None:
        if self._live.get(live.key) is not live:
            return  # the trace has stopped
        del self._live[live.key]
        live.log.bytes -= live.size
        folding = self._folding
        if folding is not None and folding[0] is live:
            folding[1].serial = live.serial  # the sum lives on in the place of its first operand
            self._folding = None
            return
        self._flush()
        live.log.rows.append((_FREE, live.serial, live.size, 0, self._clock(), -1, -1))

    def _log(self, storage: torch.UntypedStorage) -> _Log | None:
        device = storage.device
        try:
            return self._logs[device]
        except KeyError:
            name = self.device_name(device)
            if device.type in self._skip or (device.type == "meta" and name == "meta" and "meta" not in self._names):
                self._logs[device] = None
            else:
                budget = self._budget.get(name, self._budget.get(name.partition(":")[0]))
                self._logs[device] = self._by_name.setdefault(name, _Log(name, budget))
            return self._logs[device]

    def _origin(self, func: Any, tensor: Tensor) -> int:
        key = (func, tensor.shape, tensor.dtype)
        index = self._origin_of.get(key)
        if index is None:
            index = self._origins(Origin(_op_name(func), tuple(tensor.shape), dtype_name(tensor.dtype)))
            self._origin_of[key] = index
        return index

    # -- operators ---------------------------------------------------------------------------------------------------

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Write down what an operator allocated; inputs not seen before first."""
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, Tensor):
                self._input(value)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    if isinstance(item, Tensor):
                        self._input(item)
        if isinstance(result, Tensor):
            self._output(func, args, result)
        elif isinstance(result, (list, tuple)):
            for item in result:
                if isinstance(item, Tensor):
                    self._output(func, args, item)
        if self.event_count > MAX_EVENTS:
            self.stop(f"{MAX_EVENTS:,} events")

    def _input(self, tensor: Tensor) -> None:
        storage = storage_of(tensor)
        if storage is None or storage._cdata in self._live:
            return
        log = self._log(storage)
        if log is not None and storage.nbytes():
            self._found(storage, log, tensor=tensor)

    def _output(self, func: Any, args: tuple[Any, ...], tensor: Tensor) -> None:
        storage = storage_of(tensor)
        if storage is None:
            if tensor.layout is not torch.strided:
                for part in plain_tensors(tensor):
                    self._output(func, args, part)
            return
        known = self._live.get(storage._cdata)
        if known is not None:
            if known.size != storage.nbytes():
                self._resized(known, storage, self._origin(func, tensor))
            return
        log, size = self._log(storage), storage.nbytes()
        if log is None or not size:
            return
        if log.budget is not None and log.bytes + size > log.budget:
            self._refuse(log, size, self._origin(func, tensor))
        live = self._watch(storage, log)
        self._flush()
        row = (_ALLOC, live.serial, size, 0, self._clock(), self._stacks(), self._origin(func, tensor))
        live.node = _current_node()
        operand = self._summed(args, size, live.node) if func is _ADD else None
        if operand is None:
            log.rows.append(row)
        else:
            self._folding = (operand, live, row)

    def _resized(self, live: _Live, storage: torch.UntypedStorage, origin: int) -> None:
        size = storage.nbytes()
        if live.log.budget is not None and live.log.bytes + size - live.size > live.log.budget:
            self._refuse(live.log, size, origin)
        self._flush()
        live.log.rows.append((_FREE, live.serial, live.size, 0, self._clock(), -1, -1))
        live.log.bytes += size - live.size
        live.size = size
        live.log.rows.append((_ALLOC, live.serial, size, 0, self._clock(), self._stacks(), origin))

    def _refuse(self, log: _Log, size: int, origin: int) -> NoReturn:
        """An allocation does not fit the budget: note the instant and raise what the CUDA allocator would."""
        self._flush()
        self.refused = OomEvent(
            time_ns=self._clock(),
            device=log.name,
            requested_bytes=size,
            limit_bytes=log.budget,
            allocated_bytes=log.bytes,
            free_bytes=max(0, (log.budget or 0) - log.bytes),
            budget=True,
            stack=self._stacks(),
            origin=origin,
        )
        raise torch.OutOfMemoryError(_out_of_memory(log, size))

    # -- sums made by autograd -----------------------------------------------------------------------------------------

    def _summed(self, args: tuple[Any, ...], size: int, node: int) -> _Live | None:
        """The first operand of a sum of two gradients by the engine, which without a mode it would add to in place.

        Only if nobody else holds that operand: then it is freed before anything else happens, which `_freed` sees. A sum
        inside a node's formula has an operand made by the same node, unless the node feeds one place twice (``x * x``).
        """
        if node == _OUTSIDE or torch.is_grad_enabled() or not isinstance(args[0], Tensor) or args[0]._is_view():
            return None  # a view keeps its base, a second holder
        storage = storage_of(args[0])
        operand = None if storage is None else self._live.get(storage._cdata)
        if operand is None or operand.size != size:
            return None
        if operand.node == node:
            edges = [edge for edge in torch._C._current_autograd_node().next_functions if edge[0] is not None]
            if len(set(edges)) == len(edges):
                return None
        return operand

    def _flush(self) -> None:
        """The operand of the last sum outlived it: the sum took memory of its own after all."""
        if self._folding is not None:
            _, live, row = self._folding
            self._folding = None
            live.log.rows.append(row)


class _Mode(TorchDispatchMode):
    """Hands what every operator did to the trace."""

    supports_higher_order_operators = True

    def __init__(self, trace: StorageTrace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code runs compiled; without this it would silently run eagerly under the mode."""
        return True


def _dispatch(self: _Mode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    trace = self.trace
    if not trace._active:
        return func(*args, **(kwargs or {}))
    for kind in types:
        if kind.__torch_dispatch__ is not _DISABLED:
            return NotImplemented  # made of tensors: its own dispatch runs operators on its parts, seen one by one
    if func is _ADD and _accumulates(args):
        func = _ADD_
    result = func(*args, **kwargs) if kwargs else func(*args)
    try:
        trace.record(func, args, kwargs or {}, result)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        trace._active = False
        trace.notes.append(f"the storage trace stopped at {func}: {type(error).__name__}: {error}"[:300])
    return result


# Assigned, not defined in the class: there torch would wrap it in a function that imports its compiler (seconds).
_Mode.__torch_dispatch__ = _dispatch  # type: ignore[method-assign,assignment]


def _accumulates(args: tuple[Any, ...]) -> bool:
    """Whether autograd is adding to a ``.grad``: without a mode it does that in place, so we do.

    Out of place, which autograd chooses under any mode, a ``.grad`` that the program holds elsewhere (a flat buffer) would
    miss the sum.
    """
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled():
        return False
    node: Any = torch._C._current_autograd_node()
    return node is not None and type(node).__name__ == "AccumulateGrad" and node.variable.grad is args[0]


class _Live(weakref.ref):  # type: ignore[type-arg]
    """A live storage: the reference tells when it ends."""

    __slots__ = ("key", "log", "node", "serial", "size")
    key: int
    node: int  # the node of the autograd graph that made it
    serial: int
    size: int
    log: _Log


class _Log:
    """What happened on one device."""

    __slots__ = ("baseline", "budget", "bytes", "name", "rows")

    def __init__(self, name: str, budget: int | None) -> None:
        self.name, self.budget, self.bytes = name, budget, 0
        self.rows: list[Row] = []
        self.baseline: list[Block] = []


def _current_node() -> int:
    """A number for the node that the autograd engine evaluates on this thread."""
    if torch._C._current_graph_task_id() == -1:
        return _OUTSIDE
    node: Any = torch._C._current_autograd_node()
    return _OUTSIDE if node is None else int(node._sequence_nr())


def _op_name(func: Any) -> str:
    """``aten.conv2d`` of ``aten.conv2d.default``; an overload's name says nothing to the reader."""
    packet = getattr(func, "overloadpacket", None)
    return str(packet if packet is not None else func)


def _time_of(row: Row) -> int:
    return row[4]


def _out_of_memory(log: _Log, size: int) -> str:
    """In the words of the CUDA allocator, so that code which reads them (and people) need not learn others."""
    kind, _, index = log.name.partition(":")
    budget = log.budget or 0
    return (
        f"{kind.upper()} out of memory. Tried to allocate {_size(size)}. {'GPU ' + index if index else log.name} has a "
        f"total capacity of {_size(budget)} of which {_size(max(0, budget - log.bytes))} is free. Of the allocated memory "
        f"{_size(log.bytes)} is allocated by PyTorch."
    )


def _size(count: int) -> str:
    """As c10 writes it: two digits after the point, ``bytes`` below a KiB."""
    if count < 1024:
        return f"{count} bytes"
    unit, name = next((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if count >= u)
    return f"{count / unit:.2f} {name}"

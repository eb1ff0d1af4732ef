"""CUDA on a machine without it: real CPU programs, whose storages are taken for those of a card.

Operators run on the CPU. A storage trace (the project's own dispatch mode) sees what they make, the allocator model says
where that would lie on a card, and torch's functions about CUDA memory answer from it, in the exact formats of torch:
`torch.cuda.memory._snapshot` with segments, traces and annotations, the counters of `memory_stats`, the ring buffer of
`_record_memory_history`. Out of memory is raised where the card would raise it.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import sys
import threading
import types
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ipyvram import devices
from ipyvram.caching_allocator import CachingAllocator, OutOfMemory, Settings
from ipyvram.probes import storages
from ipyvram.probes.clock import Clock
from ipyvram.probes.history import HistoryTrace
from ipyvram.probes.stacks import Interner
from ipyvram.probes.storages import StorageTrace
from ipyvram.recording import Action

MIB = 1 << 20
WORKSPACE = 8_519_680  # of cuBLAS up to compute capability 8.x

_OURS = (__file__, str(Path(storages.__file__).parent))  # the simulation is not in the program's stack
_FRAMES = 40  # of Python, kept for a traceback


def snapshot_of(
    devices: list[SimulatedDevice], settings: Settings, annotations: Any = (), traces: bool = True
) -> dict[str, Any]:
    """What ``torch.cuda.memory._snapshot()`` gives for these devices."""
    return {
        "segments": [s for device in devices for s in device.segments()],
        "device_traces": [device.entries() if traces else [] for device in devices],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": f"large_segment_size_mb:{settings.large_segment // MIB}",
            "max_split_size": settings.max_split_size if settings.max_split_size < 1 << 60 else -1,
            "garbage_collection_threshold": settings.garbage_collection_threshold,
            "expandable_segments": settings.expandable_segments,
            "pinned_num_register_threads": 1,
            "release_lock_on_cudamalloc": False,
            "pinned_use_cuda_host_register": False,
            "roundup_power2_divisions": {str(1 << i): d for i, d in enumerate(settings.roundup_power2_divisions)},
        },
        "external_annotations": list(annotations),
    }


class SimulatedDevice:
    """One card: the allocator model, its history, and what `memory_stats` counts."""

    def __init__(self, index: int, capacity: int, settings: Settings, clock: Any) -> None:
        self.index, self.capacity, self.clock = index, capacity, clock
        self.allocator = CachingAllocator(capacity, settings, record=self._record)
        self.ring: deque[dict[str, Any]] = deque(maxlen=0)
        self.frames: list[dict[str, Any]] | None = None  # of the request being served
        self.frames_of: dict[int, list[dict[str, Any]]] = {}
        self.private = (0, 0)
        self.stream = 0

    def _record(self, action: Action, address: int, size: int, stream: int, private: tuple[int, int]) -> None:
        entry = {"action": action.name.lower(), "size": size, "stream": stream, "time_us": self.clock() // 1000}
        entry["device_free" if action == Action.OOM else "addr"] = address
        if self.frames is not None and action == Action.ALLOC:
            entry["frames"] = self.frames
            self.frames_of[address] = self.frames
        self.ring.append(entry | {"compile_context": "N/A", "user_metadata": "", "pool_id": private})

    def alloc(self, size: int, frames: list[dict[str, Any]] | None = None) -> int:
        self.frames = frames
        try:
            return self.allocator.alloc(size, self.stream, self.private)
        finally:
            self.frames = None

    def entries(self) -> list[dict[str, Any]]:
        return list(self.ring)

    def segments(self) -> list[dict[str, Any]]:
        return [self._segment(s) for s in self.allocator.segments()]

    def _segment(self, s: Any) -> dict[str, Any]:
        def total(*states: str) -> int:
            return sum(b.size for b in s.blocks if b.state in states)

        return {
            "device": self.index, "address": s.address, "total_size": s.size, "stream": s.stream,
            "allocated_size": total("active_allocated"),
            "active_size": total("active_allocated", "active_awaiting_free"),
            "requested_size": sum(b.requested for b in s.blocks if b.state != "inactive"),
            "segment_type": s.pool, "segment_pool_id": s.private_pool, "is_expandable": s.expandable, "frames": [],
            "blocks": [
                {"address": b.address, "size": b.size, "requested_size": b.requested, "state": b.state,
                 "frames": self.frames_of.get(b.address, []) if b.state != "inactive" else []}
                for b in s.blocks
            ],
        }  # fmt: skip

    def stats(self) -> dict[str, Any]:
        """As ``torch.cuda.memory_stats_as_nested_dict``, the entries that are read."""
        a = self.allocator

        def both(current: int, peak: int) -> dict[str, Any]:
            return {"all": {"current": current, "peak": peak, "allocated": 0, "freed": 0}}

        return {
            "allocated_bytes": both(a.allocated, a.allocated_peak),
            "reserved_bytes": both(a.reserved, a.reserved_peak),
            "active_bytes": both(a.active, a.active),
            "inactive_split_bytes": both(a.inactive_split, a.inactive_split),
            "num_alloc_retries": a.retries,
            "num_ooms": a.ooms,
        }


class _Trace(StorageTrace):
    """A storage trace that hands every event on while the operator that caused it runs."""

    sink: Any = None

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        super().record(func, args, kwargs, result)
        self.sink()


@dataclass
class SimulatedCuda:
    """Cards that exist while it is entered; every storage of the thread lies on the current one.

    Attributes
    ----------
    skew_us : int
        How far the history's clock is ahead of Unix time.
    jitter_us : int
        By how much it is off at each event.
    annotates : bool
        Whether this torch can put events of ours into the history.
    backend : str
        ``"native"`` or ``"cudaMallocAsync"``, which keeps no history.
    context_bytes, others_bytes : int
        What the driver counts beside the allocator's segments.
    begun : bool
        Whether the program has started CUDA; before `begin`, to ask the allocator is what ends a real process.
    """

    devices: int = 1
    capacity: int = 16 << 30
    settings: Settings = field(default_factory=Settings)
    skew_us: int = 0
    jitter_us: int = 0
    annotates: bool = False
    backend: str = "native"
    context_bytes: int = 300 * MIB
    others_bytes: int = 0
    workspace: bool = True
    uuid: str = "00000000-0000-0000-0000-000000000000"
    begun: bool = True

    def __post_init__(self) -> None:
        self._clock = Clock()
        room = self.capacity - self.context_bytes - self.others_bytes
        self.cards = [SimulatedDevice(i, room, self.settings, self._stamp) for i in range(self.devices)]
        self.annotations: list[dict[str, Any]] = []
        self.history: dict[str, Any] | None = None  # options of the recording, None while it is off
        self.calls: list[str] = []  # what was asked of torch that a user would notice
        self.current = 0
        self._place: dict[int, tuple[int, int]] = {}  # serial of a storage → card, address
        self._seen = 0
        self._lock = threading.RLock()  # the sampler's thread asks for counters while the program allocates
        self._frames: list[list[dict[str, Any]]] = []
        self._stack = contextlib.ExitStack()
        self._random = random.Random(0)
        self._stamped = 0
        self._observers: list[Any] = []
        self._workspace: tuple[SimulatedDevice, int] | None = None  # made with the first operator, as by cuBLAS
        self._fraction = 1.0
        self._started = False

    def _now(self) -> int:
        return self._clock() + self.skew_us * 1000

    def _stamp(self) -> int:
        """A time that an event gets: late by some of the jitter, but never before the one of the event before it."""
        self._stamped = max(self._stamped, self._now() + self._random.randint(0, self.jitter_us) * 1000)
        return self._stamped

    # -- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> SimulatedCuda:
        self.trace = _Trace(self._clock, self._read_frames, Interner())
        self.trace.sink = self.drain
        for module, name, value in self._patches():
            self._replace(module, name, value)
        self.trace.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.trace.stop()
        self._stack.close()

    def _replace(self, owner: Any, name: str, value: Any) -> None:
        missing = not hasattr(owner, name)
        before = None if missing else inspect.getattr_static(owner, name)
        setattr(owner, name, value)
        self._stack.callback(lambda: delattr(owner, name) if missing else setattr(owner, name, before))

    def _patches(self) -> list[tuple[Any, str, Any]]:
        cuda, memory = torch.cuda, torch.cuda.memory
        on_cuda = [
            ("is_available", self._is_available), ("is_initialized", lambda: self.begun),
            ("device_count", lambda: self.devices), ("_queued_calls", []),
            ("current_device", lambda: self.current), ("synchronize", lambda device=None: None),
            ("is_current_stream_capturing", lambda: False), ("manual_seed_all", lambda seed: None),
            ("get_device_name", lambda device=None: "Simulated GPU"), ("get_device_properties", self._properties),
            ("get_device_capability", lambda device=None: (8, 0)),
            ("empty_cache", self._empty_cache), ("mem_get_info", self._mem_get_info),
            ("memory_allocated", lambda device=None: self._card(device).allocator.allocated),
            ("memory_reserved", lambda device=None: self._card(device).allocator.reserved),
            ("max_memory_allocated", lambda device=None: self._card(device).allocator.allocated_peak),
            ("max_memory_reserved", lambda device=None: self._card(device).allocator.reserved_peak),
            ("memory_stats_as_nested_dict", lambda device=None: self._card(device).stats()),
            ("reset_peak_memory_stats", self._reset_peak),
            ("memory_snapshot", self._memory_snapshot), ("get_allocator_backend", lambda: self.backend),
            ("set_per_process_memory_fraction", self._set_fraction),
            ("get_per_process_memory_fraction", lambda device=None: self._fraction), ("init", lambda: None),
            ("get_rng_state_all", list), ("set_rng_state_all", lambda states: None),
        ]  # fmt: skip
        private = [
            ("_cuda_isHistoryEnabled", self._is_history_enabled),
            ("_cuda_hasPrimaryContext", lambda index: True),
            ("_cuda_getCublasWorkspaceSize", lambda: WORKSPACE),
            ("_cuda_memoryMetadataSupported", lambda: self.annotates),
            ("_cuda_annotateMemory", self._annotate),
            ("_cuda_clearCublasWorkspaces", self._clear_workspaces),
            ("_cuda_attach_out_of_memory_observer", self._observers.append),
        ]
        of_memory = [("_record_memory_history", self._record_history), ("_snapshot", self._snapshot)]
        scope = torch.autograd.profiler.record_function
        return [
            *((cuda, name, value) for name, value in on_cuda),
            *((torch._C, name, value) for name, value in private),
            *((memory, name, value) for name, value in of_memory),
            (devices, "keeps_workspaces", lambda: True),
            (
                torch.accelerator,
                "current_stream",
                lambda device=None: types.SimpleNamespace(is_capturing=lambda: False),
            ),
            (scope, "__enter__", self._annotated(scope.__enter__, "START")),
            (scope, "__exit__", self._annotated(scope.__exit__, "END")),
            (HistoryTrace, "_place", lambda history, storage: self._identify(storage)),
        ]

    def begin(self) -> None:
        """The program starts CUDA: torch makes the calls that were put off, and then says that it is initialised."""
        self._started = True
        for call, _ in torch.cuda._queued_calls:
            call()
        self.begun = True

    def _is_available(self) -> bool:
        self.calls.append("is_available")
        return True

    def _is_history_enabled(self) -> bool:
        if not (self.begun or self._started):
            raise SystemError("a segmentation fault: there is no allocator yet")
        return self.history is not None

    # -- the program's storages ----------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Give what the storage trace saw since the last time to the cards."""
        with self._lock:
            self._drain()

    def _drain(self) -> None:
        log = self.trace.logs.by_name.get("cpu")
        rows, made = log.rows if log is not None else [], False
        while self._seen < len(rows):
            action, serial, size, _, _, stack, _ = rows[self._seen]
            self._seen += 1
            if action == Action.ALLOC:
                self._alloc(serial, size, stack)
                made = True
            elif serial in self._place:
                card, address = self._place.pop(serial)
                self.cards[card].allocator.free(address)
        if self.workspace and self._workspace is None and made:
            card = self.cards[self.current]
            self._workspace = card, card.alloc(WORKSPACE, None)

    def _alloc(self, serial: int, size: int, stack: int) -> None:
        card = self.cards[self.current]
        try:
            address = card.alloc(size, self._frames[stack] if stack >= 0 and self.history is not None else None)
        except OutOfMemory as error:
            for observer in self._observers:
                observer(card.index, error.requested, self.capacity, error.free)
            raise torch.OutOfMemoryError(str(error)) from None
        self._place[serial] = (card.index, address)

    def _identify(self, storage: torch.UntypedStorage) -> tuple[str, int] | None:
        """In place of `HistoryTrace._place`, the one line that reads a pointer of a real card."""
        serial = self.trace.live.identify(storage)
        self.drain()
        if serial not in self._place:
            return None
        card, address = self._place[serial]
        return f"cuda:{card}", address

    def _read_frames(self, above: int = 0) -> int:
        """The Python stack as torch symbolises it; the autograd thread of a card has none."""
        if torch._C._current_graph_task_id() != -1:
            return -1
        found, frame = [], sys._getframe(1)
        while frame is not None and len(found) < _FRAMES:
            code = frame.f_code
            if not code.co_filename.startswith(_OURS):
                found.append({"name": code.co_name, "filename": code.co_filename, "line": frame.f_lineno})
            frame = frame.f_back
        self._frames.append(found)
        return len(self._frames) - 1

    @contextlib.contextmanager
    def on(self, card: int = 0, stream: int = 0, private: tuple[int, int] = (0, 0)):
        """Where storages are made meanwhile."""
        before, self.current = self.current, card
        device = self.cards[card]
        device.stream, device.private = stream, private
        try:
            yield device
        finally:
            self.drain()
            device.stream, device.private = 0, (0, 0)
            self.current = before

    # -- what torch answers --------------------------------------------------------------------------------------------

    def _card(self, device: Any = None) -> SimulatedDevice:
        self.drain()
        if device is None:
            return self.cards[self.current]
        index = device if isinstance(device, int) else torch.device(device).index
        return self.cards[index or 0]

    def _properties(self, device: Any = None) -> Any:
        return types.SimpleNamespace(
            name="Simulated GPU",
            total_memory=self.capacity,
            major=8,
            minor=0,
            uuid=self.uuid,
        )

    def _empty_cache(self) -> None:
        self.drain()
        self.calls.append("empty_cache")
        for card in self.cards:
            card.allocator.empty_cache()

    def _reset_peak(self, device: Any = None) -> None:
        self.calls.append("reset_peak_memory_stats")
        allocator = self._card(device).allocator
        allocator.allocated_peak, allocator.reserved_peak = allocator.allocated, allocator.reserved

    def _mem_get_info(self, device: Any = None) -> tuple[int, int]:
        free = self._card(device).capacity - self._card(device).allocator.reserved
        return free, self.capacity

    def _set_fraction(self, fraction: float, device: Any = None) -> None:
        self._fraction = fraction
        self._card(device).allocator.allowed = int(fraction * self.capacity) if fraction < 1 else None

    def _clear_workspaces(self) -> None:
        if self._workspace is not None:
            card, address = self._workspace
            card.allocator.free(address)
            self._workspace = None

    def used(self, index: int) -> tuple[int, int, int]:
        """Card used, this process, other processes: what the driver would say."""
        mine = self.cards[index].allocator.reserved + self.context_bytes
        return mine + self.others_bytes, mine, self.others_bytes

    def _memory_snapshot(self, mempool_id: Any = None, include_traces: bool = True) -> list[dict[str, Any]]:
        self.drain()
        return [s for card in self.cards for s in card.segments()]

    def _snapshot(self, device: Any = None) -> dict[str, Any]:
        self.drain()
        self.calls.append("_snapshot")
        return snapshot_of(self.cards, self.settings, self.annotations)

    def _annotate(self, pointer: int, text: str) -> None:
        self.drain()
        for card in self.cards:
            if pointer in card.allocator.blocks.live:
                card.ring.append(
                    {"action": "annotate", "addr": pointer, "size": 0, "stream": 0, "time_us": self._stamp() // 1000,
                     "frames": [], "user_metadata": text}
                )  # fmt: skip

    def _record_history(
        self, enabled: Any = "all", context: Any = "all", stacks: str = "all", max_entries: int = sys.maxsize,
        device: Any = None, clear_history: bool = False, compile_context: bool = False,
        global_record_annotations: bool = False,
    ) -> None:  # fmt: skip
        self.drain()
        self._started = True  # torch's own function starts the driver
        self.calls.append(f"_record_memory_history({enabled!r})")
        if enabled is None:
            self.history = None
        else:
            self.history = {"context": context, "stacks": stacks, "annotations": global_record_annotations}
        kept = 0 if enabled is None else max_entries if enabled == "all" else 1
        for card in self.cards:
            card.ring = deque(maxlen=min(kept, 1 << 24))
        self.annotations.clear()

    def _annotated(self, original: Any, stage: str) -> Any:
        cuda = self

        def method(scope: Any, *args: Any) -> Any:
            if cuda.history is not None and cuda.history["annotations"]:
                time_us = cuda._now() // 1000
                cuda.annotations.append({"stage": stage, "name": scope.name, "device": 0, "time_us": time_us})
            return original(scope, *args)

        return method

"""The CUDA allocator's own history of a cell: exact events in, one `Trace` a device out.

It sees every allocation whoever makes it (cuDNN, cuBLAS, compiled code) and costs no Python per operator. Its functions
are private to torch: each is looked up when it is needed, and a missing one is a note, not an error.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ipyvram.probes import snapshots
from ipyvram.probes.anchors import Anchors
from ipyvram.probes.beginning import in_use, when_in_use
from ipyvram.probes.clock import Clock
from ipyvram.probes.collection import without_collection
from ipyvram.probes.stacks import Interner, is_user_file
from ipyvram.recording import Action, Block, Events, Stack, Trace
from ipyvram.snapshot_parts import FrameReader, events_of, private_pools_of, segments_of
from ipyvram.units import format_bytes

#: Events kept by torch's ring buffer; a three-step trace of a large model has some hundred thousand.
MAX_ENTRIES = 600_000

#: So many events of a snapshot may wait for the end of the cell; more dictionaries would slow its garbage collections.
_READ_LATER = 50_000


class _Taken(NamedTuple):
    """What is there when a history ends, not read yet."""

    snapshot: dict[str, Any]
    stop_ns: int
    ended_by: str


class HistoryTrace:
    """Switches the history on for a cell and reads it at the end.

    A history that the user has switched on is read as it is and stays on: switching it on again would overwrite its
    settings, switching it off would clear it.

    Attributes
    ----------
    active : bool
        Whether there are events to come. False, with a note, where the allocator keeps no history.
    aside : set of int
        Stacks of other threads than Python's first.
    notes : list of str
    """

    def __init__(self, clock: Clock, stacks: Interner[Stack]) -> None:
        self._clock, self._frames = clock, FrameReader(stacks, is_user_file)
        self._start_ns = 0
        self._baseline: dict[int, tuple[Block, ...]] = {}
        self._allocated: dict[int, int] = {}
        self._anchors = Anchors(clock)
        self._names: dict[torch.device, str] = {}  # of cards; empty for what is none
        self._pinned: int | None = None  # a block with a pin of this look
        self._ours = self._begun = False
        self._taken: _Taken | None = None
        self._traces: tuple[Trace, ...] = ()
        self._cancel: Callable[[], None] = lambda: None
        self._unlisten: Callable[[], None] = lambda: None
        self.active = False
        self.notes: list[str] = []

    def start(self) -> None:
        """Begin, now or when the cell starts CUDA; nothing is allocated before."""
        reason = _why_not()
        if reason:
            self.notes.append(f"the allocator's history is unavailable: {reason}")
            return
        self._start_ns = self._clock()
        if in_use():
            self._begin()
        else:
            self._cancel = when_in_use(self._begin_late)
        self.active = True

    def _begin(self) -> None:
        """Read what is live and switch the history on, unless the user's own is on already."""
        self._read_baseline()
        if _is_on(unknown=False):
            self.notes.append("the allocator's history was already on: it is read as it is, and left on")
        else:
            _switch_on()
            self._ours = True
            self._unlisten = _listen(self._taken_over)
        self._start_ns = self._clock()
        self._anchors.drop()
        self._begun = True

    def _taken_over(self) -> None:
        """The cell switches the history on itself: from now on it is its own."""
        if self._ours:
            self._ours = False
            self.notes.append("the cell switched the allocator's history on itself: it is read as it is, and left on")

    def _begin_late(self) -> None:
        begun_ns = self._start_ns
        reason = _why_not()  # the cell may have chosen another allocator meanwhile
        try:
            if not reason:
                self._begin()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        self._start_ns = begun_ns
        if reason:
            self.notes.append(f"the allocator's history is unavailable: {reason}")

    def _read_baseline(self) -> None:
        if not in_use():  # within the start of CUDA: nothing is allocated yet
            return
        segments = snapshots.segments()
        for device in {int(s["device"]) for s in segments}:
            found = segments_of(segments, device, self._frames)
            self._baseline[device] = tuple(b for s in found for b in s.blocks if b.state != "inactive")
            self._allocated[device] = int(torch.cuda.memory_allocated(device))

    @property
    def aside(self) -> set[int]:
        return self._frames.aside

    def identify(self, storage: torch.UntypedStorage) -> tuple[str, int] | None:
        """Device and address of a storage in the trace; None for one that is not on a card.

        From the first one to `looked`, the program stands still: a pin before and one behind say when all of it was, and
        each costs a stack.
        """
        found = self._place(storage)
        # A user's own buffer is not filled with our pins.
        if found is not None and self._pinned is None and self.active and self._ours and self._anchors.pin(found[1]):
            self._pinned = found[1]
        return found

    def looked(self) -> None:
        """The program goes on."""
        if self._pinned is not None:
            if self.active and self._ours:
                self._anchors.pin(self._pinned)
            self._pinned = None

    def _place(self, storage: torch.UntypedStorage) -> tuple[str, int] | None:
        device = storage.device
        name = self._names.get(device)
        if name is None:
            name = self._names[device] = str(device) if device.type == "cuda" else ""
        try:
            return (name, storage.data_ptr()) if name else None
        except RuntimeError:  # a tensor of zeros that is never made: the tangent of what a transform holds fixed
            return None

    def stop(self, ended_by: str) -> None:
        """Take the events and switch the history off, if it was ours; `traces` reads them, when the cell no longer waits."""
        with without_collection():
            self._stop(ended_by)

    def _stop(self, ended_by: str) -> None:
        if not self.active:
            return
        self.active = False
        self._cancel()
        self._unlisten()
        if not self._begun:
            return
        on = _is_on(unknown=True)
        if not on:
            self.notes.append("the cell switched the allocator's history off, which cleared it: events are missing")
        try:
            self._anchors.drop()
            stop_ns = self._clock()
            self._taken = _Taken(snapshots.whole(), stop_ns, ended_by)
        finally:
            if self._ours and on:
                torch.cuda.memory._record_memory_history(None)
        if sum(map(len, self._taken.snapshot["device_traces"])) > _READ_LATER:
            self.traces()

    def traces(self) -> tuple[Trace, ...]:
        """One trace per device of which there is something to tell; call it after `stop`."""
        if self._taken is not None:
            taken, self._taken = self._taken, None
            with without_collection():
                self._anchors.read(taken.snapshot.get("external_annotations") or ())
                found = [
                    self._trace(index, entries, *taken) for index, entries in enumerate(taken.snapshot["device_traces"])
                ]
                self._traces = tuple(trace for trace in found if len(trace.events) or trace.segments_end)
                self._frames.forget()
        return self._traces

    def _trace(
        self, index: int, entries: Sequence[Mapping[str, Any]], snapshot: Mapping[str, Any], stop_ns: int, ended_by: str
    ) -> Trace:
        segments = segments_of(snapshot["segments"], index, self._frames)
        events, first = self._own(entries, stop_ns)
        trace = Trace(
            device=f"cuda:{index}",
            source="history",
            start_ns=self._start_ns,
            stop_ns=stop_ns,
            events=events,
            baseline=self._baseline.get(index, ()),
            segments_end=segments,
            allocated_start=self._allocated.get(index, 0),
            ended_by=ended_by,
            allocator_settings=dict(snapshot.get("allocator_settings") or {}),
            private_pools={i - first: pool for i, pool in private_pools_of(entries).items() if i >= first},
        )
        self._note_graphs(trace)
        if len(entries) >= MAX_ENTRIES or not _explains(trace):
            self.notes.append(
                f"{trace.device}: the allocator's history lost its first events (it was full, or cleared)"
            )
            trace = replace(trace, complete=False)
        return trace

    def _own(self, entries: Sequence[Mapping[str, Any]], stop_ns: int) -> tuple[Events, int]:
        """Events of this stretch, their times on our clock, within it and in order; and how many were before it."""
        events = events_of(entries, self._frames)
        times = self._anchors.settle(entries, self._anchors.to_ours(events.time_ns))
        first = 0 if self._ours else int(np.searchsorted(times, self._start_ns))
        columns = [getattr(events, name)[first:] for name in Events.__dataclass_fields__]
        own = Events(*columns)
        own.time_ns[:] = np.maximum.accumulate(np.clip(times[first:], self._start_ns, stop_ns))
        return own, first

    def _note_graphs(self, trace: Trace) -> None:
        private = sum(s.size for s in trace.segments_end if s.private_pool != (0, 0))
        if private:
            self.notes.append(
                f"{trace.device}: {format_bytes(private)} lie in private pools (CUDA graphs, MemPool); allocations in them are "
                "seen, what a graph uses of them when it is replayed is not"
            )


def _explains(trace: Trace) -> bool:
    """Whether the events lead from what was live at the start to what is live at the end: else some were lost."""
    events, baseline = trace.events, {b.address for b in trace.baseline}
    live = {b.address for s in trace.segments_end for b in s.blocks if b.state != "inactive"}
    picked = events.action <= Action.FREE_COMPLETED
    addresses, first = np.unique(events.address[picked], return_index=True)
    is_alloc = events.action[picked][first] == Action.ALLOC
    untouched = live - set(addresses.tolist())
    return untouched | set(addresses[~is_alloc].tolist()) == baseline


def _why_not() -> str:
    """Why this process has no native history, or an empty string."""
    for name in ("PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING"):
        if os.environ.get(name) == "1":  # torch heeds no other value
            return f"{name} is set, so torch's allocator records nothing"
    backend = getattr(torch.cuda, "get_allocator_backend", lambda: "native")()
    if backend != "native":
        return f"the allocator is {backend}, which keeps none"
    if not hasattr(torch.cuda.memory, "_record_memory_history") or not hasattr(torch.cuda.memory, "_snapshot"):
        return f"torch {torch.__version__} has no _record_memory_history"
    return ""


def _is_on(unknown: bool) -> bool:
    """Whether a history is being kept; ``unknown`` where this torch does not tell."""
    enabled = getattr(torch._C, "_cuda_isHistoryEnabled", None)
    return unknown if enabled is None else bool(enabled())


def _listen(taken_over: Callable[[], None]) -> Callable[[], None]:
    """Learn when the program switches the history on; torch itself does not tell whose it is. Gives what ends that."""
    original: Any = torch.cuda.memory._record_memory_history

    @functools.wraps(original)
    def called(enabled: Any = "all", *args: Any, **kwargs: Any) -> Any:
        if enabled:
            taken_over()
        return original(enabled, *args, **kwargs)

    def end() -> None:
        if torch.cuda.memory._record_memory_history is called:
            torch.cuda.memory._record_memory_history = original

    torch.cuda.memory._record_memory_history = called
    return end


def _switch_on() -> None:
    options: dict[str, Any] = {"context": "alloc", "stacks": "python", "max_entries": MAX_ENTRIES}
    known = inspect.signature(torch.cuda.memory._record_memory_history).parameters
    for name, value in (("clear_history", True), ("global_record_annotations", True)):
        if name in known:
            options[name] = value
    torch.cuda.memory._record_memory_history("all", **options)

"""The probes that see allocations, for one traced stretch of a cell after another: armed, taken away, read.

On CUDA the allocator's own history; the storage trace for host memory, for other devices, and where there is no history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from ipyvram.probes.claiming import LASTING
from ipyvram.probes.clock import Clock
from ipyvram.probes.history import HistoryTrace
from ipyvram.probes.stacks import Interner, StackReader
from ipyvram.probes.storages import StorageTrace
from ipyvram.probes.tensors import plain_tensors, storage_of
from ipyvram.recording import Claim, OomEvent, Origin, Stack, Trace

Guard = Callable[[str, Callable[[], None]], None]


class Tracing:
    """Traces between `start` and `stop`, which may follow each other several times.

    Parameters
    ----------
    guard : callable
        Runs what may fail, and turns a failure into a note.
    expired : callable
        See `StorageTrace`.
    budget : mapping of str to int, optional
        See `StorageTrace`; with one, storages are traced always.

    Attributes
    ----------
    stacks, origins : Interner
        What the events of all traces refer to.
    """

    def __init__(
        self, clock: Clock, guard: Guard, expired: Callable[[], str], budget: Mapping[str, int] | None = None
    ) -> None:
        self.stacks: Interner[Stack] = Interner()
        self.origins: Interner[Origin] = Interner()
        self._clock, self._guard, self._expired, self._budget = clock, guard, expired, budget
        self._storages: StorageTrace | None = None
        self._reader: StackReader | None = None  # of the storage trace
        self._history: HistoryTrace | None = None
        self._only_history = False  # from the first model on that it follows
        self._probes: list[StorageTrace | HistoryTrace] = []  # of this stretch and of those before
        self._device_names: dict[torch.device, str] = {}

    def start(self, cuda: bool) -> None:
        """Arm a stretch; ``cuda``: the cell may allocate on an NVIDIA GPU."""
        self._storages = self._history = None
        self._only_history = False
        if cuda:
            self._guard("the allocator's history is unavailable", self._start_history)
        if self._history is None or self._budget:
            self._guard("the storage trace is unavailable", self._start_storages)

    def _start_history(self) -> None:
        history = HistoryTrace(self._clock, self.stacks)
        self._probes.append(history)
        history.start()
        if history.active:
            self._history = history

    def _start_storages(self) -> None:
        skip = frozenset({"cuda"} if self._history is not None else ())
        self._reader = stacks = StackReader(self.stacks)
        followed = next((p.live.followed for p in reversed(self._probes) if isinstance(p, StorageTrace)), None)
        trace = StorageTrace(
            self._clock, stacks, self.origins, budget=self._budget, skip=skip, expired=self._expired, followed=followed
        )
        self._probes.append(trace)
        trace.start()
        self._storages = trace

    def phase(self, begin: bool) -> None:
        """A forward, a backward or an optimizer's step begins or ends: in between, stacks need not be read to their end."""
        if self._reader is not None:
            self._reader.anchor() if begin else self._reader.release()

    @property
    def aside(self) -> set[int]:
        """Stacks of allocations that threads of the program made; known where there is the allocator's history."""
        return {stack for probe in self._probes if isinstance(probe, HistoryTrace) for stack in probe.aside}

    def notice(self, module: nn.Module) -> bool:
        """A model runs: where the history does not follow its parameters, the storage trace has to; True: it begins now.

        It ends where one runs that the history follows, since under its mode torch makes anew what it would write in place
        (`isTensorSubclassLike`), on the card too.
        """
        if self._history is None or self._only_history:
            return False
        parameter = next(module.parameters(), None)
        parts = () if parameter is None else plain_tensors(parameter)
        storage = next((s for s in map(storage_of, parts) if s is not None), None)
        if storage is None:
            return False
        on_host = self._history.identify(storage) is None
        if on_host and self._storages is None:
            self._start_storages()
            return True
        if not on_host and self._storages is not None:
            self._guard(
                "the storage trace did not stop cleanly", partial(self._storages.stop, "a model ran on the card")
            )
            self._storages, self._reader, self._only_history = None, None, True
        return False

    def identify(self, storage: torch.UntypedStorage, before: bool) -> tuple[str, int] | None:
        """Device and address of a storage in the trace that follows it, None where none does."""
        history, storages = self._history, self._storages
        if history is None and storages is not None and (known := storages.live.known(storage)) is not None:
            return known.log.name, known.serial
        if not storage.nbytes():
            return None
        if history is not None and (found := history.identify(storage)) is not None:
            return found
        if storages is not None and storages.active:
            device = storage.device
            name = self._device_names.get(device)
            if name is None:
                name = self._device_names[device] = str(device)
            return name, storages.live.identify(storage, before=before)
        return None

    def use(self, storage: torch.UntypedStorage) -> bool:
        """See `LiveStorages.use`."""
        return self._storages is not None and self._storages.live.use(storage)

    def count(self, claims: Sequence[Claim]) -> None:
        """With a budget, what models and optimizers hold takes room in it from the begin, used or not: as on a card."""
        if self._budget and self._storages is not None:
            self._storages.live.count({c.address for c in claims if c.category in LASTING and c.device in self._budget})

    def looked(self) -> None:
        """What was identified since the last call was there all the while: the program stood still, and goes on now."""
        if self._history is not None:
            self._history.looked()

    @property
    def event_count(self) -> int:
        """Events of the storage trace so far; the history does not tell before it is read."""
        return self._storages.live.event_count if self._storages is not None else 0

    @property
    def ended_by(self) -> str:
        """Why the storage trace ended by itself, an empty string while it has not."""
        storages = self._storages
        return storages.ended_by if storages is not None and not storages.active else ""

    @property
    def refused(self) -> OomEvent | None:
        """The last allocation that the budget refused."""
        return self._storages.refused if self._storages is not None else None

    def stop(self, ended_by: str) -> None:
        """Take the probes of this stretch away."""
        storages, history = self._storages, self._history
        if storages is not None:
            self._guard("the storage trace did not stop cleanly", lambda: storages.stop(ended_by))
        if history is not None:
            self._guard("the allocator's history could not be read", lambda: history.stop(ended_by))

    def traces(self) -> tuple[Trace, ...]:
        """Everything that was traced, in order of time."""
        found: list[Trace] = []
        for probe in self._probes:
            what = "allocator's history" if isinstance(probe, HistoryTrace) else "storage trace"
            self._guard(f"the {what} could not be read", lambda p=probe: found.extend(p.traces()))  # type: ignore[misc]
        return tuple(sorted(found, key=lambda trace: trace.start_ns))

    @property
    def notes(self) -> list[str]:
        """What the probes could not see, one line each."""
        return [note for probe in self._probes for note in probe.notes]

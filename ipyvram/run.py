"""One measured run: start the probes, let the cell run, stop them, hand over a `Recording`.

A fault in any probe costs that probe's figures and one line in the report; it never reaches the cell. This module
computes nothing from what it records.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

import ipyvram
from ipyvram.options import Options
from ipyvram.probes import counters
from ipyvram.probes.clock import Clock
from ipyvram.probes.history import HistoryTrace
from ipyvram.probes.nvml import open_cards
from ipyvram.probes.owners import Owners
from ipyvram.probes.phases import Phases
from ipyvram.probes.stacks import Interner, StackReader
from ipyvram.probes.storages import StorageTrace
from ipyvram.recording import Cell, Device, ErrorInfo, Origin, Recording, Stack, Trace
from ipyvram.sampler import Sampler, combined_reader

#: Bounds on the trace of a cell that finishes no optimizer step (building a model, inference, raw loops).
MAX_UNSTEPPED_S = 20.0
MAX_UNSTEPPED_EVENTS = 300_000


class Run:
    """Measures what happens between `start` and `stop`, on the thread that calls them.

    Parameters
    ----------
    options : Options
    cell : Cell
        The measured code, to show its lines.
    namespace : mapping or None
        The notebook's variables: they give tensors their names. Read, never changed.
    """

    def __init__(self, options: Options, cell: Cell | None = None, namespace: Mapping[str, Any] | None = None) -> None:
        self.options, self.cell = options, cell or Cell()
        self.notes: list[str] = []
        self._clock = Clock()
        self._stacks: Interner[Stack] = Interner()
        self._origins: Interner[Origin] = Interner()
        self._owners = Owners(self._clock, self._identify, namespace if namespace is not None else {})
        self._phases = Phases(self._clock, self._owners, self._on_step, self._on_forward, self.guard)
        self._storages: StorageTrace | None = None
        self._history: HistoryTrace | None = None
        self._history_traces: tuple[Trace, ...] = ()
        self._cards: Any = None
        self._sampler: Sampler | None = None
        self._recording: Recording | None = None
        self._ended_by = "end of cell"
        self._tracing = False
        self._traced_steps = 0
        self._overhead = 0.0
        self._counters_start: dict[str, dict[str, int]] = {}
        self._undo_device: Callable[[], None] = lambda: None
        self._start_ns = 0

    def guard(self, what: str, action: Callable[[], None]) -> None:
        """Run ``action``; a failure becomes a note and costs only what ``action`` would have recorded."""
        begin = time.perf_counter()
        try:
            action()
        except Exception as error:
            self._note(f"{what}: {type(error).__name__}: {error}".split("\n")[0][:300])
        finally:
            self._overhead += time.perf_counter() - begin

    def _note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 50:
            self.notes.append(text)

    # -- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Arm everything. Never raises for a fault of ours; `Options.device` is applied here."""
        self._undo_device = _use_device(self.options.device)
        self._start_ns = self._clock()
        self.guard("NVML is unavailable", self._open_cards)
        self.guard("allocator counters are unavailable", self._read_counters_start)
        if _cuda_possible():
            self.guard("the allocator's history is unavailable", self._start_history)
        else:
            self.guard("the storage trace is unavailable", self._start_storages)
        self._tracing = True
        self.guard("the namespace could not be read", lambda: self._owners.namespace(before=True))
        self.guard("phases are unavailable", self._phases.start)
        self.guard("the sampler is unavailable", self._start_sampler)

    def _open_cards(self) -> None:
        try:
            self._cards = open_cards()
        except RuntimeError:
            if _cuda_possible():  # a machine without a GPU lacks nothing
                raise

    def _read_counters_start(self) -> None:
        self._counters_start = {d: dict(counters.read(d)) for d in counters.devices_in_use() if d != "cpu"}

    def _start_history(self) -> None:
        self._history = HistoryTrace(self._clock, self._stacks)
        self._history.start()

    def _start_storages(self) -> None:
        trace = StorageTrace(self._clock, StackReader(self._stacks), self._origins)
        trace.start()
        self._storages = trace

    def _start_sampler(self) -> None:
        self._sampler = Sampler(
            self._clock, combined_reader(self._cards), counters.devices_in_use, self.options.interval_s
        )
        self._sampler.start()

    # -- while it runs -----------------------------------------------------------------------------------------------

    def _identify(self, storage: torch.UntypedStorage, before: bool) -> tuple[str, int] | None:
        if not storage.nbytes():
            return None
        kind = storage.device.type
        if kind == "cuda" and self._history is not None:
            return str(storage.device), storage.data_ptr()
        if self._storages is not None and (self._storages.active or not self._tracing):
            return str(storage.device), self._storages.identify(storage, before=before)
        return None

    def _on_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Notice a model on the CPU of a machine with a GPU; end the trace of a cell without steps at its bounds."""
        if self._history is not None and self._storages is None:
            parameter = next(module.parameters(), None)
            if parameter is not None and parameter.device.type == "cpu":
                self._start_storages()
        if self._phases.steps == 0:
            elapsed = (self._clock() - self._start_ns) / 1e9
            if elapsed > MAX_UNSTEPPED_S:
                self.stop_tracing(f"{MAX_UNSTEPPED_S:.0f} s without an optimizer step")
            elif self._storages is not None and self._storages.event_count > MAX_UNSTEPPED_EVENTS:
                self.stop_tracing(f"{MAX_UNSTEPPED_EVENTS:,} events without an optimizer step")

    def _on_step(self, steps: int) -> None:
        if self._tracing and steps >= self.options.trace_steps:
            self.stop_tracing(f"{steps} steps" if steps > 1 else "1 step")

    def stop_tracing(self, ended_by: str) -> None:
        """Take the probes away and keep the sampler: what is left of the cell costs nothing you notice."""
        if not self._tracing:
            return
        self._ended_by = ended_by
        self._traced_steps = self._phases.steps
        self.guard("the namespace could not be read", self._owners.namespace)
        self._tracing = False
        self.guard("phases did not stop cleanly", self._phases.stop_tracing)
        if (storages := self._storages) is not None:
            self.guard("the storage trace did not stop cleanly", lambda: storages.stop(ended_by))
        if self._history is not None:
            self.guard("the allocator's history could not be read", self._stop_history)

    def _stop_history(self) -> None:
        assert self._history is not None
        self._history_traces = self._history.stop(self._ended_by)

    # -- stop --------------------------------------------------------------------------------------------------------

    def stop(self, error: BaseException | None = None) -> Recording:
        """Stop everything and hand over the recording; calling it again gives the same one.

        Parameters
        ----------
        error : BaseException or None
            How the cell ended, when it did not end well. Only its type and message are kept.
        """
        if self._recording is not None:
            return self._recording
        stop_ns = self._clock()
        samples = self._stop_sampler()
        if self._cards is not None:
            self.guard("NVML did not close cleanly", self._cards.close)
        self.stop_tracing("end of cell")
        self.guard("phases did not stop cleanly", self._phases.stop)
        self.guard("the device could not be restored", self._undo_device)
        counters_end: dict[str, dict[str, int]] = {}
        self.guard(
            "allocator counters are unavailable",
            lambda: counters_end.update({d: dict(counters.read(d)) for d in counters.devices_in_use() if d != "cpu"}),
        )
        traces = self._traces()
        used = dict.fromkeys(["cpu", *(t.device for t in traces), *(s.device for s in samples)])
        self._recording = Recording(
            start_ns=self._start_ns,
            stop_ns=stop_ns,
            label=self.options.label,
            note=self.options.note,
            cell=self.cell,
            environment=self._environment(),
            devices=tuple(self._describe(name) for name in used),
            traces=traces,
            claims=tuple(self._owners.claims),
            marks=tuple(self._phases.marks),
            stacks=self._stacks.values(),
            origins=self._origins.values(),
            samples=samples,
            counters_start=self._counters_start,
            counters_end=counters_end,
            limit=self.options.limit,
            card_bytes=self.options.card_bytes,
            steps=self._phases.steps,
            traced_steps=self._traced_steps,
            error=None if error is None else _error_info(error),
            notes=tuple(self._all_notes()),
            overhead_s=round(self._overhead, 6),
        )
        self._owners.claims, self._phases.marks = [], []
        return self._recording

    def _stop_sampler(self) -> tuple[Any, ...]:
        if self._sampler is None:
            return ()
        stopped: list[tuple[Any, ...]] = []
        sampler = self._sampler
        self.guard("the sampler did not stop cleanly", lambda: stopped.append(sampler.stop()))
        return stopped[0] if stopped else ()

    def _traces(self) -> tuple[Trace, ...]:
        found: list[Trace] = list(self._history_traces)
        if self._storages is not None:
            storages = self._storages
            self.guard("the storage trace could not be read", lambda: found.extend(storages.traces()))
        return tuple(found)

    def _all_notes(self) -> list[str]:
        parts = (self._cards, self._sampler, self._storages, self._history)
        return list(dict.fromkeys([*self.notes, *(note for part in parts for note in getattr(part, "notes", ()))]))

    def _describe(self, name: str) -> Device:
        if name.startswith("cuda"):
            try:
                properties = torch.cuda.get_device_properties(name)
                uuid = getattr(properties, "uuid", None)
                return Device(
                    name,
                    properties.name,
                    properties.total_memory,
                    None if uuid is None else str(uuid),
                    (properties.major, properties.minor),
                )
            except Exception as error:
                self._note(f"{name} could not be described: {error}")
        return Device(name, platform.processor() or "CPU" if name == "cpu" else name)

    def _environment(self) -> dict[str, str]:
        found = {
            "ipyvram": ipyvram.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "platform": platform.system(),
        }
        if "IPython" in sys.modules:
            found["ipython"] = str(sys.modules["IPython"].__version__)
        if self._phases.optimizers:
            found["optimizer"] = self._phases.optimizers[0]
            found["optimizer_implementation"] = self._phases.implementation
        if torch.backends.cudnn.benchmark:
            found["cudnn_benchmark"] = "True"

        def cuda() -> None:
            if torch.version.cuda and torch.cuda.is_available():
                found["cuda"] = torch.version.cuda
                if not torch.cuda.is_initialized() or all(
                    torch.cuda.memory_allocated(i) == 0 for i in range(torch.cuda.device_count())
                ):
                    found["idle_gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_initialized() else "a GPU"
                workspace = getattr(torch._C, "_cuda_getCublasWorkspaceSize", None)
                if workspace is not None:
                    found["cublas_workspace_bytes"] = str(workspace())

        self.guard("the environment could not be read", cuda)
        return found


def _cuda_possible() -> bool:
    """Whether the cell may allocate on an NVIDIA GPU; asks the driver without making a context."""
    return bool(torch.cuda.is_available())


def check_device(device: str) -> torch.device:
    """The device ``--device`` names.

    Raises
    ------
    ValueError
        Torch does not know it, or it is not there.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device {device}: torch knows no such device; write cpu, cuda, cuda:1 or mps") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(f"--device {device}: no CUDA device is available here; leave the option out or write cpu")
        if found.index is not None and found.index >= count:
            raise ValueError(f"--device {device}: there are {count} CUDA devices, numbered from 0")
    elif found.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"--device {device}: MPS is not available here; leave the option out or write cpu")
    elif found.type != "cpu":
        raise ValueError(f"--device {device}: cells can be measured on cpu, cuda and mps")
    return found


def _use_device(device: str | None) -> Callable[[], None]:
    """Make ``device`` torch's default and current device; what is returned puts back what was."""
    if device is None:
        return lambda: None
    wanted = check_device(device)
    default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    before = default.device if default is not None else None
    current = torch.cuda.current_device() if wanted.type == "cuda" and torch.cuda.is_initialized() else None
    torch.set_default_device(wanted)
    if wanted.type == "cuda":
        torch.cuda.set_device(wanted)

    def undo() -> None:
        torch.set_default_device(before)
        if current is not None:
            torch.cuda.set_device(current)

    return undo


def _error_info(error: BaseException) -> ErrorInfo:
    kind = type(error).__name__
    message = str(error).split("\n")[0][:500]
    memory = isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in message.lower()
    return ErrorInfo(kind, message, memory, isinstance(error, KeyboardInterrupt))

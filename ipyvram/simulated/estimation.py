"""One estimate: a cell's code in, a `Recording` of kind ``estimated`` out, and everything of the notebook's as before.

The life of an `Estimation`: `run` sets the notebook's state aside, exchanges its tensors for ``meta`` ones, lets `torch.cuda`
answer as on the card, runs the code under the two modes until enough steps are done, and undoes all of that in reverse.
"""

from __future__ import annotations

import functools
import importlib
import platform
import threading
import time
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import torch

import ipyvram
from ipyvram.cards import Card
from ipyvram.devices import cublas_handles
from ipyvram.options import Options
from ipyvram.patches import Patches
from ipyvram.probes.clock import Clock
from ipyvram.probes.interrupts import Interrupts
from ipyvram.probes.owners import Owners
from ipyvram.probes.phases import Phases
from ipyvram.probes.stacks import Interner, StackReader
from ipyvram.recording import Cell, Origin, Recording, Stack
from ipyvram.simulated import cuda_api, programs, transforms, typed
from ipyvram.simulated.autocast import Autocast
from ipyvram.simulated.descent import Descent
from ipyvram.simulated.device import OnCard
from ipyvram.simulated.front import Front, keep_on_in_the_engine
from ipyvram.simulated.host import HostTensors
from ipyvram.simulated.kernels import CudaKernels
from ipyvram.simulated.meeting import Meeting
from ipyvram.simulated.memory import DEVICE, DeviceMemory
from ipyvram.simulated.recorded import predicted
from ipyvram.simulated.refusal import CannotEstimate
from ipyvram.simulated.replaced import Replaced, graphs_of
from ipyvram.simulated.state import State, mentions, refuse_begun_generators
from ipyvram.simulated.swap import Found, Swap
from ipyvram.simulated.threads import Threads
from ipyvram.simulated.ways import Ways
from ipyvram.sweep.uninterrupted import uninterrupted

#: Bounds for code that finishes no optimizer step: passes through a model, events, the thread's own seconds since the last.
MAX_FORWARDS = 64
MAX_INFERENCES = 32
MAX_BEFORE_TRAINING = (
    10_000  # such passes, where the code names a backward that is still to come: a memory that fills first
)
MAX_EVENTS = 1_000_000
MAX_SECONDS = 60.0

#: Names in code that evaluates a model.
EVALUATING = frozenset({"eval", "no_grad", "inference_mode"})
TRAINING = frozenset({"backward"})
#: Names in code that puts tensors on a device.
CHOOSING = frozenset({"cuda", "device"})

_running = threading.Lock()


class _Enough(BaseException):
    """Ends the cell after the last step: no ``except Exception`` of the cell's stops it on its way."""


class Estimation:
    """Runs code once on a card that is not there.

    Parameters
    ----------
    options : Options
        Label, note, limit and the number of steps.
    card : Card
    namespace : dict
        The notebook's variables: the code's globals. They are as before afterwards.
    cell : Cell
    """

    def __init__(self, options: Options, card: Card, namespace: dict[str, Any], cell: Cell | None = None) -> None:
        self.options, self.card, self.namespace, self.cell = options, card, namespace, cell or Cell()
        self.notes: list[str] = []
        self.ended_by = "end of cell"
        self._clock = Clock()
        self._stacks: Interner[Stack] = Interner()
        self._origins: Interner[Origin] = Interner()
        self.memory = DeviceMemory(self._clock, StackReader(self._stacks), self._origins)
        self.ways = Ways(card, self.memory)
        self._owners = Owners(self._clock, self._identify, namespace)
        self._phases = Phases(self._clock, self._owners, self._on_step, self._on_forward, self._guard)
        self._before: Callable[[Any, Any, dict[str, Any]], None] = _nothing
        self._meeting: Meeting | None = None
        self._descent: Descent | None = None
        self.evaluated = False  # whether a model that trains was also run without gradients, or in evaluation mode
        self._forwards, self._waited = 0, MAX_BEFORE_TRAINING  # the latter: before one that a backward may follow
        self._trains = False  # whether the code names a backward
        self._begin_s = 0.0

    def run(self, body: Callable[[], Any], extra: Iterable[Any] = (), code: CodeType | None = None) -> Recording:
        """Run ``body`` until it ends or has done enough steps.

        Parameters
        ----------
        code : code object, optional
            What ``body`` executes, to see which variables it uses.
        extra : iterable
            Objects besides the namespace that the code may change.

        Raises
        ------
        CannotEstimate
            The code does something that has no estimate.
        BaseException
            What the code itself raises, with everything put back first.
        """
        if not _running.acquire(blocking=False):
            raise CannotEstimate("an estimate cannot run inside another one")
        undo: list[Callable[[], None]] = [_running.release]
        self._code = code or getattr(body, "__code__", None)
        start_ns = self._clock()
        try:
            self._prepare(undo, extra)
            self._begin_s = time.thread_time()
            start_ns = self._clock()
            try:
                with Front(self._before), self._on_card(self._check):
                    body()
                self._phases.count.over(failed=False)
            except _Enough:
                pass
            self._owners.variables.claim()
            stop_ns = self._clock()
            self.memory.stop()
            if self._meeting is not None and self._meeting.note:
                self._note(self._meeting.note)
        finally:
            with uninterrupted():
                _all(undo)
        return predicted(self, start_ns, stop_ns)

    def _on_card(self, check: Callable[[], None]) -> OnCard:
        return OnCard(self.memory, self.ways, self._host, self._note, check, self._kernels.by_operator, self._descent)

    def _prepare(self, undo: list[Callable[[], None]], extra: Iterable[Any]) -> None:
        """Everything that has to be in place before the code runs; what undoes it is added to ``undo``."""
        importlib.import_module("torch._dynamo")  # when imported, it takes stock of torch's functions: not of ours
        found = Found()
        self._host = HostTensors()
        undo.append(self._host.restore)
        state = State(self.namespace, self._note)
        undo.append(state.restore)
        state.save(extra)
        refuse_begun_generators(self.namespace, self._code)
        patches = Patches()
        undo.append(patches.undo)
        graphs, handles = (graphs_of(found.tensors), cublas_handles()) if torch.cuda.is_initialized() else ([], 0)
        swap = Swap(self.memory.expect, self._note)
        undo.append(swap.back)
        swap.to_card(found, self._host, self.namespace)
        without = not torch.cuda.is_available() and not torch.backends.mps.is_available()
        cuda_api.install(patches, self.card, self.memory)
        programs.install(patches, self.card, self._note)
        chooses = programs.devices(patches, self.namespace) or mentions(self._code, self.namespace, CHOOSING)
        if without:  # else a tensor is where it was put
            self._descent = Descent(self._host) if chooses else None
            self._meeting = self._before = Meeting(self._host, swap, self._descent)
            transforms.install(patches, self._meeting.before_a_transform)
        typed.install(patches, self.namespace)
        keep_on_in_the_engine(patches, lambda: Front(self._before), self._host.left)
        self._kernels = CudaKernels(self.card, self._note)
        for context in (self._kernels, Autocast()):
            undo.append(functools.partial(context.__exit__, None, None, None))  # also where entering is cut off
            context.__enter__()
        interrupts = Interrupts(DeviceMemory._freed, self.memory.free_the_dead)
        undo.append(interrupts.stop)
        interrupts.start()
        undo.append(self._phases.stop)
        self._phases.start()
        threads = Threads(lambda: (Front(self._before), self._on_card(_nothing)), _Enough)
        undo.append(threads.finish)
        threads.install(patches)
        self._owners.variables.claim(before=True)
        self.ways.keeps(handles)
        replaced = Replaced(self.namespace, self.memory, graphs)
        undo.append(replaced.forget)
        self.memory.before_alloc = replaced.look

    # -- while it runs -----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps that were run."""
        return self._phases.count.steps

    def _identify(self, storage: torch.UntypedStorage, before: bool) -> tuple[str, int] | None:
        if storage.device.type != "meta" or not storage.nbytes():
            return None
        serial = self.memory.identify(storage)
        return (DEVICE, serial) if serial else None

    def _guard(self, what: str, action: Callable[[], None]) -> None:
        """A probe's failure costs its figures and one line; the end of the estimate passes."""
        try:
            action()
        except Exception as error:
            self._note(f"{what}: {type(error).__name__}: {error}".split("\n")[0][:300])

    def _note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 50:
            self.notes.append(text)

    def _on_step(self, steps: int) -> None:
        self._begin_s = time.thread_time()
        if steps >= self.options.trace_steps:
            self._end(f"{steps} steps" if steps > 1 else "1 step")

    def _on_forward(self, module: torch.nn.Module | None, args: tuple[Any, ...]) -> None:
        if module is None:  # a backward
            return
        if not (module.training and torch.is_grad_enabled()) and any(p.requires_grad for p in module.parameters()):
            self.evaluated = True
        if self._phases.count.steps or self._phases.count.in_backward or next(module.parameters(), None) is None:
            return  # transforms of single images are modules, too
        self._forwards += 1
        if torch.is_grad_enabled():
            self._waited = min(self._waited, self._forwards - 1)
            over = self._forwards - self._waited > MAX_FORWARDS
        else:
            if self._forwards == MAX_INFERENCES + 1:
                self._trains = mentions(self._code, self.namespace, TRAINING)
            over = self._forwards > (MAX_BEFORE_TRAINING if self._trains else MAX_INFERENCES)
        if over:
            self._end(f"{self._forwards - 1} passes without an optimizer step")

    def _check(self) -> None:
        if len(self.memory.rows) > MAX_EVENTS:
            self._end(f"{MAX_EVENTS:,} events")
        elif self._begin_s and time.thread_time() - self._begin_s > MAX_SECONDS:
            self._end(f"{MAX_SECONDS:.0f} s")

    def _end(self, why: str) -> None:
        self.ended_by = why
        raise _Enough

    @property
    def left_out(self) -> str:
        """What of the program was not run, in words; empty where all of it was."""
        return "" if self.ended_by == "end of cell" else f"what comes after {self.ended_by}"

    @property
    def evaluates_later(self) -> bool:
        """Whether the code says that it evaluates, and has not done so when it was ended."""
        return bool(self.left_out) and not self.evaluated and mentions(self._code, self.namespace, EVALUATING)

    def environment(self) -> dict[str, str]:
        """As in a measured run, with what the card is like."""
        found = {
            "ipyvram": ipyvram.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "platform": platform.system(),
            "card": self.card.name,
        }
        if self.ways.keeps_workspaces:
            found["cublas_workspace_bytes"] = str(self.card.cublas_workspace_bytes)
        if self.memory.aside and self._phases.threads <= {threading.get_ident()}:
            found["stacks_of_threads"] = ",".join(map(str, sorted(self.memory.aside)))
        if self._phases.count.optimizer:
            found["optimizer"] = self._phases.count.optimizer
        return found


def _nothing(*_: Any) -> None:
    pass


def _all(undo: list[Callable[[], None]]) -> None:
    """Undo everything, newest first; a failure on the way is raised when all is done."""
    failure: Exception | None = None
    while undo:
        try:
            undo.pop()()
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure

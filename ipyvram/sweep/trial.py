"""One trial: a size comes in, what it needed comes out, and everything is as it was before.

`Runner` is what the engine asks for a figure; `MeasuredTrials` runs the code, an estimate can answer in its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ipyvram.findings.steps import second_step_bytes
from ipyvram.global_state import GlobalState
from ipyvram.measuring import Measurement
from ipyvram.options import Options
from ipyvram.recording import Cell
from ipyvram.report import Report
from ipyvram.sweep import failures, guard
from ipyvram.sweep.isolation import Baseline
from ipyvram.sweep.rehearsal import Script, script_of
from ipyvram.sweep.saved_state import SavedState
from ipyvram.sweep.uninterrupted import uninterrupted
from ipyvram.sweep.watch import Enough, Watch

#: Steps before the clock counts: the first makes optimizer state and workspaces, the second is the first steady one.
WARMUP_STEPS = 2
#: Steps that are timed unless the user says otherwise; the median of fewer says nothing.
TIMED_STEPS = 3
#: Steps of the run that confirms an answer.
CONFIRMING_STEPS = 10


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one size.

    Attributes
    ----------
    size : int
        What was asked for.
    shape : tuple of int
        Of the largest batch that the root module was given; empty where no module was called.
    out_of_memory : bool
        ``error`` then says so in one line, and the figures are those up to there.
    peak_bytes : int or None
        The sum of ``categories``; None where it could not be measured.
    reserved_bytes : int or None
        The most the allocator held; None where there is no such thing.
    outside_bytes : int
        What else was on the card: the context and other processes.
    step_s, samples_per_s : float or None
        Median of ``timed_steps`` steps.
    retries : int
        How often the allocator had to give back its cache to find room.
    more_bytes : int
        What a second step would need beyond the peak, where there was one only.
    leftover : str
        What an earlier trial had left in memory, with what holds it; empty where memory was at its baseline.
    script : Script or None
        What it asked of a caching allocator, where all of that is known.
    """

    size: int
    shape: tuple[int, ...] = ()
    out_of_memory: bool = False
    error: str = ""
    peak_bytes: int | None = None
    categories: dict[str, int] = field(default_factory=dict)
    reserved_bytes: int | None = None
    outside_bytes: int = 0
    steps: int = 0
    timed_steps: int = 0
    step_s: float | None = None
    samples_per_s: float | None = None
    retries: int = 0
    more_bytes: int = 0
    device: str = ""
    device_name: str = ""
    notes: tuple[str, ...] = ()
    leftover: str = ""
    script: Script | None = field(default=None, compare=False, repr=False)

    @property
    def needed_bytes(self) -> int | None:
        """What counts against the limit: what the allocator held (or the tensors), what else was on the card, a second step."""
        held = self.reserved_bytes if self.reserved_bytes is not None else self.peak_bytes
        return None if held is None else held + self.outside_bytes + self.more_bytes


class Body(Protocol):
    """The code of a sweep."""

    @property
    def namespace(self) -> dict[str, Any]:
        """The variables it runs on."""

    @property
    def cell(self) -> Cell:
        """Its text."""

    def run(self, size: int) -> None:
        """Run it once with a batch size."""

    def save(self) -> SavedState:
        """Keep what it may change."""

    def loader_with(self, batch: int) -> str:
        """The name of a loader from elsewhere that it uses and that gives ``batch`` samples; empty if none."""


class Runner(Protocol):
    """Gives the figures of a size."""

    def __call__(self, size: int, steps: int) -> Trial:
        """One trial with ``steps`` timed steps."""


class ProgramFailed(Exception):
    """The code raised something that is no matter of memory: its error is the cause. The sweep cannot go on."""


class MeasuredTrials:
    """Trials that run the code.

    Parameters
    ----------
    body : Body
    limit_bytes : int or None
        Memory that a trial may take; going beyond it is an out-of-memory inside torch.
    quiet : callable
        A context manager in which what the code prints and displays is not shown.
    device : str, optional
        Torch's default and current device during the trials.

    Raises
    ------
    CannotRestore
        Something that the code uses could not be put back; before anything runs.
    """

    def __init__(
        self,
        body: Body,
        limit_bytes: int | None = None,
        quiet: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        device: str | None = None,
    ) -> None:
        self._body, self._limit, self._quiet, self._device = body, limit_bytes, quiet, device
        if limit_bytes is not None:
            guard.make_ready()
        self._fractions = guard.saved_fractions()
        self._global = GlobalState()
        self._saved = body.save()
        self._baseline = Baseline()
        self._leftover = ""

    def __call__(self, size: int, steps: int) -> Trial:
        """Run the code at one size; everything is as before when this returns or raises.

        Raises
        ------
        ProgramFailed
            The code raised something else than an out-of-memory.
        KeyboardInterrupt
            The user stopped it.
        """
        leftover_before = self._leftover
        watch = Watch(WARMUP_STEPS, steps)
        measurement = Measurement(
            Options(trace_steps=WARMUP_STEPS, device=self._device),
            self._body.cell,
            self._body.namespace,
            budget=guard.budget(self._limit),
            keep=False,
            by_hand=watch.by_hand,
        )
        report, error = None, None
        outside = guard.outside_bytes()  # what the guard takes off, too: also known where there is no NVML
        try:
            self._saved.park()
            error = self._run(size, watch, measurement)
        finally:
            with uninterrupted():
                report = measurement.finish(error)
                memory, broken = failures.is_out_of_memory(error), failures.broke_the_device(error)
                text = failures.one_line(error) if error is not None else ""
                if memory and error is not None:
                    failures.cut(error)
                    error = None
                self._put_back(broken)
        if error is not None:
            raise error if isinstance(error, KeyboardInterrupt) else ProgramFailed(text) from error
        trial = _trial(size, watch, report, (*measurement.notes,))
        recording = measurement.recording
        return replace(
            trial,
            out_of_memory=memory or measurement.refused or trial.out_of_memory,
            error=text or ("caught by the program" if measurement.refused or trial.out_of_memory else ""),
            outside_bytes=max(outside, trial.outside_bytes),
            leftover=leftover_before,
            script=script_of(recording, trial.device) if recording is not None and error is None else None,
        )

    def _run(self, size: int, watch: Watch, measurement: Measurement) -> BaseException | None:
        """The error that ended the code, without this frame's being inside an ``except``."""
        raised: BaseException | None = None
        try:
            with self._quiet(), guard.memory_fraction(self._limit):
                measurement.start()
                watch.start()
                try:
                    self._body.run(size)
                finally:
                    watch.stop()
        except Enough:
            pass
        except BaseException as error:
            raised = error.with_traceback(failures.users_part(error.__traceback__))
        return raised

    def _put_back(self, device_is_broken: bool) -> None:
        if device_is_broken:  # what is on the CPU can still be put back
            for restore in (self._saved.restore, self._global.restore):
                with contextlib.suppress(RuntimeError):
                    restore()
            return
        self._saved.restore()
        self._global.restore()
        self._fractions()
        left = self._baseline.leftover()
        self._leftover = str(left) if left is not None else ""


def _trial(size: int, watch: Watch, report: Report | None, notes: tuple[str, ...]) -> Trial:
    trial = Trial(
        size=size,
        shape=watch.shape,
        steps=watch.steps,
        timed_steps=watch.timed_steps,
        step_s=watch.step_s,
        samples_per_s=watch.samples_per_s,
        notes=notes,
    )
    return trial if report is None else with_figures(trial, report)


def with_figures(trial: Trial, report: Report) -> Trial:
    """The trial with the memory that a report tells of."""
    return replace(
        trial,
        peak_bytes=report.peak_bytes,
        categories={name: count for name, count in report.peak.items() if count},
        reserved_bytes=report.peak_reserved_bytes,
        outside_bytes=report.card.get("context", 0) + report.card.get("other_processes", 0),
        device=report.device,
        device_name=report.device_name,
        retries=report.allocator.get("retries", 0),
        more_bytes=max(0, second_step_bytes(report) - report.peak_bytes),
        out_of_memory=report.allocator.get("ooms", 0) > 0,  # also one that the program caught and got over
        notes=(*trial.notes, *report.measurement.notes),
    )

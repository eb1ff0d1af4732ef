"""One measured run: start the probes, let the cell run, stop them, hand over a `Recording`.

A fault in any probe costs that probe's figures and one line in the report; it never reaches the cell. This module
computes nothing from what it records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from ipyvram.arming import Arming
from ipyvram.devices import check_device, cuda_possible, describe, use_device, used_cuda
from ipyvram.guarding import Guard
from ipyvram.options import Options
from ipyvram.probes import counters, ending
from ipyvram.probes.clock import Clock
from ipyvram.probes.nvml import Cards, open_cards
from ipyvram.probes.oom import OomWatch
from ipyvram.probes.stacks import StackReader
from ipyvram.pulse import Pulse, held_by_claims, leading_device, limit_of
from ipyvram.recording import Cell, Device, Observation, OomEvent, Recording, Samples
from ipyvram.sampler import Sampler, combined_reader

__all__ = ["Run", "check_device"]


class Run:
    """Measures what happens between `start` and `stop`, on the thread that calls them.

    Parameters
    ----------
    options : Options
    cell : Cell
        The measured code, to show its lines.
    namespace : mapping or None
        The notebook's variables: they give tensors their names. Read, never changed.
    budget : mapping of str to int, optional
        See `StorageTrace`.
    by_hand : callable, optional
        Called with the number of steps, after those of which no optimizer tells.
    """

    def __init__(
        self,
        options: Options,
        cell: Cell | None = None,
        namespace: Mapping[str, Any] | None = None,
        budget: Mapping[str, int] | None = None,
        by_hand: Callable[[int], None] | None = None,
    ) -> None:
        self.options, self.cell = options, cell or Cell()
        if options.budget_bytes is not None:
            budget = {"cpu": options.budget_bytes} | dict(budget or {})
        self.guard = Guard()
        self._clock = Clock()
        variables = namespace if namespace is not None else {}
        steps = options.trace_steps if options.budget_bytes is None else 0
        self._arming = arming = Arming(self._clock, self.guard, steps, variables, budget, by_hand)
        self._tracing, self._owners, self._phases = arming.tracing, arming.owners, arming.phases
        self.guard.after = self._tracing.looked
        self._namespace = namespace
        self._oom = OomWatch(self._clock, StackReader(self._tracing.stacks))
        self._cards: Cards | None = None
        self._card_names: list[str] = []
        self._sampler: Sampler | None = None
        self._samples: tuple[Samples, ...] = ()
        self._held: tuple[tuple[int, str], dict[str, int]] = ((0, ""), {})
        self._recording: Recording | None = None
        self._counters_start: dict[str, dict[str, int]] = {}
        self._started = ExitStack()  # what takes everything away again, also when `stop` itself fails
        self._start_ns = 0
        self._thread = threading.get_ident()

    # -- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Arm everything. Never raises for a fault of ours; `Options.device` is applied here."""
        self._undo("the device could not be restored", use_device(self.options.device))
        self._start_ns = self._clock()
        self._thread = threading.get_ident()
        self.guard("NVML is unavailable", self._open_cards)
        self.guard("allocator counters are unavailable", self._read_counters_start)
        self._arming.start(self._undo)
        if cuda_possible():
            self._undo("an out-of-memory would be explained after the cell", self._oom.stop)
            self.guard("an out-of-memory would not be explained", self._oom.start)
        self._undo("the sampler did not stop cleanly", self._stop_sampler)
        self.guard("the sampler is unavailable", self._start_sampler)

    def _undo(self, what: str, action: Callable[[], None]) -> None:
        """Have ``action`` run when the cell ends, whatever else fails then; the last one first."""
        self._started.callback(self.guard, what, action)

    def _open_cards(self) -> None:
        try:
            self._cards = open_cards()
        except RuntimeError:
            if cuda_possible():  # a machine without a GPU lacks nothing
                raise
        else:
            self._undo("NVML did not close cleanly", self._cards.close)
            self._card_names = self._cards.names()

    def _read_counters_start(self) -> None:
        self._counters_start = _counters()

    def _start_sampler(self) -> None:
        read = combined_reader(self._cards)

        def watched(device: str) -> Mapping[str, float]:
            figures = read(device)
            self._arming.see(device, figures)
            return figures

        self._sampler = Sampler(self._clock, watched, counters.devices_in_use, self.options.interval_s)
        self._sampler.start()

    # -- while it runs -----------------------------------------------------------------------------------------------

    def pulse(self) -> Pulse:
        """The run at this moment, for the live meter; from any thread."""
        latest = self._sampler.latest if self._sampler is not None else {}
        device = leading_device(latest)
        figures = {name: float(value) for name, value in latest.get(device, {}).items() if value == value}
        card_bytes = self.options.card_bytes or (int(figures.get("device_total", 0)) or None)
        elapsed_s = (self._clock() - self._start_ns) / 1e9
        limit_bytes = limit_of(self.options.limit, card_bytes)
        claims = self._owners.claims
        if self._held[0] != (len(claims), device):  # on the meter's thread: what is appended meanwhile counts next time
            self._held = (len(claims), device), held_by_claims(claims[:], device)
        label, held = self.options.label, self._held[1]
        return Pulse(elapsed_s, self._phases.count.steps, device, figures, card_bytes, limit_bytes, label, held)

    def retrace(self, reason: str) -> bool:
        """See `Arming.retrace`."""
        return self._arming.retrace(reason)

    # -- stop --------------------------------------------------------------------------------------------------------

    def stop(self, error: BaseException | None = None) -> Recording:
        """Stop everything and hand over the recording; calling it again gives the same one.

        Parameters
        ----------
        error : BaseException or None
            How the cell ended, when it did not end well. Only its type and message are kept.
        """
        if self._recording is None:
            with self._started:  # also when what follows fails, all that was started is taken away
                stop_ns = self._clock()
                self.guard("steps could not be counted", partial(self._phases.count.over, failed=error is not None))
                self.guard("the sampler did not stop cleanly", self._stop_sampler)
                self._oom.stop()
                self._arming.error = error
                devices = dict.fromkeys(["cpu", *(s.device for s in self._samples)])
                observations = ending.observe(
                    self.guard, self._namespace, error, self._phases.orphans, self._cards, devices
                )
                oom = self._out_of_memory(error)
                if oom is None and (caught := self._oom.event) is not None:
                    survived = Observation("caught_oom", caught.requested_bytes, device=caught.device)
                    observations = (*observations, survived)
                if self._arming.rose is not None:
                    observations = (*observations, self._arming.rose)
            self._arming.error, self._arming.over = None, True
            self._recording = self._record(stop_ns, error, observations, oom)
            self._owners.claims.clear()
            self._phases.marks = []
        return self._recording

    def _record(
        self,
        stop_ns: int,
        error: BaseException | None,
        observations: tuple[Observation, ...],
        oom: OomEvent | None,
    ) -> Recording:
        """What the probes have seen, now that they are gone."""
        counters_end: dict[str, dict[str, int]] = {}
        self.guard("allocator counters are unavailable", lambda: counters_end.update(_counters()))
        traces, samples = self._tracing.traces(), self._samples
        surroundings = ending.surroundings(self.guard, self._phases, self._card_names, used_cuda(traces, samples))
        if {self._thread, *self._phases.threads} == {threading.main_thread().ident} and self._tracing.aside:
            surroundings["stacks_of_threads"] = ",".join(map(str, sorted(self._tracing.aside)))
        used = dict.fromkeys(["cpu", *(t.device for t in traces), *(s.device for s in samples)])
        devices = tuple(self._describe(name) for name in used)
        return Recording(
            start_ns=self._start_ns,
            stop_ns=stop_ns,
            label=self.options.label,
            note=self.options.note,
            cell=self.cell,
            environment=surroundings,
            devices=devices,
            traces=traces,
            claims=tuple(self._owners.claims),
            marks=tuple(self._phases.marks),
            stacks=self._tracing.stacks.values(),
            origins=self._tracing.origins.values(),
            samples=samples,
            counters_start=self._counters_start,
            counters_end=counters_end,
            limit=self.options.limit,
            card_bytes=self.options.card_bytes,
            card_name=self.options.card_name,
            steps=self._phases.count.steps,
            traced_steps=self._arming.traced_steps,
            error=None if error is None else ending.error_info(error),
            notes=self._all_notes(),
            overhead_s=round(self.guard.seconds, 6),
            observations=observations,
            oom=oom,
        )

    def _out_of_memory(self, error: BaseException | None) -> OomEvent | None:
        found: list[OomEvent | None] = [None]
        event = self._oom.event or self._tracing.refused
        self.guard(
            "what the error keeps alive is unknown",
            lambda: found.append(ending.out_of_memory(error, event, self._namespace)),
        )
        return found[-1]

    @property
    def refused(self) -> bool:
        """Whether the byte budget refused an allocation, also where the program got over that."""
        return self._tracing.refused is not None

    def _stop_sampler(self) -> None:
        if self._sampler is not None:
            self._samples = self._sampler.stop()

    def _all_notes(self) -> tuple[str, ...]:
        parts = (self.guard, self._cards, self._sampler, self._tracing, self._owners.variables)
        card = [self.options.card_note] if self.options.card_note else []
        return tuple(dict.fromkeys([*card, *(note for part in parts for note in getattr(part, "notes", ()))]))

    def _describe(self, name: str) -> Device:
        try:
            return describe(name)
        except Exception as error:
            self.guard.note(f"{name} could not be described: {error}")
            return Device(name, name)


def _counters() -> dict[str, dict[str, int]]:
    return {device: counters.read(device) for device in counters.devices_in_use() if device != "cpu"}

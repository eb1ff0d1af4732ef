"""`analyse`: a `Recording` in, a `Report` out. A pure function; needs neither torch nor IPython nor a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ipyvram import grouping
from ipyvram.batches import Batches, always_the_same
from ipyvram.device_figures import DeviceFigures
from ipyvram.findings import find
from ipyvram.grouping import by_line, by_module, group, holders
from ipyvram.instants import instant
from ipyvram.lifetimes import largest_spans
from ipyvram.marks import PhaseSpan, forwards_of_a_backward
from ipyvram.naming import Names
from ipyvram.out_of_memory import account_of
from ipyvram.peak import Peak, peak_of
from ipyvram.recording import Action, Device, Observation, Recording, Samples
from ipyvram.report import Report
from ipyvram.report_rows import Lifetime, Measurement, OutOfMemory, Phase, StepAccount, TensorRow, Timeline
from ipyvram.several_devices import together
from ipyvram.step_accounts import step_accounts, unused_graphs
from ipyvram.stretches import Stretch, curves, highest, stretches
from ipyvram.thinning import pick
from ipyvram.units import format_bytes

TIMELINE_POINTS = 1600  # instants kept in a report: about two for each pixel column of the picture
#: By so little a later peak is that of the traced steps again, beside what has grown (a list of losses).
LATER_SHARE = 0.01
MAX_TENSORS = 4000  # rows kept in a report; the smallest beyond are merged by category

_SOURCES = {"history": "allocator trace", "storages": "storage trace"}


def analyse(recording: Recording) -> Report:
    """Explain a recording: every byte named, the sums closed.

    Returns
    -------
    Report
        Of the device that matters most (`several_devices`); the others that were used are in `Report.others`.
    """
    traced = dict.fromkeys(trace.device for trace in recording.traces)
    sampled = {samples.device: samples for samples in recording.samples}
    names = list(dict.fromkeys([*traced, *(d for d in sampled if _used(sampled[d]))])) or ["cpu"]
    accounts = [_Account(recording, name, sampled.get(name)).report() for name in names]
    accounts = [replace(account, findings=find(account)) for account in accounts]
    return together(accounts)


def _used(samples: Samples) -> bool:
    column = samples.columns.get("allocated")
    return column is not None and bool(np.nanmax(column, initial=0) > 0)


class _Account:
    """The report of one device."""

    def __init__(self, recording: Recording, device: str, samples: Samples | None) -> None:
        self.device = next((d for d in recording.devices if d.id == device), Device(device, device))
        self.samples, self.start_ns = samples, recording.start_ns
        self.stretches = stretches(recording, device)
        self.main = main = highest(self.stretches)  # what is said of the peak is said from the trace that saw it
        self.trace = main.trace if any(t.device == device for t in recording.traces) else None
        self.recording, self.ledger, self.attribution = main.recording, main.ledger, main.attribution
        self.phases = tuple(phase for stretch in self.stretches for phase in stretch.phases)
        self.names = Names(self.recording)
        self.peak = peak_of(main, device, samples, traced=self.trace is not None)
        self.peak_ns = int(self.ledger.time_ns[self.peak.instant])
        self.figures = DeviceFigures(recording, device, samples, self.ledger.reserved)

    def report(self) -> Report:
        r, peak = self.recording, self.peak
        card_bytes = r.card_bytes or self.device.total_bytes
        reserved = self.figures.reserved_at(peak.instant, peak.bytes)
        tensors = self._tensors(peak)
        share, size = r.limit
        when, phase, step = self._when(peak)
        card = self.figures.card(self.peak_ns, peak.bytes, reserved, card_bytes) if card_bytes else {}
        return Report(
            peak_bytes=peak.bytes,
            peak=peak.account,
            start=self.stretches[0].at(0),
            end=self.stretches[-1].at(-1),
            label=r.label,
            note=r.note,
            kind=r.kind,
            device=self.device.id,
            device_name=self.device.name,
            peak_reserved_bytes=self.figures.peak_reserved(),
            card=card,
            card_bytes=card_bytes,
            card_name=r.card_name,
            limit_bytes=size if size is not None else int((share or 0.8) * card_bytes) if card_bytes else None,
            peak_time_s=self._seconds(self.peak_ns),
            peak_when=when,
            peak_phase=phase,
            peak_step=step,
            steps=r.steps,
            traced_steps=r.traced_steps,
            duration_s=(r.stop_ns - r.start_ns) / 1e9,
            overhead_s=r.overhead_s,
            started_at=round(r.start_ns / 1e9, 3),
            provenance=self._provenance(peak),
            holders=holders(tensors),
            error=None if r.error is None else f"{r.error.type}: {r.error.message}".rstrip(": "),
            timeline_data=self._timeline(),
            phases=tuple(self._phase(p) for p in self.phases),
            tensors_at_peak=tensors,
            modules_at_peak=group(tensors, by_module),
            lines_at_peak=group(tensors, by_line),
            measurement=self._measurement(),
            environment=r.environment,
            lifetimes=self._lifetimes(),
            step_accounts=self._step_accounts(),
            observations=self._observations(self.main),
            allocator=self.figures.allocator(),
            device_bytes=self.device.total_bytes,
            oom=self._out_of_memory(),
            batch=self._batch(tensors),
        )

    def _step_accounts(self) -> tuple[StepAccount, ...]:
        parts = (
            step_accounts(s.phases, s.ledger.time_ns, s.accounts, self.start_ns, Batches.of(s.recording))
            for s in self.stretches
        )
        return tuple(row for part in parts for row in part)

    def _batch(self, tensors: tuple[TensorRow, ...]) -> int:
        """Samples in the step of the peak; in the whole cell where that has none before it."""
        at = self.peak_ns
        if self.phases and at < self.phases[0].begin_ns:
            return 0  # before anything ran
        begin = max((p.end_ns for p in self.phases if p.name == "optimizer" and p.end_ns <= at), default=0)
        batches = Batches.of(self.recording)
        return batches.size(begin, at) or batches.size(0, at) or grouping.batch_size(tensors) or 0

    def _out_of_memory(self) -> OutOfMemory | None:
        event = self.recording.oom
        if event is None or event.device != self.device.id:
            return None
        there = [s for s in self.stretches if s.trace.start_ns <= event.time_ns] or [self.stretches[0]]
        stretch, first = there[-1], len(there) == 1  # what saw it tells of it
        return account_of(
            event, stretch, first, self.names, self.phases, self._observations(stretch), self._step_accounts()
        )

    # -- beside the account ------------------------------------------------------------------------------------------

    def _observations(self, seen_from: Stretch) -> tuple[Observation, ...]:
        mine = [o for o in self.recording.observations if o.device in ("", self.device.id)]
        if emptied := self._emptied():
            mine.append(Observation("empty_cache", emptied, device=self.device.id))
        if any(always_the_same(s.attribution.claims, s.recording.marks) for s in self.stretches):
            mine.append(Observation("same_input", device=self.device.id))
        if (calls := forwards_of_a_backward(seen_from.recording.marks)) > 1:
            mine.append(Observation("forwards", count=calls, device=self.device.id))
        if any(p.name == "forward" and not p.grad and p.begin_ns <= self.peak_ns < p.end_ns for p in self.phases):
            mine.append(Observation("peak_without_gradients", device=self.device.id))
        graphs = unused_graphs(seen_from.recording.marks, seen_from.ledger, seen_from.attribution, self.device.id)
        return (*mine, *graphs)

    def _emptied(self) -> int:
        """Bytes of segments that were given back though no allocation had to be tried again: the cell emptied the cache.

        Some trainers do, and then nobody thinks to have freed anything.
        """
        if self.recording.cell.source and "empty_cache" not in self.recording.cell.source:
            return 0
        if any(self.figures.allocator().get(name, 0) for name in ("retries", "ooms")):
            return 0
        events = [s.trace.events for s in self.stretches if s.trace.source == "history"]
        back = (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP)
        return sum(int(e.size[np.isin(e.action, back)].sum()) for e in events)

    # -- instants ----------------------------------------------------------------------------------------------------

    def _seconds(self, time_ns: int) -> float:
        return round((time_ns - self.start_ns) / 1e9, 6)

    def _provenance(self, peak: Peak) -> dict[str, str]:
        last = self.stretches[-1].trace
        whole = self.trace is not None and last.ended_by == "end of cell"
        guessed = peak.unseen or "saved_tensors" in self.recording.environment
        marks = {
            "peak": peak.provenance,
            "categories": "inferred" if guessed else "exact" if self.trace is not None else "sampled",
            "end": "exact" if whole else "end of trace",
            "context": "inferred",
            "other_processes": "sampled",
        }
        if self.ledger.reserved is not None or self.figures.peak_reserved() is not None:
            marks["reserved"] = "exact" if self.ledger.reserved is not None else "sampled"
        if self.recording.kind == "estimated":
            marks = dict.fromkeys(marks, "predicted")
        return marks

    def _when(self, peak: Peak) -> tuple[str, str, int]:
        """The peak's instant in words, its phase and its step."""
        if peak.later > LATER_SHARE * peak.bytes:
            return "after the traced part", "", 0
        steps = self.recording.steps
        last = steps if self.recording.error is None else 0  # an error may have cut a step short
        found = instant(self.phases, self.peak_ns, steps=steps > 0, last=last, events_ns=self.ledger.time_ns)
        more = f" ({format_bytes(peak.later)} more later)" if peak.later else ""
        return found[0] + more, *found[1:]

    def _phase(self, p: PhaseSpan) -> Phase:
        return Phase(self._seconds(p.begin_ns), self._seconds(p.end_ns), p.name, p.step)

    # -- curves ------------------------------------------------------------------------------------------------------

    def _timeline(self) -> Timeline:
        if self.trace is None:
            return Timeline((), {}, (), 0.0, *self._sampled())
        found = curves(self.stretches, TIMELINE_POINTS)
        return Timeline(
            tuple(self._seconds(int(t)) for t in found.time_ns),
            {c: tuple(column.tolist()) for c, column in found.categories.items() if column.any()},
            tuple(found.reserved.tolist()) if found.reserved is not None else (),
            self._seconds(self.stretches[-1].trace.stop_ns),
            *self._sampled(),
            gaps_s=tuple((self._seconds(begin), self._seconds(end)) for begin, end in found.gaps_ns),
        )

    def _sampled(self) -> tuple[tuple[float, ...], dict[str, tuple[int | None, ...]]]:
        times, columns = self.figures.sampled(TIMELINE_POINTS)
        return tuple(self._seconds(int(t)) for t in times), columns

    def _source(self) -> str:
        if self.recording.kind == "estimated":
            return "simulated card"
        return _SOURCES[self.trace.source] if self.trace else "sampler only"

    def _measurement(self) -> Measurement:
        s, t = self.samples, self.trace
        traces = [stretch.trace for stretch in self.stretches] if t else []
        notes = list(self.recording.notes)
        if self.ledger.mismatches:
            notes.append(f"{self.ledger.mismatches} events did not replay: block sizes and cache are approximate")
        return Measurement(
            source=self._source(),
            events=sum(len(trace.events) for trace in traces),
            claims=sum(len(stretch.recording.claims) for stretch in self.stretches),
            traced_s=round(sum(trace.stop_ns - trace.start_ns for trace in traces) / 1e9, 6),
            ended_by="; then ".join(trace.ended_by for trace in traces),
            samples=s.count if s else 0,
            longest_gap_s=round(s.longest_gap_s, 6) if s else 0.0,
            period_s=s.period_s if s else 0.0,
            notes=tuple(dict.fromkeys(notes)),
        )

    # -- what is live at the peak ------------------------------------------------------------------------------------

    def _tensors(self, peak: Peak) -> tuple[TensorRow, ...]:
        live = self.attribution.category_at(peak.instant)
        order = sorted(live, key=lambda row: -int(self.ledger.bytes[row]))
        largest = (self._tensor(row, live[row]) for row in order[:MAX_TENSORS])
        rows = sorted((t for t in largest if t.bytes), key=lambda t: (-t.bytes, not t.name, t.name))
        return (*peak.unseen, *rows, *self._smaller({row: live[row] for row in order[MAX_TENSORS:]}))

    def _smaller(self, live: dict[int, str]) -> list[TensorRow]:
        """One row for each category of these; to name thousands that nobody will read takes seconds."""
        totals: dict[str, list[int]] = {}
        for row, category in live.items():
            total = totals.setdefault(category, [0, 0])
            total[0] += int(self.ledger.bytes[row])
            total[1] += 1
        return [TensorRow(size, name, f"{n} smaller", count=n) for name, (size, n) in totals.items() if size]

    def _lifetimes(self) -> tuple[Lifetime, ...]:
        """What was live at any moment, for pointing at one in the timeline."""
        if self.trace is None:
            return ()
        ledger, end = self.ledger, self._seconds(self.trace.stop_ns)
        found = []
        for span in largest_spans(
            ledger, self.attribution, pick(ledger.time_ns.astype(np.float64), self.main.total, 800)
        ):
            tensor = self._tensor(span.row, span.category)
            name = " · ".join(p for p in (tensor.called, tensor.place) if p)
            until = end if span.end >= ledger.instants else self._seconds(int(ledger.time_ns[span.end]))
            begin = self._seconds(int(ledger.time_ns[span.begin]))
            found.append(Lifetime(int(ledger.bytes[span.row]), span.category, name, begin, until))
        return tuple(found)

    def _tensor(self, row: int, category: str) -> TensorRow:
        return self.names.tensor(self.ledger, self.attribution, row, category)

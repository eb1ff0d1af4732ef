"""`analyse`: a `Recording` in, a `Report` out. A pure function; needs neither torch nor IPython nor a GPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from ipyvram import grouping
from ipyvram.batches import Batches, always_the_same
from ipyvram.earlier import gradients_of, in_order, there_before
from ipyvram.findings import find
from ipyvram.grouping import by_line, by_module, group, holders
from ipyvram.instants import instant
from ipyvram.lifetimes import largest_spans
from ipyvram.marks import PhaseSpan, forwards_of_a_backward, module_at
from ipyvram.naming import Names
from ipyvram.out_of_memory import explain, used, with_remedies
from ipyvram.peak import Peak, peak_of
from ipyvram.recording import Action, Device, Observation, OomEvent, Origin, Recording, Samples
from ipyvram.report import Report
from ipyvram.report_rows import Lifetime, Measurement, OutOfMemory, Phase, StepAccount, TensorRow, Timeline
from ipyvram.several_devices import together
from ipyvram.step_accounts import step_accounts, unused_graphs
from ipyvram.stretches import curves, highest, stretches
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
        main = highest(self.stretches)  # what is said of the peak is said from the trace that saw it
        self.trace = main.trace if any(t.device == device for t in recording.traces) else None
        self.recording, self.ledger, self.attribution = main.recording, main.ledger, main.attribution
        self.phases = tuple(phase for stretch in self.stretches for phase in stretch.phases)
        self.accounts, self.total, self._at = main.accounts, main.total, main.at
        self.names = Names(self.recording)
        self.peak = peak_of(main, device, samples, traced=self.trace is not None)
        self.peak_ns = int(self.ledger.time_ns[self.peak.instant])

    def report(self) -> Report:
        r, peak = self.recording, self.peak
        card_bytes = r.card_bytes or self.device.total_bytes
        reserved = self._reserved_at(peak)
        tensors = self._tensors(peak)
        share, size = r.limit
        when, phase, step = self._when(peak)
        card = self._card(peak, reserved, card_bytes) if card_bytes else {}
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
            peak_reserved_bytes=self._peak_reserved(),
            card=card,
            card_bytes=card_bytes,
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
            observations=self._observations(),
            allocator=self._allocator(),
            device_bytes=self.device.total_bytes,
            oom=self._out_of_memory(),
            batch=self._batch(peak, tensors),
        )

    def _step_accounts(self) -> tuple[StepAccount, ...]:
        parts = (
            step_accounts(s.phases, s.ledger.time_ns, s.accounts, self.start_ns, Batches.of(s.recording))
            for s in self.stretches
        )
        return tuple(row for part in parts for row in part)

    def _batch(self, peak: Peak, tensors: tuple[TensorRow, ...]) -> int:
        """Samples in the step of the peak; in the whole cell where that has none before it."""
        at = self.peak_ns
        if self.phases and at < self.phases[0].begin_ns:
            return 0  # before anything ran
        begin = max((p.end_ns for p in self.phases if p.name == "optimizer" and p.end_ns <= at), default=0)
        batches = Batches.of(self.recording)
        return batches.size(begin, at) or batches.size(0, at) or grouping.batch_size(tensors) or 0

    # -- out of memory -----------------------------------------------------------------------------------------------

    def _out_of_memory(self) -> OutOfMemory | None:
        event = self.recording.oom
        if event is None or event.device != self.device.id:
            return None
        there = [s for s in self.stretches if s.trace.start_ns <= event.time_ns] or [self.stretches[0]]
        then = copy.copy(self)  # the same device, seen from the trace that saw this
        then.recording, then.ledger, then.attribution = there[-1].recording, there[-1].ledger, there[-1].attribution
        then._at = there[-1].at
        return then._explained(event, first=there[-1] is self.stretches[0])

    def _explained(self, event: OomEvent, first: bool) -> OutOfMemory:
        at = max(0, int(np.searchsorted(self.ledger.time_ns, event.time_ns, side="right")) - 1)
        live = tuple(self._tensor(*found) for found in in_order(self.ledger, self.attribution, at))
        when = instant(self.phases, event.time_ns, steps=any(p.name == "optimizer" for p in self.phases), parts=False)
        oom = explain(event, self._at(at), live, self._asked(event), when)
        earlier = there_before(self.ledger, self.attribution, at, live) if first else ()
        known = self._observations(), live, self._step_accounts(), self.phases, earlier
        gradients = gradients_of(self.ledger, self.attribution, at, used(self.recording))
        return with_remedies(oom, self.recording, event, *known, gradients)

    def _asked(self, event: OomEvent) -> TensorRow:
        """Who asked for what did not fit, in the form of a tensor's row."""
        r = self.recording
        frame, source, file = self.names.place(r.stacks[event.stack] if event.stack >= 0 else ())
        origin = r.origins[event.origin] if event.origin >= 0 else Origin()
        return TensorRow(
            bytes=event.requested_bytes,
            category="other",
            name=origin.op.removeprefix("aten."),
            module=module_at(r.marks, event.time_ns),
            line=frame.line if frame else None,
            source=source,
            file=file,
            shape=origin.shape,
            dtype=origin.dtype,
        )

    # -- beside the account ------------------------------------------------------------------------------------------

    def _observations(self) -> tuple[Observation, ...]:
        mine = [o for o in self.recording.observations if o.device in ("", self.device.id)]
        if emptied := self._emptied():
            mine.append(Observation("empty_cache", emptied, device=self.device.id))
        if any(always_the_same(s.attribution.claims, s.recording.marks) for s in self.stretches):
            mine.append(Observation("same_input", device=self.device.id))
        if (calls := forwards_of_a_backward(self.recording.marks)) > 1:
            mine.append(Observation("forwards", count=calls, device=self.device.id))
        if any(p.name == "forward" and not p.grad and p.begin_ns <= self.peak_ns < p.end_ns for p in self.phases):
            mine.append(Observation("peak_without_gradients", device=self.device.id))
        return (*mine, *unused_graphs(self.recording.marks, self.ledger, self.attribution, self.device.id))

    def _emptied(self) -> int:
        """Bytes of segments that were given back though no allocation had to be tried again: the cell emptied the cache.

        Some trainers do, and then nobody thinks to have freed anything.
        """
        if self.recording.cell.source and "empty_cache" not in self.recording.cell.source:
            return 0
        if any(self._allocator().get(name, 0) for name in ("retries", "ooms")):
            return 0
        events = [s.trace.events for s in self.stretches if s.trace.source == "history"]
        back = (Action.SEGMENT_FREE, Action.SEGMENT_UNMAP)
        return sum(int(e.size[np.isin(e.action, back)].sum()) for e in events)

    def _allocator(self) -> dict[str, int]:
        """How often the allocator had to retry in this cell, and its bytes before it and at the end."""
        before, after = (
            c.get(self.device.id, {}) for c in (self.recording.counters_start, self.recording.counters_end)
        )
        changes: dict[str, int] = {
            name: after[name] - before.get(name, 0) for name in ("retries", "ooms") if name in after
        }
        if before.get("reserved"):
            changes["reserved_before"] = before["reserved"]
        return changes | {name: after[name] for name in ("allocated", "reserved", "inactive_split") if name in after}

    # -- instants ----------------------------------------------------------------------------------------------------

    def _seconds(self, time_ns: int) -> float:
        return round((time_ns - self.start_ns) / 1e9, 6)

    def _reserved_at(self, peak: Peak) -> int | None:
        if self.ledger.reserved is not None:
            return max(int(self.ledger.reserved[peak.instant]), peak.bytes)
        column = None if self.samples is None else self.samples.columns.get("reserved")
        return None if column is None else max(int(np.nanmax(column, initial=0)), peak.bytes)

    def _peak_reserved(self) -> int | None:
        figures = [int(self.ledger.reserved.max())] if self.ledger.reserved is not None else []
        before, after = (
            c.get(self.device.id, {}) for c in (self.recording.counters_start, self.recording.counters_end)
        )
        if after.get("reserved_peak", 0) > before.get("reserved_peak", 0):
            figures.append(after["reserved_peak"])
        if self.samples is not None and "reserved" in self.samples.columns:
            figures.append(int(np.nanmax(self.samples.columns["reserved"], initial=0)))
        return max(figures, default=None)

    def _card(self, peak: Peak, reserved: int | None, card_bytes: int) -> dict[str, int]:
        """The rest of the card at the peak, from the sample nearest to it; what is unknown counts as free."""
        held = reserved if reserved is not None else peak.bytes
        context = others = 0
        row = self._nearest_sample(self.peak_ns, "process_used")
        used, process, at_sample = row.get("device_used"), row.get("process_used"), row.get("reserved")
        if used is not None and at_sample is not None:
            mine = process if process is not None else used
            context, others = max(0, mine - at_sample), max(0, used - mine)
        return {
            "cache": held - peak.bytes,
            "context": context,
            "other_processes": others,
            "free": card_bytes - held - context - others,
        }

    def _nearest_sample(self, time_ns: int, wanted: str) -> dict[str, int]:
        """The sample nearest to a time, of those that have the wanted figure, if any has."""
        if self.samples is None or not len(self.samples.time_ns):
            return {}
        apart = np.abs(self.samples.time_ns - time_ns).astype(np.float64)
        if wanted in self.samples.columns:
            apart[np.isnan(self.samples.columns[wanted])] = np.inf
        i = int(np.argmin(apart))
        return {name: int(c[i]) for name, c in self.samples.columns.items() if not np.isnan(c[i])}

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
        if self.ledger.reserved is not None or self._peak_reserved() is not None:
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
        if self.samples is None or not len(self.samples.time_ns):
            return (), {}
        wanted: list[str] = [
            c for c in ("allocated", "reserved", "device_used", "process_rss") if c in self.samples.columns
        ]
        leading = self.samples.columns[wanted[0]] if wanted else np.zeros(len(self.samples.time_ns))
        rows = pick(self.samples.time_ns.astype(np.float64), np.nan_to_num(leading).astype(np.int64), TIMELINE_POINTS)
        columns = {c: tuple(_whole(v) for v in self.samples.columns[c][rows]) for c in wanted}
        return tuple(self._seconds(int(t)) for t in self.samples.time_ns[rows]), columns

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
        rows = sorted((t for t in largest if t.bytes), key=lambda t: (-t.bytes, t.name))
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
        for span in largest_spans(ledger, self.attribution, pick(ledger.time_ns.astype(np.float64), self.total, 800)):
            tensor = self._tensor(span.row, span.category)
            name = " · ".join(p for p in (tensor.called, tensor.place) if p)
            until = end if span.end >= ledger.instants else self._seconds(int(ledger.time_ns[span.end]))
            begin = self._seconds(int(ledger.time_ns[span.begin]))
            found.append(Lifetime(int(ledger.bytes[span.row]), span.category, name, begin, until))
        return tuple(found)

    def _tensor(self, row: int, category: str) -> TensorRow:
        return self.names.tensor(self.ledger, self.attribution, row, category)


def _whole(value: float) -> int | None:
    return None if np.isnan(value) else int(value)

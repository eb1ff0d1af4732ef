"""Every workload measured from end to end: do the sums close to the byte, is every byte named, does the trace replay?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.measured import Measured, measure
from benchmarks.gpu.programs import Program
from benchmarks.gpu.rows import Row, expect, note
from benchmarks.workloads import STEPS
from ipyvram.caching_allocator import replay_trace
from ipyvram.recording import CATEGORIES, Action, Recording
from ipyvram.report import Report
from ipyvram.units import MIB, format_bytes

OTHER = 0.01  #: share of the peak that may be without a name
PADDING = 0.03  #: blocks are up to 1 MiB larger than tensors
CONTEXT = (50 * MIB, 3 << 30)  #: bounds on what is plausible


def run(program: Program, device: str) -> Measured:
    return measure(lambda: program.run(device))


def check(program: Program, m: Measured, small: bool = False) -> Iterator[Row]:
    """All that must be true of a measured program; ``small``: so little that to build the model may take the most."""
    if m.error is not None:
        yield expect("runs", program.name, False, f"{type(m.error).__name__}: {m.error}"[:200])
        return
    yield from sums(program.name, m)
    yield from replayed(program.name, m.recording)
    yield from attribution(program, m)
    yield from order(program, m, small)
    yield from events(program.name, m.recording)
    yield from driver(program.name, m.report)
    yield note("measured", program.name, _figures_text(m.report), **figures(m.report))


def figures(report: Report) -> dict[str, Any]:
    """The measured column of the estimate battery."""
    used = [u for u in report.timeline_data.sampled.get("device_used", ()) if u]
    return {
        "peak_allocated": report.peak_bytes, "peak_reserved": report.peak_reserved_bytes, "peak": report.peak,
        "nvml_used": max(used, default=None), "context": report.card.get("context"), "device": report.device_name,
    }  # fmt: skip


def _figures_text(report: Report) -> str:
    return (
        f"allocated {format_bytes(report.peak_bytes)}, reserved {format_bytes(report.peak_reserved_bytes or 0)}, "
        f"context {format_bytes(report.card.get('context', 0))}; {report.peak_when}"
    )


def sums(name: str, m: Measured) -> Iterator[Row]:
    report = m.report
    frame = report.timeline()
    exact = frame[frame["activations"].notna()]
    closed = bool((exact[list(CATEGORIES)].sum(axis=1) == exact["allocated"]).all())
    yield expect("categories = allocated", name, closed and sum(report.peak.values()) == report.peak_bytes)
    yield _equal("peak allocated", name, report.peak_bytes, m.allocated_peak)
    yield _equal("peak reserved", name, report.peak_reserved_bytes or 0, m.reserved_peak)
    end = m.recording.counters_end.get(report.device, {})
    yield _equal("end allocated", name, sum(report.end.values()), end.get("allocated", -1))
    yield _equal("card", name, report.peak_bytes + sum(report.card.values()), report.card_bytes or -1)


def _equal(check: str, name: str, ours: int, theirs: int) -> Row:
    return expect(check, name, ours == theirs, f"{ours:,} against {theirs:,}", ours=ours, torch=theirs)


def replayed(name: str, recording: Recording) -> Iterator[Row]:
    for trace in recording.traces:
        if trace.source == "history":
            r = replay_trace(trace)
            wrong = r.address_mismatches, r.segment_mismatches, r.final_mismatches
            kinds = "expandable segments" if any(s.expandable for s in trace.segments_end) else "segments"
            text = f"{len(trace.events):,} events, {kinds}; addresses, segments, final blocks that differ: {wrong}"
            yield expect("replay", name, wrong == (0, 0, 0) and trace.complete, text, mismatches=wrong)


def attribution(program: Program, m: Measured) -> Iterator[Row]:
    name, report = program.name, m.report
    share = report.peak["other"] / max(1, report.peak_bytes)
    yield expect("other ≤ 1 %", name, share <= OTHER, f"{share:.2%}", share=share)
    for category, count in m.optimizer.items():
        found = report.peak[category]  # frozen parameters come on top of those that are trained
        most = count * (1 + PADDING) + 64 * MIB if category == "optimizer_state" else report.peak_bytes
        begun = category == "parameters" or report.peak_step > 1  # the first step makes its state as it goes
        text = f"{found:,} in blocks, {count:,} in tensors of optimizers"
        yield expect(category, name, (count <= found or not begun) and found <= most, text)
    sizes = [t.bytes for t in report.tensors_at_peak if t.category == "parameters"]
    there = any(m.largest_parameter <= size < m.largest_parameter + MIB for size in sizes)
    if program.trains:
        yield expect("largest parameter", name, there, f"{m.largest_parameter:,} bytes")
    largest = [t for t in report.tensors_at_peak if t.category in ("parameters", "gradients", "optimizer_state")]
    yield expect(
        "names", name, bool(largest) and all(t.name for t in largest[:10]), ", ".join(t.name for t in largest[:2])
    )


def order(program: Program, m: Measured, small: bool = False) -> Iterator[Row]:
    """Phases of every step in their order."""
    name, phases = program.name, [(p.step, p.name) for p in m.report.phases]
    ends = [s for s, n in phases if n == "optimizer"]
    rank = {"forward": 0, "backward": 1, "optimizer": 2}
    in_turn = all((a[0], rank[a[1]]) <= (b[0], rank[b[1]]) for a, b in itertools.pairwise(phases))
    enough = len(set(ends)) >= STEPS if program.trains else len(phases) >= STEPS and not ends
    text = f"{len(phases)} phases, {len(ends)} optimizer steps"
    yield expect("phases", name, enough and (in_turn or not program.regular), text)
    before = small and m.report.peak_when.startswith("before")
    yield expect("peak phase", name, m.report.peak_phase in rank or before, m.report.peak_when)


def events(name: str, recording: Recording) -> Iterator[Row]:
    """Times within the traced stretch and in order; forward allocations with lines of the program."""
    found = [t for t in recording.traces if len(t.events)]
    inside = all(t.start_ns <= t.events.time_ns[0] and t.events.time_ns[-1] <= t.stop_ns for t in found)
    ordered = all((t.events.time_ns[1:] >= t.events.time_ns[:-1]).all() for t in found)
    yield expect("event times", name, bool(found) and inside and ordered)
    allocs = [(t.events, t.events.action == Action.ALLOC) for t in found if t.source == "history"]
    known = sum(int((e.stack[a] >= 0).sum()) for e, a in allocs)
    total = sum(int(a.sum()) for _, a in allocs)
    text = f"{known:,} of {total:,} allocations have a line (those of backward have none)"
    yield expect("lines", name, known > 0, text)


def driver(name: str, report: Report) -> Iterator[Row]:
    """NVML's figures against torch's: what is left over is the context, and plausible."""
    used = [u for u in report.timeline_data.sampled.get("device_used", ()) if u]
    if not used:
        yield note("driver", name, "no NVML here: " + "; ".join(n for n in report.measurement.notes if "NVML" in n))
        return
    context = report.card.get("context", 0)
    low, high = CONTEXT
    text = f"context {format_bytes(context)}, others {format_bytes(report.card.get('other_processes', 0))}"
    yield expect("driver", name, low <= context <= high and report.card.get("free", -1) >= 0, text, context=context)

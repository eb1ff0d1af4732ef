"""Every workload measured from end to end: do the sums close to the byte, is every byte named, does the trace replay?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.measured import Measured, measure
from benchmarks.gpu.rows import Row, expect, note
from benchmarks.workloads import FAMILIES, STEPS, Case, train
from ipyvram.caching_allocator import replay_trace
from ipyvram.recording import CATEGORIES, Action, Recording
from ipyvram.report import Report
from ipyvram.units import MIB, format_bytes

OTHER = 0.01  #: share of the peak that may be without a name
PADDING = 0.03  #: blocks are up to 1 MiB larger than tensors
CONTEXT = (50 * MIB, 3 << 30)  #: bounds on what is plausible


def chosen(simulated: bool) -> list[Case]:
    """Two cases a family; where nothing is measured, small ones that a CPU runs in seconds."""
    if simulated:
        small = ("resnet18", "mobilenet_v3_large", "unet", "gpt", "lora", "lstm", "gan", "bert")
        return [Case(f, 2, ("adam", "sgd", "adamw")[i % 3], "fp32") for i, f in enumerate(small)]
    return [
        Case(family, batches[i], ("adam", "adamw")[i], ("fp32", "amp")[i])
        for family, (_, batches) in FAMILIES.items()
        for i in (0, 1)
    ]


def run(case: Case, device: str) -> Measured:
    return measure(lambda: train(case, device))


def check(case: Case, m: Measured) -> Iterator[Row]:
    """All that must be true of a measured training program."""
    if m.error is not None:
        yield expect("runs", case.name, False, f"{type(m.error).__name__}: {m.error}"[:200])
        return
    yield from sums(case.name, m)
    yield from replayed(case.name, m.recording)
    yield from attribution(case.name, m)
    yield from order(case.name, m)
    yield from driver(case.name, m.report)
    yield note("measured", case.name, _figures_text(m.report), **figures(m.report))


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


def attribution(name: str, m: Measured) -> Iterator[Row]:
    report = m.report
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
    yield expect("largest parameter", name, there, f"{m.largest_parameter:,} bytes")
    largest = [t for t in report.tensors_at_peak if t.category in ("parameters", "gradients", "optimizer_state")]
    yield expect(
        "names", name, bool(largest) and all(t.name for t in largest[:10]), ", ".join(t.name for t in largest[:2])
    )


def order(name: str, m: Measured) -> Iterator[Row]:
    """Phases of every step in their order; forward allocations with lines of the program."""
    phases = [(p.step, p.name) for p in m.report.phases]
    ends = [s for s, n in phases if n == "optimizer"]
    rank = {"forward": 0, "backward": 1, "optimizer": 2}
    taking_turns = name.startswith("gan")  # two models within one step
    regular = all((a[0], rank[a[1]]) <= (b[0], rank[b[1]]) for a, b in itertools.pairwise(phases)) or taking_turns
    yield expect(
        "phases", name, regular and len(set(ends)) >= STEPS, f"{len(phases)} phases, {len(ends)} optimizer steps"
    )
    yield expect("peak phase", name, m.report.peak_phase in rank, m.report.peak_when)
    inside = all(
        t.start_ns <= x <= t.stop_ns
        for t in m.recording.traces
        for x in (t.events.time_ns[:1].tolist() + t.events.time_ns[-1:].tolist())
    )
    ordered = all((t.events.time_ns[1:] >= t.events.time_ns[:-1]).all() for t in m.recording.traces)
    yield expect("event times", name, inside and ordered)
    allocs = [(t.events, t.events.action == Action.ALLOC) for t in m.recording.traces if t.source == "history"]
    known = sum(int((e.stack[a] >= 0).sum()) for e, a in allocs)
    total = sum(int(a.sum()) for _, a in allocs)
    yield expect(
        "lines", name, known > 0, f"{known:,} of {total:,} allocations have a line (those of backward have none)"
    )


def driver(name: str, report: Report) -> Iterator[Row]:
    """NVML's figures against torch's: what is left over is the context, and plausible."""
    used = [u for u in report.timeline_data.sampled.get("device_used", ()) if u]
    if not used:
        yield note("driver", name, "no NVML here: " + "; ".join(n for n in report.measurement.notes if "NVML" in n))
        return
    context = report.card.get("context", 0)
    low, high = CONTEXT
    text = f"context {format_bytes(context)}, others {format_bytes(report.card.get('other_processes', 0))}"
    yield expect("driver", name, low <= context <= high and report.card["free"] >= 0, text, context=context)

"""`read_snapshot`: a file of ``torch.cuda.memory._dump_snapshot`` in, a `Report` out; needs neither torch nor a GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ipyvram import safe_pickle
from ipyvram.analysis import analyse
from ipyvram.caching_allocator import Settings
from ipyvram.recording import Action, Block, Device, Events, Recording, Segment, Stack, Trace
from ipyvram.report import Report
from ipyvram.report_rows import Finding
from ipyvram.snapshot_claims import claims_of
from ipyvram.snapshot_parts import FrameReader, events_of, private_pools_of, segments_of
from ipyvram.snapshot_phases import marks_of
from ipyvram.units import format_bytes

MAX_EVENTS = 20_000_000  #: and blocks, of all devices together
_MAX_DEVICES = 256
_WORKSPACE = 8_519_680  # of cuBLAS up to compute capability 8.x: 2 × 4 MiB and 8 × 16 KiB
_NO_TIMES = (
    "the torch that wrote the snapshot kept no times: the timeline has an event each microsecond, in their order"
)
_WRONG = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def read_snapshot(path: str | os.PathLike[str]) -> Report:
    """Explain a snapshot of torch's CUDA allocator, from this machine or any other.

    The timeline, the peak and what was live at it come from the recorded events, with block sizes and cache from the
    allocator model; a snapshot without events gives the state it holds. Lines are those of the program that was recorded.
    No one said which tensor was a parameter or a gradient: phases are inferred from stacks, categories from births and
    deaths in them, and what was there before stays ``other``.

    Parameters
    ----------
    path : path
        As written by ``torch.cuda.memory._dump_snapshot``, or the pickled list of `torch.cuda.memory_snapshot`; may be gzipped.

    Returns
    -------
    Report
        Of kind ``"snapshot"``, for the device with the highest peak; the others are in `Report.others`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is no snapshot, is damaged or too large, or would run code when loaded.
    """
    name = Path(path).name
    snapshot = safe_pickle.load(Path(path))
    try:
        recording = recording_of(snapshot, name)
        report = analyse(recording)
    except _WRONG as error:
        raise ValueError(f"{name} is not a snapshot of torch.cuda.memory, or a damaged one: {error}") from error
    return replace(
        report,
        provenance=report.provenance | {"categories": "inferred"},
        findings=(*report.findings, *_fragmentation(recording, report)),
    )


def recording_of(snapshot: Any, label: str | None = None) -> Recording:
    """A snapshot as a `Recording`; of a list of segments, as `torch.cuda.memory_snapshot` gives it, the state.

    Raises
    ------
    ValueError, KeyError, TypeError
        The value is not what ``_snapshot`` gives.
    """
    snapshot = _with_traces(snapshot)
    _check(snapshot)
    device_traces = [_timed(entries) for entries in snapshot["device_traces"]]
    stacks: dict[Stack, int] = {}
    frames = FrameReader(lambda stack: stacks.setdefault(stack, len(stacks)), _is_user_file)
    settings = snapshot.get("allocator_settings") or {}
    Settings.from_snapshot(settings)  # refuses what is none
    marks = marks_of(device_traces, snapshot.get("external_annotations") or ())
    traces = []
    for index, entries in enumerate(device_traces):
        events, segments = events_of(entries, frames), segments_of(snapshot["segments"], index, frames)
        if len(events) or segments:
            trace = _trace(f"cuda:{index}", events, segments, settings, marks[-1].time_ns if marks else 0)
            traces.append(replace(trace, private_pools=private_pools_of(entries)))
    if not traces:
        raise ValueError("it holds no events and no segments: was anything allocated on a GPU while it was recorded?")
    return Recording(
        start_ns=min(t.start_ns for t in traces),
        stop_ns=max(t.stop_ns for t in traces),
        label=label,
        kind="snapshot",
        environment=_environment(traces),
        devices=tuple(Device(t.device, t.device) for t in traces),
        traces=tuple(traces),
        claims=tuple(c for t in traces for c in claims_of(t, marks, _WORKSPACE)),
        marks=marks,
        stacks=tuple(stacks),
        counters_end={t.device: _counters(t) for t in traces},
        steps=sum(m.kind == "optimizer" and not m.begin for m in marks),
        traced_steps=sum(m.kind == "optimizer" and not m.begin for m in marks),
        notes=(*_notes(traces), *([_NO_TIMES] if device_traces != snapshot["device_traces"] else [])),
    )


def _with_traces(snapshot: Any) -> Any:
    """A list of segments becomes a snapshot without events."""
    if not isinstance(snapshot, list) or not all(isinstance(s, dict) for s in snapshot):
        return snapshot
    devices = 1 + max((int(s["device"]) for s in snapshot), default=-1)
    return {"segments": snapshot, "device_traces": [[] for _ in range(min(devices, _MAX_DEVICES))]}


def _timed(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of a torch that wrote no times, a microsecond apart."""
    if not entries or "time_us" in entries[0]:
        return entries
    return [{**entry, "time_us": i} for i, entry in enumerate(entries)]


def _check(snapshot: Any) -> None:
    if not isinstance(snapshot, dict) or not {"segments", "device_traces"} <= snapshot.keys():
        raise ValueError("it has no 'segments' and 'device_traces'")
    traces, segments = snapshot["device_traces"], snapshot["segments"]
    if not isinstance(traces, list) or not isinstance(segments, list) or len(traces) > _MAX_DEVICES:
        raise ValueError(f"'segments' and 'device_traces' are lists, the latter of at most {_MAX_DEVICES} devices")
    count = sum(map(len, traces)) + sum(len(s["blocks"]) for s in segments)
    if count > MAX_EVENTS:
        raise ValueError(f"it has {count:,} events and blocks; at most {MAX_EVENTS:,} are read")


def _trace(
    device: str, events: Events, segments: tuple[Segment, ...], settings: dict[str, Any], marked_ns: int
) -> Trace:
    """One device's; it was recorded until the last mark, at ``marked_ns``, at least, even if nothing was allocated then."""
    if len(events) and (events.size.min() < 0 or events.address.min() < 0):
        raise ValueError("a size or an address is negative")
    start = int(events.time_ns[0]) if len(events) else 0
    events.time_ns[:] = np.maximum.accumulate(events.time_ns)
    return Trace(
        device=device,
        source="history",
        start_ns=start,
        stop_ns=max(int(events.time_ns[-1]), marked_ns) if len(events) else start,
        events=events,
        baseline=_blocks(segments),
        segments_end=segments,
        ended_by="end of the recording",
        allocator_settings=settings,
    )


def _blocks(segments: tuple[Segment, ...]) -> tuple[Block, ...]:
    return tuple(b for s in segments for b in s.blocks if b.state != "inactive")


def _environment(traces: list[Trace]) -> dict[str, str]:
    """The size of a cuBLAS workspace where blocks of that odd size are there: it is distinctive before Hopper only."""
    requested = {b.requested for t in traces for b in t.baseline}
    return {"cublas_workspace_bytes": str(_WORKSPACE)} if _WORKSPACE in requested else {}


def _counters(trace: Trace) -> dict[str, int]:
    blocks = [b for s in trace.segments_end for b in s.blocks]
    split = (b for s in trace.segments_end if len(s.blocks) > 1 and not s.expandable for b in s.blocks)
    return {
        "allocated": sum(b.size for b in blocks if b.state == "active_allocated"),
        "active": sum(b.size for b in blocks if b.state != "inactive"),
        "reserved": sum(s.size for s in trace.segments_end),
        "inactive_split": sum(b.size for b in split if b.state == "inactive"),
        "ooms": int(np.count_nonzero(trace.events.action == Action.OOM)),
    }


def _notes(traces: list[Trace]) -> tuple[str, ...]:
    notes = ["read from a snapshot: no claims were made while it was recorded, so categories are inferred"]
    notes += [
        f"{t.device}: the snapshot holds no events, so this is the state when it was taken"
        for t in traces
        if not len(t.events)
    ]
    if not any(len(t.events) and (t.events.stack >= 0).any() for t in traces):
        notes.append("the snapshot holds no stacks of Python code: lines are unknown")
    return tuple(notes)


def _fragmentation(recording: Recording, report: Report) -> tuple[Finding, ...]:
    """What is reserved and unused, at the peak and at the end, and how large the pieces are."""
    trace = next(t for t in recording.traces if t.device == report.device)
    found = []
    most = report.peak_reserved_bytes or 0
    if most > report.peak_bytes:
        text = (
            f"{format_bytes(most)} were reserved at most; at the peak, {format_bytes(report.peak_bytes)} were in use."
        )
        found.append(Finding("snapshot_reserved", text, most - report.peak_bytes))
    free = [b.size for s in trace.segments_end for b in s.blocks if b.state == "inactive"]
    if free:
        split = report.allocator.get("inactive_split", 0)
        text = (
            f"At the end {format_bytes(sum(free))} of the cache are free in {len(free)} pieces, the largest of "
            f"{format_bytes(max(free))}; {format_bytes(split)} lie in segments that are partly in use, so that emptying the "
            "cache cannot give them back."
        )
        found.append(Finding("snapshot_fragmentation", text, split))
    return tuple(found)


def _is_user_file(filename: str) -> bool:
    """Whether a file of somebody's machine is neither torch, an installed package, Python's own, nor C++."""
    path = filename.replace("\\", "/")
    if path.startswith("<") or not path.endswith(".py"):
        return path.startswith("<ipython-input") or "/ipykernel_" in path
    foreign = ("/site-packages/", "/dist-packages/", "/lib/python3", "/Lib/", "/torch/", "/torchinductor_")
    return not any(part in path for part in foreign)

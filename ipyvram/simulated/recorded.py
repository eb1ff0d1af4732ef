"""From what a simulated card saw to a `Recording`: serial numbers become the addresses the caching allocator would give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ipyvram.allocator.model import CachingAllocator, OutOfMemory
from ipyvram.marks import phase_spans
from ipyvram.recording import Action, Claim, Device, Events, Observation, Recording, Samples, Segment, Trace
from ipyvram.simulated.memory import DEVICE, EMPTIED, DeviceMemory, Row
from ipyvram.units import format_bytes

if TYPE_CHECKING:
    from ipyvram.simulated.estimation import Estimation


#: So many shapes are named of what the cell left on the host.
_NAMED = 3


class Placement:
    """The allocator's answers to a program's requests.

    Attributes
    ----------
    events : Events
    address : dict of int to int
        Serial → address.
    segments : tuple of Segment
        At the end.
    allocated_start, reserved_peak : int
    """

    def __init__(self, memory: DeviceMemory, start_ns: int) -> None:
        rows: list[tuple[int, int, int, int, int, int, int]] = []
        now: list[int] = [start_ns, -1, -1]  # time, stack and origin of the request being served
        recording = False

        def record(action: Action, address: int, size: int, stream: int, private: tuple[int, int]) -> None:
            if recording:
                rows.append((int(action), address, size, stream, *now))  # type: ignore[arg-type]

        allocator = CachingAllocator(record=record)
        self.address = {serial: allocator.alloc(size) for serial, size in memory.before.items()}
        self.allocated_start, recording = allocator.allocated, True
        for row in memory.rows:
            now[:] = row.time_ns, row.stack, row.origin
            _serve(row, allocator, self.address)
        self.events = Events.from_rows(rows)
        self.segments: tuple[Segment, ...] = allocator.segments()
        self.reserved_peak = max(allocator.reserved_peak, allocator.reserved)


def _serve(row: Row, allocator: CachingAllocator, address: dict[int, int]) -> None:
    if row.alloc:
        address[row.serial] = allocator.alloc(row.size)
    elif row.serial == EMPTIED:
        allocator.empty_cache()
    else:
        allocator.free(address[row.serial])


def fits(memory: DeviceMemory, capacity: int) -> tuple[OutOfMemory, int] | None:
    """Whether the same requests get through with ``capacity`` bytes for them: the failure and its time, or None."""
    allocator, address, time_ns = CachingAllocator(capacity=capacity), dict[int, int](), 0
    try:
        for serial, size in memory.before.items():
            address[serial] = allocator.alloc(size)
        for row in memory.rows:
            time_ns = row.time_ns
            _serve(row, allocator, address)
    except OutOfMemory as failure:
        return failure, time_ns
    return None


def _observations(estimation: Estimation, stop_ns: int) -> Iterator[Observation]:
    """Where the card is too small, where the estimate ends before an evaluation, and what the cell left on the host."""
    if estimation.evaluates_later:
        yield Observation("evaluates_later", name=estimation.ended_by)
    if left := estimation._host.left:
        shapes = ["×".join(map(str, shape)) for shape in left]
        named = ", ".join(shapes[:_NAMED]) + (", …" if len(shapes) > _NAMED else "")
        yield Observation(
            "left_on_host", name=named, holder=next(iter(left.values())), count=len(shapes), device=DEVICE
        )
    yield from _verdict(estimation, stop_ns)


def _verdict(estimation: Estimation, stop_ns: int) -> Iterator[Observation]:
    """Where the card is too small: what was asked for when, and what was left."""
    card = estimation.card
    room = card.total_bytes - card.context_bytes
    failed = fits(estimation.memory, room)
    if failed is None:
        return
    failure, time_ns = failed
    phases = phase_spans(tuple(estimation._phases.marks), stop_ns)
    phase = next((p for p in phases if p.begin_ns <= time_ns < max(p.end_ns, p.begin_ns + 1)), None)
    when = "" if phase is None else f"step {phase.step}, {phase.name}"
    yield Observation("does_not_fit", failure.requested, card.name, when, failure.free, DEVICE)


def predicted(estimation: Estimation, start_ns: int, stop_ns: int) -> Recording:
    """The recording of an estimation that has run."""
    e, card = estimation, estimation.card
    placement = Placement(e.memory, start_ns)
    trace = Trace(
        device=DEVICE,
        source="history",
        start_ns=start_ns,
        stop_ns=stop_ns,
        events=placement.events,
        segments_end=placement.segments,
        allocated_start=placement.allocated_start,
        ended_by=e.ended_by,
    )
    return Recording(
        start_ns=start_ns,
        stop_ns=stop_ns,
        label=e.options.label,
        note=e.options.note,
        kind="estimated",
        cell=e.cell,
        environment=e.environment(),
        devices=(Device(DEVICE, card.name, card.total_bytes, None, card.capability),),
        traces=(trace,),
        claims=tuple(_placed(e._owners.claims, placement.address)),
        marks=tuple(e._phases.marks),
        stacks=e._stacks.values(),
        origins=e._origins.values(),
        samples=(_context(placement, card.context_bytes, card.total_bytes, stop_ns),),
        limit=e.options.limit,
        card_bytes=card.total_bytes,
        steps=e.steps,
        traced_steps=e.steps,
        notes=tuple(notes(e)),
        observations=tuple(_observations(e, stop_ns)),
    )


def _placed(claims: list[Claim], address: dict[int, int]) -> list[Claim]:
    return [c._replace(address=address[c.address]) for c in claims if c.address in address]


def _context(placement: Placement, context: int, total: int, time_ns: int) -> Samples:
    """What the driver would show at the end: the CUDA context stands beside what the allocator reserved."""
    reserved = sum(s.size for s in placement.segments)
    columns: dict[str, Any] = {
        "reserved": reserved,
        "device_used": reserved + context,
        "process_used": reserved + context,
        "device_total": total,
    }
    return Samples(
        device=DEVICE,
        time_ns=np.array([time_ns], np.int64),
        columns={name: np.array([value], np.float64) for name, value in columns.items()},
        count=0,
        longest_gap_s=0.0,
        period_s=0.0,
    )


#: How the note begins that says what an estimate leaves out.
PREDICTED = "predicted, nothing was run on a GPU"


def notes(estimation: Estimation) -> list[str]:
    """What the figures leave out, in one line each."""
    e, card = estimation, estimation.card
    left_out = ["the CUDA context (typical value)"] if card.context_bytes else []
    if e.ways.convolution_bound:
        left_out.append(
            f"cuDNN's workspaces: up to about {format_bytes(e.ways.convolution_bound)} more during a convolution"
        )
    if e.ways.recurrent_bound:
        left_out.append("cuDNN's reserve of recurrent layers (an upper bound is counted)")
    if e.ways.attention_by_cudnn:
        left_out.append("what cuDNN's attention works in itself")
    what = "; ".join(left_out) or "nothing of note"
    after = f"; not in it: {e.left_out}" if e.left_out else ""
    taken = [card.note] if card.note else []
    return [f"{PREDICTED}; not known exactly: {what}{after}", *taken, *e.notes]

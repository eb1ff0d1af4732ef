"""An out-of-memory explained: the event, the ledger and its categories come in, an `OutOfMemory` goes out. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ipyvram.batches import Batches
from ipyvram.earlier import Earlier, gradients_of, in_order, there_before, trains_in, unused, used_in
from ipyvram.grouping import batch_size
from ipyvram.instants import instant
from ipyvram.marks import PhaseSpan, models, module_at
from ipyvram.naming import Names
from ipyvram.recording import Observation, OomEvent, Origin, Recording
from ipyvram.remedies import Situation, remedies
from ipyvram.report_rows import OutOfMemory, StepAccount, TensorRow
from ipyvram.stretches import Stretch

#: Holders told; the rest is in the account.
HOLDERS = 12


def account_of(
    event: OomEvent,
    stretch: Stretch,
    first: bool,
    names: Names,
    phases: tuple[PhaseSpan, ...],
    observations: tuple[Observation, ...],
    steps: tuple[StepAccount, ...],
) -> OutOfMemory:
    """Everything that is known of an out-of-memory.

    Parameters
    ----------
    stretch : Stretch
        The trace that saw it; ``first``: nothing of the cell was traced before.
    phases, observations, steps
        Of the whole cell.
    """
    recording, ledger, attribution = stretch.recording, stretch.ledger, stretch.attribution
    at = max(0, int(np.searchsorted(ledger.time_ns, event.time_ns, side="right")) - 1)
    live = tuple(names.tensor(ledger, attribution, *found) for found in in_order(ledger, attribution, at))
    when = instant(phases, event.time_ns, steps=any(p.name == "optimizer" for p in phases), parts=False)
    oom = explain(event, stretch.at(at), live, _asked(event, recording, names), when)
    earlier = there_before(ledger, attribution, at, live) if first else ()
    gradients = gradients_of(ledger, attribution, at, used(recording))
    return with_remedies(oom, recording, event, observations, live, steps, phases, earlier, gradients)


def _asked(event: OomEvent, recording: Recording, names: Names) -> TensorRow:
    """Who asked for what did not fit, in the form of a tensor's row."""
    frame, source, file = names.place(recording.stacks[event.stack] if event.stack >= 0 else ())
    origin = recording.origins[event.origin] if event.origin >= 0 else Origin()
    return TensorRow(
        bytes=event.requested_bytes,
        category="other",
        name=origin.op.removeprefix("aten."),
        module=module_at(recording.marks, event.time_ns),
        line=frame.line if frame else None,
        source=source,
        file=file,
        shape=origin.shape,
        dtype=origin.dtype,
    )


def explain(
    event: OomEvent,
    account: dict[str, int],
    live: tuple[TensorRow, ...],
    asked: TensorRow,
    when: tuple[str, str, int],
) -> OutOfMemory:
    """Put the event and the account of its instant together.

    Parameters
    ----------
    account : dict
        Category → bytes that the ledger has at that instant; what the allocator counts beyond goes to ``other``.
    live : tuple of TensorRow
        What those bytes are, in the order in which they were allocated.
    asked : TensorRow
        Who asked: line, module, operator, shape.
    when : tuple
        The instant in words, its phase and its step.
    """
    known = sum(account.values())
    allocated = max(known, event.allocated_bytes or 0)
    words, phase, step = when
    account = dict(account)
    if not phase and event.phase:  # after the traced steps: what the traceback holds tells what it was
        words, phase = event.phase + (", after the traced steps" if words else ""), event.phase
        for category, count in event.pinned.items():
            taken = min(count, allocated - sum(account.values())) if category != "other" else 0
            account[category] += taken
    if event.making_state:
        words += ", which was making its state"
    account["other"] += allocated - sum(account.values())
    return OutOfMemory(
        requested_bytes=event.requested_bytes,
        allocated_bytes=allocated,
        account=account,
        limit_bytes=event.limit_bytes,
        free_bytes=event.free_bytes,
        reserved_bytes=event.reserved_bytes,
        largest_free_bytes=event.largest_free_bytes,
        budget=event.budget,
        when=words,
        phase=phase,
        step=step,
        line=asked.line,
        source=asked.source,
        file=asked.file,
        module=asked.module,
        op=asked.name,
        shape=asked.shape,
        dtype=asked.dtype,
        holders=tuple(sorted(live, key=lambda t: (-t.bytes, t.name))[:HOLDERS]),
        pinned_bytes=event.pinned_bytes,
    )


def with_remedies(
    oom: OutOfMemory,
    recording: Recording,
    event: OomEvent,
    observations: tuple[Observation, ...],
    live: tuple[TensorRow, ...],
    steps: tuple[StepAccount, ...],
    phases: tuple[PhaseSpan, ...],
    earlier: tuple[Earlier, ...],
    gradients: dict[str, int],
) -> OutOfMemory:
    """The same with the ways out of it."""
    before = [p for p in phases if p.begin_ns <= event.time_ns]
    last_step = max((p.end_ns for p in before if p.name == "optimizer"), default=0)
    situation = Situation(
        oom=oom,
        live=live,
        steps=tuple(s for s in steps if s.step < oom.step or not oom.step),
        observations=observations,
        # Keyword arguments are seen when the forward returns, which this one did not: what the frames held of them tells.
        batch=Batches.of(recording).size(last_step, event.time_ns) or batch_size(live),
        device=event.device,
        making_state=event.making_state,
        implementation=recording.environment.get("optimizer_implementation", _default(event.device)),
        optimizer=next((m.name for m in reversed(recording.marks) if m.kind == "optimizer"), ""),
        trains=any(p.name in ("backward", "optimizer") for p in before),
        evaluating=recording.environment.get("evaluating", ""),
        evaluating_since=event.evaluating if event.pinned.get("activations") else "",  # a graph was recorded
        earlier=tuple(one.row for one in earlier),
        unused=unused(earlier, used(recording)),
        gradients=gradients,
        checkpoints=own_checkpoints(recording, observations),
        trains_later=trains_in(recording.cell.source),
        backward_since_step=any(p.name == "backward" and p.begin_ns > last_step for p in before),
    )
    return replace(oom, remedies=remedies(situation))


def own_checkpoints(recording: Recording, observations: tuple[Observation, ...]) -> dict[str, str]:
    """Calls of models that set their own checkpoints, by what the paths of their modules begin with."""
    several = len(models(recording.claims)) > 1
    offered = [o for o in observations if o.kind == "checkpointing"]
    paths = [o.name.rpartition(".")[0] if several else o.holder for o in offered]
    return {f"{path}." if path else "": o.name for path, o in zip(paths, offered, strict=True)}


def used(recording: Recording) -> set[str]:
    """What the cell names or ran."""
    return used_in(recording.cell.source, (mark.name for mark in recording.marks if mark.kind == "forward"))


def _default(device: str) -> str:
    return "foreach" if device.startswith("cuda") else "for-loop"

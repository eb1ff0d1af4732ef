"""A device's traces come in, each with its account goes out: a cell may be traced again when it grows.

Storages get new addresses in every trace, so claims and marks are those of the trace's own time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from ipyvram.attribution import Attribution, attribute
from ipyvram.ledger import Ints, Ledger, build
from ipyvram.marks import PhaseSpan, phase_spans
from ipyvram.recording import CATEGORIES, Events, Recording, Trace
from ipyvram.thinning import pick


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """One trace of one device, explained.

    Attributes
    ----------
    recording : Recording
        With the claims and marks of this stretch only.
    accounts : dict of str to int64, shape (instants,)
        Category → bytes; ``total`` is their sum.
    """

    recording: Recording
    trace: Trace
    ledger: Ledger
    attribution: Attribution
    phases: tuple[PhaseSpan, ...]
    accounts: dict[str, Ints]
    total: Ints

    def at(self, instant: int) -> dict[str, int]:
        """Category → bytes at an instant; -1 is the last."""
        return {category: int(self.accounts[category][instant]) for category in CATEGORIES}


def stretches(recording: Recording, device: str) -> tuple[Stretch, ...]:
    """The stretches of a device in order of time; a device without a trace has an empty one."""
    traces = sorted((t for t in recording.traces if t.device == device), key=lambda t: t.start_ns)
    if not traces:
        empty = Trace(device, "storages", recording.start_ns, recording.stop_ns, Events.from_rows([]))
        return (_stretch(recording, empty),)
    if len({trace.start_ns for trace in recording.traces}) <= 1:
        return tuple(_stretch(recording, trace) for trace in traces)
    return tuple(_stretch(_during(recording, trace), trace) for trace in traces)


def highest(found: tuple[Stretch, ...]) -> Stretch:
    """The stretch that saw the most; of equals the first."""
    return max(found, key=lambda stretch: int(stretch.total.max()))


def _during(recording: Recording, trace: Trace) -> Recording:
    return replace(
        recording,
        claims=tuple(c for c in recording.claims if trace.start_ns <= c.time_ns <= trace.stop_ns),
        marks=tuple(m for m in recording.marks if trace.start_ns <= m.time_ns <= trace.stop_ns),
    )


def _stretch(recording: Recording, trace: Trace) -> Stretch:
    ledger = build(trace)
    attribution = attribute(recording, ledger, trace.device)
    accounts = attribution.accounts(ledger)
    total = sum(accounts.values(), np.zeros(ledger.instants, np.int64))
    return Stretch(recording, trace, ledger, attribution, phase_spans(recording.marks, trace.stop_ns), accounts, total)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """The exact account of all stretches on one clock; between two stretches a row of zeros stands for what is not known.

    Attributes
    ----------
    gaps_ns : tuple of (int, int)
        Where nothing was traced between the first trace and the end of the last.
    """

    time_ns: Ints
    categories: dict[str, Ints]
    reserved: Ints | None
    gaps_ns: tuple[tuple[int, int], ...]


def curves(found: tuple[Stretch, ...], points: int) -> Curves:
    """At most about ``points`` instants, with every peak and valley of the total."""
    share = points // len(found)
    rows = [pick(s.ledger.time_ns.astype(np.float64), s.total, share) for s in found]
    gaps = tuple((a.trace.stop_ns, b.trace.start_ns) for a, b in itertools.pairwise(found))
    last = len(found) - 1

    def joined(columns: list[Ints], between: list[int]) -> Ints:
        parts = [
            np.append(c[r], between[i]) if i < last else c[r]
            for i, (c, r) in enumerate(zip(columns, rows, strict=True))
        ]
        return np.concatenate(parts)

    nothing = [0] * last
    reserved = [s.ledger.reserved for s in found if s.ledger.reserved is not None]
    return Curves(
        time_ns=joined([s.ledger.time_ns for s in found], [begin for begin, _ in gaps]),
        categories={c: joined([s.accounts[c] for s in found], nothing) for c in CATEGORIES},
        reserved=joined(reserved, nothing) if len(reserved) == len(found) else None,
        gaps_ns=gaps,
    )

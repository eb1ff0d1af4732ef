"""From a trace's events to allocations with lifetimes, and to the account over time that closes.

An *instant* ``k`` is the state after the first ``k`` events; instant 0 is the baseline. All arrays are vectorised: a
million events are paired by one sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipyvram.caching_allocator import replay_trace
from ipyvram.recording import Action, Block, Trace

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """Allocations of one trace, one row each.

    Attributes
    ----------
    born, died : int64
        Live at the instants ``born <= k < died``. Born at 0: live before the trace. ``died == instants``: never freed.
    bytes : int64
        What the allocator counts: the block's size on CUDA, the storage's elsewhere.
    requested : int64
        What was asked for, in bytes; 0 where that is not known.
    address, stack, origin : int
        As in `recording.Events`; -1 where unknown.
    time_ns : int64, shape (instants,)
        When each instant began.
    reserved : int64, shape (instants,) or None
        Bytes in segments; None without a caching allocator.
    """

    born: Ints
    died: Ints
    bytes: Ints
    requested: Ints
    address: Ints
    stack: Ints
    origin: Ints
    time_ns: Ints
    reserved: Ints | None
    mismatches: int = 0

    @property
    def instants(self) -> int:
        """Number of instants: one more than events."""
        return len(self.time_ns)

    def allocated(self) -> Ints:
        """Bytes live at each instant, shape (instants,)."""
        return account(self.born, self.died, self.bytes, self.instants)

    def find(self, address: Ints, time_ns: Ints) -> Ints:
        """Rows of the allocations live at these addresses and times, -1 where there is none."""
        instant = np.searchsorted(self.time_ns, time_ns, side="right") - 1
        order = np.lexsort((self.born, self.address))
        known, rank = np.unique(self.address[order], return_inverse=True)
        width = self.instants + 1
        keys = rank * width + self.born[order]
        place = np.searchsorted(known, address)
        exists = (
            (place < len(known)) & (known[np.minimum(place, len(known) - 1)] == address)
            if len(known)
            else np.zeros(len(address), bool)
        )
        at = np.searchsorted(keys, place * width + np.maximum(instant, 0), side="right") - 1
        row = order[np.maximum(at, 0)] if len(order) else np.full(len(address), -1)
        found = exists & (at >= 0)
        if len(order):
            found &= (self.address[row] == address) & (self.died[row] > instant)
        return np.where(found, row, -1)


def account(born: Ints, died: Ints, sizes: Ints, instants: int) -> Ints:
    """Bytes live at each of ``instants`` instants."""
    change = np.zeros(instants + 1, np.int64)
    np.add.at(change, born, sizes)
    np.subtract.at(change, np.minimum(died, instants), sizes)
    return np.cumsum(change[:-1])


def build(trace: Trace) -> Ledger:
    """Pair every allocation of a trace with its free.

    A free without an allocation is of a block that was there before; on CUDA sizes are block sizes, from the replay of
    the events through the allocator model.
    """
    events = trace.events
    sizes, baseline, reserved, mismatches = events.size, trace.baseline, None, 0
    if trace.source == "history":
        replayed = replay_trace(trace)
        sizes, baseline, mismatches = replayed.block_bytes, replayed.baseline, replayed.mismatches
        first = replayed.reserved_start
        reserved = np.concatenate([[first], replayed.reserved]).astype(np.int64)
    n = len(events)
    picked = np.flatnonzero((events.action == Action.ALLOC) | (events.action == Action.FREE_REQUESTED))
    live = [b for b in baseline if b.state == "active_allocated"]
    rows = _Rows.of(live, picked, trace, np.asarray(sizes, np.int64))
    order = np.lexsort((rows.instant, rows.address))
    alloc = rows.is_alloc[order]
    same = np.r_[rows.address[order][1:] == rows.address[order][:-1], False] if len(order) else np.empty(0, bool)
    next_free = np.r_[~alloc[1:], False] if len(order) else np.empty(0, bool)
    follows = np.r_[order[1:], 0] if len(order) else order
    died_at = np.where(same & next_free, rows.instant[follows], n + 1)
    orphan = ~alloc & ~np.r_[False, (same & alloc)[:-1]] if len(order) else np.empty(0, bool)
    keep = np.flatnonzero(alloc | orphan)
    index = order[keep]
    return Ledger(
        born=np.where(alloc[keep], rows.instant[index], 0),
        died=np.where(alloc[keep], died_at[keep], rows.instant[index]),
        bytes=rows.size[index],
        requested=rows.requested[index],
        address=rows.address[index],
        stack=rows.stack[index],
        origin=rows.origin[index],
        time_ns=np.concatenate([[trace.start_ns], events.time_ns]).astype(np.int64),
        reserved=reserved,
        mismatches=mismatches,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Baseline blocks and alloc/free events in one table; ``instant`` is the instant at which the row takes effect."""

    is_alloc: NDArray[np.bool_]
    instant: Ints
    address: Ints
    size: Ints
    requested: Ints
    stack: Ints
    origin: Ints

    @classmethod
    def of(cls, live: list[Block], picked: Ints, trace: Trace, sizes: Ints) -> _Rows:
        events, before = trace.events, len(live)

        def column(blocks: list[int], rows: NDArray[np.integer]) -> Ints:
            return np.concatenate([np.array(blocks, np.int64), rows.astype(np.int64)])

        return cls(
            is_alloc=np.r_[np.ones(before, bool), events.action[picked] == Action.ALLOC],
            instant=column([0] * before, picked + 1),
            address=column([b.address for b in live], events.address[picked]),
            size=column([b.size for b in live], sizes[picked]),
            requested=column([b.requested for b in live], events.size[picked]),
            stack=column([b.stack for b in live], events.stack[picked]),
            origin=column([-1] * before, events.origin[picked]),
        )

"""Pairing of allocations and frees: a law for any sequence of events, checked against a dictionary."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.ledger import account, build
from ipyvram.recording import Action, Block, Events, Trace


@st.composite
def programs(draw):
    """Rows of (action, address, size), with addresses reused as an allocator reuses them, and a baseline."""
    live: dict[int, int] = {}
    baseline = []
    for address in draw(st.lists(st.integers(1, 5), unique=True)):
        size = draw(st.integers(1, 100))
        baseline.append(Block(address, size, size))
        live[address] = size
    rows = []
    for _ in range(draw(st.integers(0, 30))):
        free_addresses = [a for a in range(1, 9) if a not in live]
        if live and (not free_addresses or draw(st.booleans())):
            address = draw(st.sampled_from(sorted(live)))
            rows.append((Action.FREE_REQUESTED, address, live.pop(address)))
        else:
            address, size = draw(st.sampled_from(free_addresses)), draw(st.integers(1, 100))
            live[address] = size
            rows.append((Action.ALLOC, address, size))
    return baseline, rows


def trace_of(baseline, rows):
    events = Events.from_rows(
        [(a, address, size, 0, 1000 + 10 * i, -1, -1) for i, (a, address, size) in enumerate(rows)]
    )
    return Trace("cpu", "storages", 990, 1000 + 10 * len(rows), events, tuple(baseline))


@given(programs())
def test_account_equals_a_running_sum(program):
    baseline, rows = program
    ledger = build(trace_of(baseline, rows))
    running, expected = sum(b.size for b in baseline), []
    expected.append(running)
    for action, _, size in rows:
        running += size if action == Action.ALLOC else -size
        expected.append(running)
    assert ledger.allocated().tolist() == expected


@given(programs())
def test_find_gives_the_allocation_live_at_that_time(program):
    baseline, rows = program
    ledger = build(trace_of(baseline, rows))
    live = {b.address: b.size for b in baseline}
    for i, (action, address, size) in enumerate(rows):
        if action == Action.ALLOC:
            live[address] = size
        else:
            del live[address]
        times = np.full(9, 1000 + 10 * i + 5)
        found = ledger.find(np.arange(1, 10), times)
        sizes = {a: int(ledger.bytes[row]) for a, row in zip(range(1, 10), found.tolist(), strict=True) if row >= 0}
        assert sizes == live


def test_a_free_without_an_allocation_was_there_before():
    ledger = build(trace_of([], [(Action.FREE_REQUESTED, 7, 40)]))
    assert ledger.allocated().tolist() == [40, 0]


def test_empty_trace_has_one_instant():
    ledger = build(trace_of([], []))
    assert ledger.allocated().tolist() == [0]
    assert ledger.find(np.array([3]), np.array([995])).tolist() == [-1]


def test_account_of_nothing():
    empty = np.empty(0, np.int64)
    assert account(empty, empty, empty, 3).tolist() == [0, 0, 0]

"""The few spans from which what was live at any moment is told."""

from __future__ import annotations

import numpy as np
import pytest

from ipyvram.attribution import INDEX, Attribution, Places, Spans
from ipyvram.ledger import Ledger
from ipyvram.lifetimes import LARGEST, MAX_SPANS, largest_spans


def build(rng: np.random.Generator, count: int, instants: int) -> tuple[Ledger, Attribution]:
    born = rng.integers(0, instants - 1, count)
    died = born + rng.integers(1, instants, count)
    sizes = rng.integers(0, 10**6, count)
    nothing = np.full(count, -1, np.int64)
    ledger = Ledger(born, died, sizes, sizes, np.arange(count), nothing, nothing, np.arange(instants) * 1000, None)
    category = np.full(count, INDEX["activations"], np.int64)
    spans = Spans(row=np.arange(count), begin=born, end=np.minimum(died, instants), category=category)
    nowhere = Places(np.full(count, -1), ())
    return ledger, Attribution(spans, {}, nowhere, nowhere, np.zeros(len(ledger.born), bool))


@pytest.mark.parametrize("count", [0, 1, 5, 400])
def test_the_largest_of_every_moment_looked_at_are_among_them(count):
    instants = 50
    ledger, attribution = build(np.random.default_rng(count), count, instants)
    spans = largest_spans(ledger, attribution, np.arange(instants))
    assert len(spans) <= MAX_SPANS
    assert [ledger.bytes[s.row] for s in spans] == sorted((ledger.bytes[s.row] for s in spans), reverse=True)
    for k in range(instants):
        live = np.flatnonzero((ledger.born <= k) & (ledger.died > k) & (ledger.bytes > 0))
        largest = sorted(ledger.bytes[live], reverse=True)[:LARGEST]
        told = sorted((ledger.bytes[s.row] for s in spans if s.begin <= k < s.end), reverse=True)[:LARGEST]
        assert told == largest

"""A full card: out of memory is explained, and a sweep's answer holds."""

from __future__ import annotations

import pytest

from benchmarks.gpu import limits

pytestmark = pytest.mark.gpu


def test_out_of_memory_is_explained_and_comes_back(card, passes):
    passes(limits.out_of_memory(card.device, simulated=False))


def test_the_size_that_a_sweep_finds_runs_and_the_next_does_not(card, passes):
    passes(limits.sweep(card.device, simulated=False))

"""Everything here needs a CUDA device, and says so where there is none."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here; benchmarks/gpu_check.py --simulate runs these checks on a simulated one")


@pytest.fixture
def card():
    from benchmarks.gpu.card import RealCard

    return RealCard()


@pytest.fixture
def passes():
    """Takes the rows of a check and fails with those that did."""
    from benchmarks.gpu.rows import line

    def check(rows):
        found = list(rows)
        assert found
        failed = [line(r) for r in found if r.ok is False]
        assert not failed, "\n" + "\n".join(failed)

    return check

"""What the estimate says of the same programs on this card, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.rows import Row, note
from benchmarks.workloads import Case, program
from ipyvram.units import format_bytes


def compare(case: Case, card: str, measured: dict[str, Any]) -> Iterator[Row]:
    """One row: predicted and measured allocated and reserved, and the error.

    Parameters
    ----------
    card : str
        Its name, or its memory where the name is not in ipyvram's table.
    measured : dict
        As `battery.figures` gives it.
    """
    from ipyvram import estimate

    torch.manual_seed(0)
    report = estimate(program(case, "cuda"), card=card, namespace={})
    pairs = {
        "allocated": (report.peak_bytes, measured["peak_allocated"]),
        "reserved": (report.peak_reserved_bytes or 0, measured["peak_reserved"] or 0),
    }
    text = ", ".join(f"{name} {format_bytes(p)} ({_error(p, m):+.2%})" for name, (p, m) in pairs.items())
    errors = {f"{name}_error": _error(p, m) for name, (p, m) in pairs.items()}
    yield note("estimate", case.name, text, predicted=report.peak, measured=measured["peak"], **errors)


def _error(predicted: int, measured: int) -> float:
    return predicted / measured - 1 if measured else 0.0

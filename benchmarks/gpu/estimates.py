"""What the estimate says of the same programs on this card, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu import programs
from benchmarks.gpu.rows import Row, note
from ipyvram import cards
from ipyvram.units import format_bytes


def card_of(name: str, total_bytes: int) -> str:
    """The card for an estimate: by its name, or by its memory where ipyvram's table does not have it."""
    try:
        return cards.find(name).name
    except ValueError:
        return f"{total_bytes >> 20}MiB"


def compare(name: str, card: str, measured: dict[str, Any], small: bool) -> Iterator[Row]:
    """One row: predicted and measured allocated and reserved, and the error.

    Parameters
    ----------
    name : str
        Of a program in `programs`.
    measured : dict
        As `battery.figures` gives it.
    small : bool
        Whether the small programs were measured.
    """
    from ipyvram import estimate

    torch.manual_seed(0)
    report = estimate(programs.text_of(name, small), card=card, namespace={})
    pairs = {
        "allocated": (report.peak_bytes, measured["peak_allocated"]),
        "reserved": (report.peak_reserved_bytes or 0, measured["peak_reserved"] or 0),
    }
    text = ", ".join(f"{name} {format_bytes(p)} ({_error(p, m):+.2%})" for name, (p, m) in pairs.items())
    errors = {f"{name}_error": _error(p, m) for name, (p, m) in pairs.items()}
    predicted = {f"predicted_{name}": p for name, (p, _) in pairs.items()}
    said = {"predicted": report.peak, "measured": measured["peak"], "torch": str(torch.__version__)}
    yield note("estimate", name, text, **said, **predicted, **errors)


def _error(predicted: int, measured: int) -> float:
    return predicted / measured - 1 if measured else 0.0

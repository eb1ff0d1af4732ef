"""Comparisons made up for tests of what shows them."""

from __future__ import annotations

from typing import Any

from ipyvram.comparison import Accumulation, Answer, Comparison, Row
from ipyvram.sweep.answers import fit_rows

MIB = 2**20

#: A label that tries to be markup, to break out of an attribute, to move a cursor and to turn the line around.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e$x$"


def _row(batch: int, status: str = "measured", **more: Any) -> Row:
    categories = {
        "parameters": 100 * MIB, "gradients": 100 * MIB, "optimizer_state": 200 * MIB, "inputs": batch * MIB // 16,
        "activations": batch * 5 * MIB, "temporaries": batch * MIB // 2,
    }  # fmt: skip
    peak = sum(categories.values())
    speed = 1000.0 * batch / (batch + 4)
    values: dict[str, Any] = {
        "seen": batch, "peak_bytes": peak, "categories": categories, "reserved_bytes": peak + 40 * MIB,
        "needed_bytes": peak + 440 * MIB, "samples_per_s": speed, "step_s": batch / speed, "steps": 3,
    }  # fmt: skip
    return Row(batch, status, **(values | more))


def measured(**more: Any) -> Comparison:
    """Four sizes on a card; the fifth is the answer, run again; the sixth ran out of memory."""
    rows = (
        *(_row(b) for b in (8, 16, 32, 64)),
        _row(100, "verified", steps=10),
        Row(128, "OOM", 128, note="could not allocate 64.0 MiB"),
    )
    values: dict[str, Any] = {
        "name": "batch_size", "rows": rows, "label": "ResNet", "device": "cuda:0", "device_name": "Tesla T4",
        "limit_bytes": 1400 * MIB, "card_bytes": 1750 * MIB, "fit": fit_rows(rows), "trials": 6, "duration_s": 12.5,
        "largest": Answer(100, "verified", rows[4].needed_bytes, beyond=128), "knee": 64, "started_at": 1e9,
        "accumulation": Accumulation(256, 64, 4), "notes": ("not run: 256 (smaller ones ran out of memory)",),
    }  # fmt: skip
    return Comparison(**(values | more))


def estimated() -> Comparison:
    """Predictions with a range, and nothing timed."""
    plain = {"samples_per_s": None, "step_s": None, "steps": 0}
    rows = tuple(_row(b, "predicted", low_bytes=b * MIB, high_bytes=900 * MIB, **plain) for b in (8, 16, 32))
    return measured(
        rows=rows, kind="estimated", label=None, knee=None, accumulation=None, fit=fit_rows(rows),
        largest=Answer(64, "predicted", 1200 * MIB, 1100 * MIB, 1300 * MIB),
    )  # fmt: skip


def on_cpu() -> Comparison:
    """No card, no limit, no reserved memory, batches that were clipped."""
    rows = tuple(_row(b, reserved_bytes=None, needed_bytes=None) for b in (8, 16))
    rows += (_row(32, seen=20, reserved_bytes=None, needed_bytes=None, note="the model was given 20"),)
    return measured(
        rows=rows, limit_bytes=None, card_bytes=None, largest=None, device="cpu", device_name="", fit=fit_rows(rows)
    )


def interrupted() -> Comparison:
    """Stopped in the second trial; the first left something behind."""
    return measured(
        rows=(_row(8, contaminated=True, note="5 MiB left by the trial"),), fit=None, largest=None, knee=None, accumulation=None,
        trials=1, ended="interrupted", notes=(),
    )  # fmt: skip


def empty() -> Comparison:
    """Stopped before anything had ended."""
    return measured(
        rows=(), fit=None, largest=None, knee=None, accumulation=None, trials=0, ended="interrupted", notes=()
    )


def sides() -> Comparison:
    """The side of images, not a batch: no knee, no samples for each size."""
    rows = tuple(_row(side, seen=None, samples_per_s=6400.0 / side) for side in (64, 96, 128))
    return measured(
        name="image_size", of_samples=False, rows=rows, label=None, fit=fit_rows(rows, False), knee=None, accumulation=None,
        largest=Answer(128, "verified", rows[2].needed_bytes),
    )  # fmt: skip


CASES = {
    "measured": measured, "estimated": estimated, "cpu": on_cpu, "sides": sides, "interrupted": interrupted, "empty": empty,
}  # fmt: skip

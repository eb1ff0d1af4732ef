"""The figures behind the timeline, for hover: a `Scene` comes in, compact JSON for the SVG's ``metadata`` goes out.

Times are whole µs, each as the distance to the one before; columns are ``(repeat, value)`` runs.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from ipyvram.render.markup import clean
from ipyvram.render.palette import COLOURS
from ipyvram.render.scene import LEFT, PLOT_H, PLOT_W, SAMPLED_LABELS, WIDTH, Scene
from ipyvram.report import Report
from ipyvram.report_rows import LABELS


def payload(report: Report, scene: Scene) -> str:
    """What `assets/report.js` reads; ready to stand inside an element."""
    data = scene.data
    order = {category: i for i, category in enumerate(data.categories)}
    figures: dict[str, Any] = {
        "box": [WIDTH, PLOT_W, PLOT_H, LEFT],
        "axis": [[_micros(p.start), _micros(p.end), round(p.left), round(p.right)] for p in scene.axis.pieces],
        "right": scene.x(data.end_s),
        "top": round(scene.top_bytes),
        "time": _deltas(data.time_s),
        "rows": [[LABELS[c], COLOURS[c], *_column(column)] for c, column in data.categories.items()],
        "reserved": ["reserved", "", *_column(data.reserved)] if data.reserved else None,
        "end": _micros(data.end_s),
        "phases": [
            [_micros(p.start_s), _micros(p.end_s), p.name, p.step if report.steps else 0] for p in report.phases
        ],
        "samples": _deltas(data.sampled_time_s),
        "lines": [_line(n, c) for n, c in data.sampled.items() if n in SAMPLED_LABELS],
        "live": [
            [_micros(t.start_s), _micros(t.end_s), t.bytes, order[t.category], clean(t.name)[:60]]
            for t in sorted(report.lifetimes, key=lambda t: -t.bytes)  # what was live is told largest first
            if t.category in order
        ],
    }
    return html.escape(json.dumps(figures, separators=(",", ":"), allow_nan=False), quote=False)


def _line(name: str, column: Sequence[int | None]) -> list[Any]:
    """A sampled line; the second item tells whether the exact account knows the same better, where there is one."""
    return [f"{SAMPLED_LABELS[name]} (sampled)", int(name in ("allocated", "reserved")), *_column(column)]


def _column(values: Sequence[int | None]) -> tuple[int, list[int | None]]:
    """A unit in bytes, and the values in it as runs: coarse enough to be short, far finer than what is shown of it."""
    unit = max(1, 2 ** (max(v or 0 for v in values).bit_length() - 17)) if values else 1
    return unit, _runs([None if v is None else round(v / unit) for v in values])


def _micros(second: float) -> int:
    return round(second * 1e6)


def _deltas(seconds: Sequence[float]) -> list[int]:
    micros = [_micros(s) for s in seconds]
    return [b - a for a, b in zip([0, *micros], micros, strict=False)]


def _runs(column: Sequence[int | None]) -> list[int | None]:
    runs: list[Any] = []
    for value in column:
        if runs and runs[-1] == value:
            runs[-2] += 1
        else:
            runs += [1, value]
    return runs

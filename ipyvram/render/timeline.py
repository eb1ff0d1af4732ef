"""The timeline as SVG: a `Report` comes in, one picture goes out that is also the payload of the interactive one.

The same string is shown as an image (sanitized notebooks), stands in exported pages, and is taken over by
`assets/report.js`, which reads the exact figures from its ``metadata``. No ``defs``, no ``url()``, no ids. Text and axes
are ``currentColor``: mid-grey inside an image, the page's own colour once the script has put the picture into the page.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ipyvram.render.axes import Piece, TimeAxis, byte_ticks, second_ticks, spread
from ipyvram.render.markup import escape
from ipyvram.render.palette import COLOURS, STACK
from ipyvram.report import LABELS, Report, Timeline
from ipyvram.units import format_bytes, format_duration

WIDTH, HEIGHT = 880, 252
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 38, 24
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

#: Grey that reads on white and on near-black: text of the picture while it is an image.
IMAGE_GREY = "#777"

#: Where the traced part is less than this share of the cell, it gets a panel of its own, and the rest another.
SPLIT_BELOW = 0.5
TRACED_PANEL, GAP = 0.62, 0.03

#: A line that is higher than this many times what is drawn anyway would flatten the rest: it is told, not drawn.
IN_SCALE = 2.2

SAMPLED_LABELS = {
    "allocated": "allocated (sampled)",
    "reserved": "reserved",
    "device_used": "device used",
    "process_rss": "process memory",
}
_DASHES = {"reserved": "5 3", "device_used": "1 3", "process_rss": "7 2 2 2", "allocated": ""}


@dataclass(frozen=True, slots=True)
class Scene:
    """Where everything goes: positions in pixels of the plot, whose origin is its upper left corner."""

    axis: TimeAxis
    top_bytes: float
    traced_right: float  #: where the exact account ends
    split: bool
    drawn: tuple[str, ...]  #: sampled columns that are in scale
    untold: tuple[str, ...]  #: what is out of scale, in words

    def y(self, count: float) -> int:
        """Position of a number of bytes."""
        return round(PLOT_H * (1 - count / self.top_bytes)) if self.top_bytes else PLOT_H


def timeline(report: Report) -> str:
    """The picture; empty where nothing was recorded over time."""
    data = report.timeline_data
    if not data.time_s and not data.sampled_time_s:
        return ""
    scene = _scene(report)
    plot = [*_shading(report, scene), *_grid(scene), *_areas(data, scene), *_lines(report, scene)]
    around = [*_axis_labels(report, scene), *_step_labels(report, scene), *_peak(report, scene)]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="color:{IMAGE_GREY}" fill="currentColor" '
        f'font-family="system-ui,sans-serif" font-size="11"><metadata>{_payload(report, scene)}</metadata>'
        f'<svg x="{LEFT}" y="{TOP}" width="{PLOT_W}" height="{PLOT_H}">{"".join(plot)}</svg>{"".join(around)}</svg>'
    )


def sentence(report: Report) -> str:
    """The picture in words, for ``alt``."""
    data = report.timeline_data
    length = max(data.end_s, data.sampled_time_s[-1] if data.sampled_time_s else 0.0)
    parts = [f"Memory over {format_duration(length)}"]
    if report.steps:
        parts.append(
            f"{report.traced_steps or report.steps} traced steps" if report.traced_steps != 1 else "one traced step"
        )
    when = f" ({report.peak_when})" if report.peak_when else ""
    parts.append(f"peak {format_bytes(report.peak_bytes)} at {format_duration(report.peak_time_s)}{when}")
    largest = sorted(((n, c) for c, n in report.peak.items() if n), reverse=True)[:3]
    if largest:
        parts.append("largest there: " + ", ".join(f"{LABELS[c]} {format_bytes(n)}" for n, c in largest))
    return "; ".join(parts) + "."


# -- scene -------------------------------------------------------------------------------------------------------------


def _scene(report: Report) -> Scene:
    data = report.timeline_data
    length = max(report.duration_s, data.end_s, data.sampled_time_s[-1] if data.sampled_time_s else 0.0) or 1e-9
    exact_end = data.end_s if data.time_s else 0.0
    split = bool(data.time_s) and exact_end < SPLIT_BELOW * length and bool(data.sampled)
    bounds = _bounds(report, exact_end if split else max(exact_end, length))
    if split:
        pieces = spread(bounds, 0, TRACED_PANEL * PLOT_W)
        pieces.append(Piece(exact_end, exact_end, TRACED_PANEL * PLOT_W, (TRACED_PANEL + GAP) * PLOT_W))
        pieces.append(Piece(exact_end, length, (TRACED_PANEL + GAP) * PLOT_W, PLOT_W))
    else:
        pieces = spread(bounds, 0, PLOT_W)
    axis = TimeAxis(pieces)
    right = TRACED_PANEL * PLOT_W if split else axis(exact_end)
    top, drawn, untold = _range(report)
    return Scene(axis, top * 1.04, right, split, drawn, untold)


def _bounds(report: Report, end: float) -> list[float]:
    """Where steps begin, between the start of the cell and ``end``."""
    starts: dict[int, float] = {}
    for phase in report.phases:
        starts.setdefault(phase.step, phase.start_s)
    inner = sorted(s for s in starts.values() if 0 < s < end) if report.steps else []
    return [0.0, *inner, end]


def _range(report: Report) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """The highest value to draw, which sampled columns are drawn, and what is out of scale in words."""
    data = report.timeline_data
    peaks = {name: max((v or 0 for v in column), default=0) for name, column in data.sampled.items()}
    base = (
        max(report.peak_bytes, max(data.reserved, default=0), peaks.get("allocated", 0), peaks.get("reserved", 0)) or 1
    )
    if not report.peak_bytes and not data.time_s:
        base = max([base, *peaks.values()])
    drawn = tuple(n for n, high in peaks.items() if n in SAMPLED_LABELS and 0 < high <= IN_SCALE * base)
    untold = [
        f"{SAMPLED_LABELS[n]} up to {format_bytes(h)}"
        for n, h in peaks.items()
        if n in SAMPLED_LABELS and h > IN_SCALE * base
    ]
    top = max([base, *(peaks[n] for n in drawn)])
    if report.limit_bytes:
        if report.limit_bytes <= 1.5 * top:
            top = max(top, report.limit_bytes)
        else:
            untold.append(f"limit {format_bytes(report.limit_bytes)}")
    return float(top), drawn, tuple(untold)


# -- what is drawn inside the plot ---------------------------------------------------------------------------------------

_PHASE_OPACITY = {"forward": 0.0, "backward": 0.09, "optimizer": 0.2}


def _shading(report: Report, scene: Scene) -> Iterable[str]:
    for phase in report.phases:
        opacity = _PHASE_OPACITY.get(phase.name, 0.0)
        x, end = round(scene.axis(phase.start_s)), round(scene.axis(phase.end_s))
        if opacity and end > x:
            yield f'<rect class="z" x="{x}" width="{end - x}" height="{PLOT_H}" opacity="{opacity}"/>'


def _grid(scene: Scene) -> Iterable[str]:
    for tick in byte_ticks(scene.top_bytes):
        yield f'<path d="M0 {scene.y(tick)}h{PLOT_W}" stroke="currentColor" opacity=".18" shape-rendering="crispEdges"/>'


def columns(positions: Sequence[int], totals: Sequence[int]) -> list[tuple[int, int]]:
    """``(x, row)``: what each pixel column shows.

    Several rows in one column show the highest, and the column after it shows the last of them: a peak that lasted less
    than a pixel is still one pixel wide.
    """
    shown: list[tuple[int, int]] = []
    row, count = 0, len(positions)
    while row < count:
        x, first = positions[row], row
        while row < count and positions[row] == x:
            row += 1
        if shown and shown[-1][0] == x:  # the tail of the column before is overtaken
            first = shown.pop()[1] if totals[shown[-1][1]] > max(totals[first:row]) else first
        best = max(range(first, row), key=totals.__getitem__)
        shown.append((x, best))
        if best != row - 1:
            shown.append((x + 1, row - 1))
    return shown


def _areas(data: Timeline, scene: Scene) -> Iterable[str]:
    """Stacked steps. Each area reaches down to the ground and the next lower one covers it: one edge to draw for each."""
    if not data.time_s:
        return
    shown = columns([round(scene.axis(t)) for t in data.time_s], data.allocated)
    right = round(scene.traced_right)
    height = [0] * len(shown)
    paths: list[str] = []
    for category in STACK:
        column = data.categories.get(category)
        if column is None:
            continue
        height = [h + column[row] for h, (_, row) in zip(height, shown, strict=True)]
        steps = [(x, scene.y(h)) for h, (x, _) in zip(height, shown, strict=True)]
        paths.append(f'<path class="a" fill="{COLOURS[category]}" d="{_staircase(steps, right)}"/>')
    yield '<g shape-rendering="crispEdges">' + "".join(reversed(paths)) + "</g>"


def _staircase(steps: Sequence[tuple[int, int]], right: int) -> str:
    """An area below steps at ``(x, y)`` that ends at ``right``."""
    return f"M{steps[0][0]} {PLOT_H}" + _risers(steps, PLOT_H, right) + f"V{PLOT_H}z"


def _risers(steps: Sequence[tuple[int, int]], y: int, right: int) -> str:
    x, parts = steps[0][0], []
    for to_x, to_y in steps:
        if to_y != y:
            if to_x > x:
                parts.append(f"h{to_x - x}")
                x = to_x
            parts.append(f"v{to_y - y}")
            y = to_y
    return "".join(parts) + (f"h{right - x}" if right > x else "")


def _lines(report: Report, scene: Scene) -> Iterable[str]:
    data = report.timeline_data
    if data.reserved:
        shown = columns([round(scene.axis(t)) for t in data.time_s], data.reserved)
        yield _line("reserved", [(x, scene.y(data.reserved[row])) for x, row in shown], round(scene.traced_right))
    for name in scene.drawn:
        after = data.end_s if name in ("allocated", "reserved") and data.time_s else -1.0
        rows = [
            (round(scene.axis(t)), v)
            for t, v in zip(data.sampled_time_s, data.sampled[name], strict=True)
            if v is not None and t >= after
        ]
        if not rows:
            continue
        shown = columns([x for x, _ in rows], [v for _, v in rows])
        steps = [(x, scene.y(rows[row][1])) for x, row in shown]
        if name == "allocated":
            yield f'<path d="{_staircase(steps, PLOT_W)}" opacity=".35" shape-rendering="crispEdges"/>'
        else:
            yield _line(name, steps, PLOT_W)
    if report.limit_bytes and report.limit_bytes <= scene.top_bytes:
        y = scene.y(report.limit_bytes)
        yield f'<path d="M0 {y}h{PLOT_W}" stroke="#d2477f" stroke-width="1.5" fill="none"/>'


def _line(name: str, steps: Sequence[tuple[int, int]], right: int) -> str:
    x, y = steps[0]
    dash = f' stroke-dasharray="{_DASHES[name]}"' if _DASHES[name] else ""
    return (
        f'<path class="l" d="M{x} {y}{_risers(steps, y, right)}" fill="none" stroke="currentColor" '
        f'stroke-width="1.5"{dash}/>'
    )


# -- what stands around it -----------------------------------------------------------------------------------------------


def _text(x: float, y: float, text: str, anchor: str = "", extra: str = "") -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{round(x)}" y="{round(y)}"{where}{extra}>{escape(text)}</text>'


def _axis_labels(report: Report, scene: Scene) -> Iterable[str]:
    for tick in byte_ticks(scene.top_bytes):
        yield _text(LEFT - 8, TOP + scene.y(tick) + 4, _round_bytes(tick), "end")
    taken = -100.0
    for second in _time_ticks(scene):
        x = LEFT + scene.axis(second)
        if x - taken >= 64 and x <= WIDTH - 20:
            yield _text(x, HEIGHT - 8, format_duration(second), "middle" if x > LEFT + 10 else "start", ' class="t"')
            taken = x
    if scene.untold:
        yield _text(WIDTH - RIGHT, 12, "out of the picture: " + ", ".join(scene.untold), "end")


def _round_bytes(tick: int) -> str:
    """A tick as text without the digits that every round number has: ``2 GiB``, ``0.5 GiB``."""
    number, _, unit = format_bytes(tick).partition(" ")
    return f"{float(number):g} {unit}" if tick else "0"


def _time_ticks(scene: Scene) -> list[float]:
    pieces = scene.axis.pieces
    if len(pieces) == 1:
        return second_ticks(pieces[0].start, pieces[0].end)
    if scene.split:
        rest = pieces[-1]
        traced = list(pieces[:-2])
        inner = second_ticks(traced[0].start, traced[0].end, 4) if len(traced) == 1 else [p.start for p in traced]
        return [*inner, *second_ticks(rest.start, rest.end, 3)]
    return [p.start for p in pieces]


def _step_labels(report: Report, scene: Scene) -> Iterable[str]:
    names = {"forward": "forward", "backward": "backward", "optimizer": "optimizer"}
    seen: set[int] = set()
    taken = -100.0
    for phase in report.phases:
        x, end = LEFT + scene.axis(phase.start_s), LEFT + scene.axis(phase.end_s)
        if report.steps and phase.step not in seen:
            seen.add(phase.step)
            yield f'<path d="M{round(x)} {TOP - 8}v{PLOT_H + 8}" stroke="currentColor" opacity=".45" class="t"/>'
            if x - taken > 48:
                yield _text(x + 4, 12, f"step {phase.step}", "", ' font-weight="600" class="t"')
                taken = x
        if end - x > 56:
            yield _text((x + end) / 2, TOP - 6, names.get(phase.name, phase.name), "middle", ' opacity=".9" class="t"')
    if scene.split:
        x = LEFT + (TRACED_PANEL + GAP) * PLOT_W
        yield _text(x, 12, "rest of the cell, sampled", "", ' font-weight="600"')


def _peak(report: Report, scene: Scene) -> Iterable[str]:
    second, label = report.peak_time_s, f"peak {format_bytes(report.peak_bytes)}"
    if not report.peak_bytes or report.provenance.get("peak") == "sampled":
        sampled = report.timeline_data.sampled.get("allocated", ())
        if not any(sampled):
            return
        second = report.timeline_data.sampled_time_s[max(range(len(sampled)), key=lambda i: sampled[i] or 0)]
        label += " (sampled)"
    x, y = LEFT + scene.axis(second), TOP + scene.y(report.peak_bytes)
    anchor, at = ("end", x - 8) if x > LEFT + 110 else ("start", x + 8)
    yield f'<circle class="k" cx="{round(x)}" cy="{y}" r="4" fill="none" stroke="currentColor" stroke-width="1.8"/>'
    yield _text(at, max(y - 4, TOP + 10), label, anchor, ' font-weight="700" class="k"')


# -- the figures behind the picture, for hover ---------------------------------------------------------------------------


def _payload(report: Report, scene: Scene) -> str:
    """Exact figures as JSON: times in µs, columns as ``(repeat, value)`` runs."""
    data = report.timeline_data
    payload: dict[str, Any] = {
        "axis": [[round(p.start * 1e6), round(p.end * 1e6), round(p.left), round(p.right)] for p in scene.axis.pieces],
        "top": round(scene.top_bytes),
        "time": _deltas(data.time_s),
        "rows": [[LABELS[c], COLOURS[c], _runs(data.categories[c])] for c in STACK if c in data.categories],
        "reserved": _runs(data.reserved),
        "end": round(data.end_s * 1e6),
        "phases": [
            [round(p.start_s * 1e6), round(p.end_s * 1e6), p.name, p.step if report.steps else 0] for p in report.phases
        ],
        "sampled": _deltas(data.sampled_time_s),
        "lines": [[SAMPLED_LABELS[n], _runs(column)] for n, column in data.sampled.items() if n in SAMPLED_LABELS],
        "peak": round(report.peak_time_s * 1e6),
    }
    return html.escape(json.dumps(payload, separators=(",", ":"), allow_nan=False), quote=False)


def _deltas(seconds: Sequence[float]) -> list[int]:
    """Times in µs, each after the first as the distance to the one before: short numbers."""
    micros = [round(s * 1e6) for s in seconds]
    return [b - a for a, b in zip([0, *micros], micros, strict=False)]


def _runs(column: Sequence[int | None]) -> list[int | None]:
    runs: list[Any] = []
    for value in column:
        if runs and runs[-1] == value:
            runs[-2] += 1
        else:
            runs += [1, value]
    return runs

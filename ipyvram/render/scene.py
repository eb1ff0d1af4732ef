"""Where everything of the timeline goes: a `Report` comes in, a `Scene` of scales and of curves to draw goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ipyvram.render.axes import Piece, TimeAxis, spread
from ipyvram.render.palette import STACK
from ipyvram.report import Report, Timeline
from ipyvram.units import format_bytes

#: Size of the picture and of the plot in it, in pixels.
WIDTH, HEIGHT = 880, 264
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 48, 24
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

#: Where the traced part is less than this share of the cell, it gets a panel of its own, and the rest another.
SPLIT_BELOW = 0.5
TRACED_W, GAP_W = round(0.64 * PLOT_W), 26

#: A line that is higher than this many times what is drawn anyway would flatten the rest: it is told, not drawn.
IN_SCALE = 2.2

#: Instants kept of the exact account, and of the samples: more than can be told apart are of no use.
MAX_POINTS, MAX_SAMPLES = 340, 150

SAMPLED_LABELS = {
    "allocated": "allocated",
    "reserved": "reserved",
    "device_used": "device used",
    "process_rss": "process memory",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A stepwise line: ``values`` bytes from ``time_s`` on.

    ``traced``: exact, and it ends with the trace. ``own_scale``: it has the panel right of the trace for itself.
    """

    name: str
    time_s: tuple[float, ...]
    values: tuple[int, ...]
    traced: bool = False
    own_scale: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Scales and curves. Positions are pixels of the plot, whose origin is its upper left corner.

    Attributes
    ----------
    data : Timeline
        The report's, with only the instants and samples that can be seen.
    curves : tuple of Curve
        Sampled lines, and the exact ``reserved``.
    own_top : float
        What the height of the plot stands for in a curve with a scale of its own.
    untold : tuple of str
        What is out of scale, in words.
    """

    axis: TimeAxis
    data: Timeline
    curves: tuple[Curve, ...]
    top_bytes: float
    own_top: float
    traced_right: int
    split: bool
    limit_bytes: int | None
    untold: tuple[str, ...]

    def x(self, second: float) -> int:
        """Position of an instant."""
        return round(self.axis(second))

    def y(self, count: float, own_scale: bool = False) -> int:
        """Position of a number of bytes."""
        top = self.own_top if own_scale else self.top_bytes
        return round(PLOT_H * (1 - count / top)) if top else PLOT_H


def make_scene(report: Report) -> Scene:
    """Lay out the timeline of a report."""
    data = report.timeline_data
    traced = bool(data.time_s)
    samples_end = data.sampled_time_s[-1] if data.sampled_time_s else 0.0
    exact_end = data.end_s if traced else 0.0
    length = max(report.duration_s, exact_end, samples_end) or 1e-9
    split = traced and exact_end < SPLIT_BELOW * length and samples_end > exact_end
    axis = _axis(report, exact_end, length, split)
    data = _reduced(data, axis)
    highs = {n: max((v or 0 for v in column), default=0) for n, column in data.sampled.items() if n in SAMPLED_LABELS}
    top, drawn = _top(report, highs)
    alone = [n for n in highs if split and n not in drawn and not set(drawn) & set(highs)][:1]
    limit = report.limit_bytes if report.limit_bytes and report.limit_bytes <= 1.5 * top else None
    untold = [f"{SAMPLED_LABELS[n]} up to {format_bytes(highs[n])}" for n in highs if n not in (*drawn, *alone)]
    if report.limit_bytes and limit is None:
        untold.append(f"limit {format_bytes(report.limit_bytes)}")
    return Scene(
        axis=axis,
        data=data,
        curves=tuple(_curves(data, drawn, alone)),
        top_bytes=max(top, limit or 0) * 1.04,
        own_top=max((highs[n] for n in alone), default=0) * 1.25,
        traced_right=TRACED_W if split else round(axis(exact_end)),
        split=split,
        limit_bytes=limit,
        untold=tuple(untold),
    )


def _axis(report: Report, exact_end: float, length: float, split: bool) -> TimeAxis:
    if not split:
        return TimeAxis(spread(_bounds(report, max(exact_end, length)), 0, PLOT_W))
    pieces = spread(_bounds(report, exact_end), 0, TRACED_W)
    gap = Piece(exact_end, exact_end, TRACED_W, TRACED_W + GAP_W)
    return TimeAxis([*pieces, gap, Piece(exact_end, length, TRACED_W + GAP_W, PLOT_W)])


def _bounds(report: Report, end: float) -> list[float]:
    """Where steps begin, between the start of the cell and ``end``."""
    return [0.0, *sorted(s for s in step_starts(report).values() if 0 < s < end), end]


def step_starts(report: Report) -> dict[int, float]:
    """Step → the second it begins; empty for a cell without steps."""
    starts: dict[int, float] = {}
    for phase in report.phases if report.steps else ():
        starts.setdefault(phase.step, phase.start_s)
    return starts


def _top(report: Report, highs: dict[str, int]) -> tuple[float, tuple[str, ...]]:
    """The highest value to draw, and which sampled columns are in scale."""
    data = report.timeline_data
    base = max(report.peak_bytes, max(data.reserved, default=0), highs.get("allocated", 0), highs.get("reserved", 0))
    if not base:
        base = max(highs.values(), default=0) or 1
    drawn = tuple(n for n, high in highs.items() if 0 < high <= IN_SCALE * base)
    return float(max([base, *(highs[n] for n in drawn)])), drawn


def _curves(data: Timeline, drawn: Sequence[str], alone: Sequence[str]) -> list[Curve]:
    """Lines to draw. What the trace knows exactly is not drawn from samples too: they take over where it ends."""
    curves = [Curve("reserved", data.time_s, data.reserved, traced=True)] if data.reserved else []
    for name in (*drawn, *alone):
        exact = bool(data.time_s) and name in ("allocated", "reserved")
        after = data.end_s if name in alone or (exact and (name == "allocated" or data.reserved)) else -1.0
        rows = [
            (t, v) for t, v in zip(data.sampled_time_s, data.sampled[name], strict=True) if v is not None and t > after
        ]
        if rows:
            times, values = zip(*rows, strict=True)
            curves.append(Curve(name, times, values, own_scale=name in alone))
    return curves


def columns(positions: Sequence[int], totals: Sequence[int]) -> list[tuple[int, int]]:
    """``(x, row)``: what each pixel column shows, for rows at ascending ``positions``.

    Several rows in one column show the highest, and the column after it shows the last of them: a peak that lasted less
    than a pixel is still one pixel wide.
    """
    shown: list[tuple[int, int]] = []
    row, count = 0, len(positions)
    while row < count:
        x, first = positions[row], row
        while row < count and positions[row] == x:
            row += 1
        candidates = range(first, row)
        if shown and shown[-1][0] == x:  # what was left over from the column before
            candidates = range(shown.pop()[1], row)
        best = max(candidates, key=totals.__getitem__)
        shown.append((x, best))
        if best != row - 1:
            shown.append((x + 1, row - 1))
    return shown


def _visible(time_s: Sequence[float], values: Sequence[int], axis: TimeAxis, most: int) -> list[int]:
    """Rows that a pixel column shows; wider columns until at most about ``most`` are left."""
    wide = 1
    while True:
        rows = [row for _, row in columns([int(axis(t)) // wide for t in time_s], values)]
        if len(rows) <= most:
            return rows
        wide += 1


def _reduced(data: Timeline, axis: TimeAxis) -> Timeline:
    """The timeline with only those instants and samples that can be seen."""
    rows = _visible(data.time_s, data.allocated, axis, MAX_POINTS)
    first = next(iter(data.sampled.values()), ())
    samples = _visible(data.sampled_time_s, [v or 0 for v in data.sampled.get("allocated", first)], axis, MAX_SAMPLES)
    return Timeline(
        time_s=tuple(data.time_s[r] for r in rows),
        categories={c: tuple(data.categories[c][r] for r in rows) for c in STACK if c in data.categories},
        reserved=tuple(data.reserved[r] for r in rows) if data.reserved else (),
        end_s=data.end_s,
        sampled_time_s=tuple(data.sampled_time_s[r] for r in samples),
        sampled={name: tuple(column[r] for r in samples) for name, column in data.sampled.items()},
    )

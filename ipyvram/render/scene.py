"""Where everything of the timeline goes: a `Report` comes in, a `Scene` of scales and of curves to draw goes out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipyvram.render.axes import Piece, TimeAxis, spread
from ipyvram.render.palette import STACK
from ipyvram.report import Report
from ipyvram.report_rows import Timeline
from ipyvram.units import format_bytes

#: Size of the picture and of the plot in it, in pixels.
WIDTH, HEIGHT = 880, 264
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 48, 24
PLOT_W, PLOT_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

#: Where the traced part is less than this share of the cell, it gets a panel of its own, and the rest another: the first
#: where sampled lines go on in its scale, the second where the rest would be empty.
SPLIT_BELOW, SPLIT_BELOW_IF_EMPTY = 0.5, 0.85
INSTANT = 1e-6  # where a trace begins, the panel of what came before has just ended
TRACED_SHARE, TRACED_SHARE_ALONE, GAP_W = 0.66, 0.75, 24  # alone: nothing but the process beside it

#: Where a cell ends with more than this share of its time without an allocation (an error's traceback is being written),
#: that end is drawn in so much of the width.
IDLE_ABOVE, IDLE_SHARE = 0.5, 0.12

#: A line that is higher than this many times what is drawn anyway would flatten the rest: it is told, not drawn.
IN_SCALE = 2.2

#: Instants kept of the exact account, and of the samples: more than can be told apart are of no use.
MAX_POINTS, MAX_SAMPLES = 320, 150

SAMPLED_LABELS = {
    "allocated": "allocated",
    "reserved": "reserved",
    "device_used": "device used",
    "process_rss": "process memory",
}


#: ``(begin, end, exact)`` in seconds.
Part = tuple[float, float, bool]


@dataclass(frozen=True, slots=True)
class Curve:
    """A stepwise line: ``values`` bytes from ``time_s`` on, until ``end_s``.

    ``own_scale``: it has the panels beside the trace for itself.
    """

    name: str
    time_s: tuple[float, ...]
    values: tuple[int, ...]
    end_s: float
    own_scale: bool = False


class Panel(NamedTuple):
    """A stretch of the cell with scales of its own: seconds, whether it was traced, and its pieces of the axis.

    ``idle``: the last piece is an end in which nothing was allocated, drawn short.
    """

    start: float
    end: float
    traced: bool
    pieces: tuple[Piece, ...]
    idle: bool = False

    @property
    def busy(self) -> tuple[Piece, ...]:
        """The pieces without such an end."""
        return self.pieces[: len(self.pieces) - self.idle]

    @property
    def left(self) -> float:
        """Position of its left edge."""
        return self.pieces[0].left

    @property
    def right(self) -> float:
        """Position of its right edge."""
        return self.pieces[-1].right


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
    panels : tuple of Panel
        One, or what was traced and what was not in turn.
    untold : tuple of str
        What is out of scale, in words.
    """

    axis: TimeAxis
    data: Timeline
    curves: tuple[Curve, ...]
    top_bytes: float
    own_top: float
    panels: tuple[Panel, ...]
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
    parts = _parts(data, _length(report))
    highs = _highs(data)
    top, drawn = _top(report, highs)
    split = _is_split(data, parts, bool(drawn))
    panels = _panels(report, parts, split, TRACED_SHARE if drawn else TRACED_SHARE_ALONE)
    axis = TimeAxis([piece for panel in panels for piece in panel.pieces])
    data = _reduced(data, axis)
    alone = list(highs)[:1] if split and not drawn else []
    wanted = report.limit_bytes or (report.oom.limit_bytes if report.oom else None) or 0
    limit = wanted if 0 < wanted <= 1.5 * top else None
    out_of_scale = [(SAMPLED_LABELS[n] + " up to", high) for n, high in highs.items() if n not in (*drawn, *alone)]
    if wanted and limit is None:
        out_of_scale.append(("limit", wanted))
    return Scene(
        axis=axis,
        data=data,
        curves=tuple(c for c in _curves(data, drawn, alone, parts) if axis(c.end_s) - axis(c.time_s[0]) >= 1),  # seen
        top_bytes=max(top, limit or 0) * 1.04,
        own_top=highs[alone[0]] * 1.25 if alone else 0.0,
        panels=panels,
        limit_bytes=limit,
        untold=tuple(f"{what} {format_bytes(count)}" for what, count in out_of_scale),
    )


def _length(report: Report) -> float:
    """Seconds from the cell's begin to the last that is known of it."""
    data = report.timeline_data
    return max([report.duration_s, data.end_s if data.time_s else 0.0, *data.sampled_time_s[-1:]]) or 1e-9


def _highs(data: Timeline) -> dict[str, int]:
    """The highest of each sampled line that can be drawn, in bytes."""
    columns = {name: column for name, column in data.sampled.items() if name in SAMPLED_LABELS}
    return {name: max((value or 0 for value in column), default=0) for name, column in columns.items()}


def _is_split(data: Timeline, parts: Sequence[Part], in_scale: bool) -> bool:
    """Whether what was traced and what was not have panels of their own; ``in_scale``: sampled lines go on beside it."""
    known = sum(end - begin for begin, end, exact in parts if exact)
    least = SPLIT_BELOW if in_scale else SPLIT_BELOW_IF_EMPTY
    sampled_later = bool(data.sampled_time_s) and data.sampled_time_s[-1] > data.end_s
    return bool(data.time_s) and known < least * parts[-1][1] and sampled_later


def _parts(data: Timeline, length: float) -> list[Part]:
    """The cell as what was traced and what was not, in turn; empty parts left out."""
    if not data.time_s:
        return [(0.0, length, False)]
    edges = [0.0, *(edge for gap in data.gaps_s for edge in gap), data.end_s, length]
    parts = [(a, b, i % 2 == 0) for i, (a, b) in enumerate(itertools.pairwise(edges))]
    return [part for part in parts if part[1] > part[0]]


def _panels(report: Report, parts: Sequence[Part], split: bool, share: float) -> tuple[Panel, ...]:
    """One scale for all, or panels: what was traced side by side with what was not, each with a scale of its own."""
    starts = sorted(step_starts(report).values())
    instants = report.timeline_data.time_s if parts[-1][2] else ()
    last = instants[-1] if len(instants) > 1 else parts[-1][1]

    def panel(begin: float, end: float, traced: bool, left: float, right: float) -> Panel:
        if not traced:
            return Panel(begin, end, traced, tuple(spread([begin, end - INSTANT], left, right)))
        idle = begin < last < end - IDLE_ABOVE * (end - begin) and end == parts[-1][1]
        until, edge = (last, left + (right - left) * (1 - IDLE_SHARE)) if idle else (end, right)
        pieces = spread([begin, *(s for s in starts if begin < s < until), until], left, edge)
        return Panel(begin, end, traced, (*pieces, Piece(last, end, edge, right)) if idle else tuple(pieces), idle)

    if not split:
        return (panel(0.0, parts[-1][1], True, 0, PLOT_W),)
    exact = sum(1 for part in parts if part[2])
    room = PLOT_W - GAP_W * (len(parts) - 1)
    wide = {True: share * room / exact, False: (1 - share) * room / max(1, len(parts) - exact)}
    panels: list[Panel] = []
    x = 0.0
    for begin, end, traced in parts:
        panels.append(panel(begin, end, traced, x, x + wide[traced]))
        x += wide[traced] + GAP_W
    return tuple(panels)


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


def _curves(data: Timeline, drawn: Sequence[str], alone: Sequence[str], parts: Sequence[Part]) -> Iterator[Curve]:
    """Lines to draw. What the trace knows exactly is not drawn from samples too: they go on where it ends."""
    for begin, end, traced in parts:
        if traced and data.reserved:
            yield from _piece("reserved", data.time_s, data.reserved, begin, end)
        for name in drawn:
            exactly = traced and (name == "allocated" or (name == "reserved" and data.reserved))
            if not exactly:
                yield from _piece(name, data.sampled_time_s, data.sampled[name], begin, end)
        for name in () if traced else alone:
            yield from _piece(name, data.sampled_time_s, data.sampled[name], begin, end, own_scale=True)


def _piece(
    name: str, time_s: Sequence[float], values: Sequence[int | None], begin: float, end: float, own_scale: bool = False
) -> Iterator[Curve]:
    rows = [(t, v) for t, v in zip(time_s, values, strict=True) if v is not None and begin <= t < end]
    if rows:
        times, kept = zip(*rows, strict=True)
        yield Curve(name, times, kept, end, own_scale)


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
        gaps_s=data.gaps_s,
        sampled_time_s=tuple(data.sampled_time_s[r] for r in samples),
        sampled={name: tuple(column[r] for r in samples) for name, column in data.sampled.items()},
    )

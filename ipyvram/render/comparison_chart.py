"""Two panels as one SVG: a `Comparison` comes in; memory by category against the batch, and speed with its knee, go out.

An image without script, ids or ``defs``, on paper of its own: text and axes read on any page.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ipyvram.comparison import Comparison, Row, reached
from ipyvram.render.axes import byte_ticks, round_bytes
from ipyvram.render.comparison_words import speed
from ipyvram.render.markup import escape
from ipyvram.render.palette import COLOURS, LIMIT_COLOUR, PAPER, STACK
from ipyvram.units import format_bytes

WIDTH, HEIGHT = 860, 270
TOP, BOTTOM = 30, 232
#: Left and right edge of each panel's plot; of the first where it is the only one.
MEMORY, SPEED, ALONE = (64, 500), (590, 840), (64, 840)
KNEE_COLOUR = "#1797a3"

Scale = Callable[[float], float]


def chart(comparison: Comparison) -> str:
    """The picture; empty with fewer than two sizes to draw. Where the data ended, a size is drawn as the one they filled."""
    sizes = reached(comparison.rows)
    comparison = replace(comparison, rows=tuple(replace(r, batch=sizes[r.batch]) for r in comparison.rows))
    rows = [r for r in comparison.rows if r.peak_bytes is not None]
    if len(rows) < 2:
        return ""
    parts = [*_memory(comparison, rows), *_speed(comparison)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="{PAPER}" fill="currentColor" font-family="system-ui,sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


# -- memory --------------------------------------------------------------------------------------------------------------


def _memory(c: Comparison, rows: Sequence[Row]) -> Iterable[str]:
    left, right = ALONE if c.best_samples_per_s is None else MEMORY
    last = max(r.batch for r in c.rows)
    top_bytes = _top(c, rows, last)
    x: Scale = lambda batch: left + (right - left) * batch / (last * 1.04)  # noqa: E731
    y: Scale = lambda count: BOTTOM - (BOTTOM - TOP) * count / top_bytes  # noqa: E731
    yield _words(left, TOP - 14, "peak memory by category", "start", bold=True)
    for tick in byte_ticks(top_bytes):
        yield _rule(left, right, y(tick))
        yield _words(left - 6, y(tick) + 4, round_bytes(tick), "end")
    yield from _areas(rows, x, y)
    if c.fit is not None and c.fit.linear:
        yield from _line(c, x, y, last)
    if _shows_needed(rows):
        path = " L".join(f"{x(r.batch):.1f} {y(r.needed_bytes):.1f}" for r in rows if r.needed_bytes is not None)
        yield f'<path d="M{path}" stroke="currentColor" stroke-dasharray="6 3" fill="none"/>'
        yield _words(right, TOP - 14, "dashed: with cache and context", "end")
    if c.limit_bytes is not None and c.limit_bytes <= top_bytes:
        yield _rule(left, right, y(c.limit_bytes), LIMIT_COLOUR, 1, "6 3")
        yield _words(left + 4, y(c.limit_bytes) - 4, f"limit {format_bytes(c.limit_bytes)}", "start")
    for row in c.rows:
        yield from _mark(row, x, y, y(min(c.limit_bytes or top_bytes, top_bytes)))
    answer = c.largest.batch if c.largest is not None else None
    yield from _labels(c, [(x(r.batch), str(r.batch), r.batch == answer) for r in c.rows], (left + right) / 2)


def _top(c: Comparison, rows: Sequence[Row], last: int) -> float:
    """The top of the scale: the limit belongs into the picture unless everything is far below it."""
    highest = max(float(r.peak_bytes or 0) for r in rows)
    if _shows_needed(rows):
        highest = max(float(r.needed_bytes or 0) for r in rows)
    if c.fit is not None and c.fit.linear:
        highest = max(highest, c.fit.predict(last).bytes)
    if c.limit_bytes is not None and c.limit_bytes < 3 * highest:
        highest = max(highest, c.limit_bytes)
    return max(highest, 1.0) * 1.06


def _shows_needed(rows: Sequence[Row]) -> bool:
    """Whether what counts against the limit is another curve, and one that leaves room for the categories."""
    peak, needed = max(r.peak_bytes or 0 for r in rows), max(r.needed_bytes or 0 for r in rows)
    return 1.02 * peak < needed < 3 * peak


def _areas(rows: Sequence[Row], x: Scale, y: Scale) -> Iterable[str]:
    """Stacked from the ground up; each area reaches down to the ground and the next lower one covers it."""
    drawn = [r for r in rows if r.categories and not r.contaminated]
    if len(drawn) < 2:
        return
    height, paths = [0] * len(drawn), list[str]()
    for category in STACK:
        if not any(r.categories.get(category) for r in drawn):
            continue
        height = [h + r.categories.get(category, 0) for h, r in zip(height, drawn, strict=True)]
        edge = " ".join(f"{x(r.batch):.1f},{y(h):.1f}" for h, r in zip(height, drawn, strict=True))
        ground = f"{x(drawn[-1].batch):.1f},{BOTTOM} {x(drawn[0].batch):.1f},{BOTTOM}"
        paths.append(f'<polygon fill="{COLOURS[category]}" points="{edge} {ground}"/>')
    yield "".join(reversed(paths))


def _line(c: Comparison, x: Scale, y: Scale, last: int) -> Iterable[str]:
    assert c.fit is not None
    end = min(last * 1.04, c.fit.reach)
    a, b = (f"{x(batch):.1f},{y(max(0, c.fit.predict(batch).bytes)):.1f}" for batch in (0, end))
    yield f'<path d="M{a} L{b}" stroke="currentColor" stroke-dasharray="2 3" fill="none"/>'


def _mark(row: Row, x: Scale, y: Scale, limit_y: float) -> Iterable[str]:
    """A dot where it was measured, a ring where it was confirmed, a circle where it is predicted, a cross for no memory."""
    at = x(row.batch)
    if row.peak_bytes is None:
        yield (
            f'<path d="M{at - 4:.1f} {limit_y - 4:.1f}l8 8m0 -8l-8 8" stroke="{LIMIT_COLOUR}" stroke-width="2"/>'
            + _words(at, limit_y - 9, "OOM", "middle")
        )
        return
    hollow = row.status in ("predicted", "verified")
    fill, size = ("none", 4.5) if hollow else ("currentColor", 2.5)
    yield f'<circle cx="{at:.1f}" cy="{y(row.peak_bytes):.1f}" r="{size}" fill="{fill}" stroke="currentColor" stroke-width="1.5"/>'
    if row.status == "verified":
        yield f'<circle cx="{at:.1f}" cy="{y(row.peak_bytes):.1f}" r="1.5"/>'


# -- speed ---------------------------------------------------------------------------------------------------------------


def _speed(c: Comparison) -> Iterable[str]:
    left, right = SPEED
    points = [(r, r.samples_per_s) for r in c.rows if r.samples_per_s is not None]
    if not points:
        return
    yield _words(left, TOP - 14, "samples/s", "start", bold=True)
    if len({r.batch for r, _ in points}) < 2:
        yield _words(left, (TOP + BOTTOM) / 2, "timed at one size only", "start")
        return
    first, last = points[0][0].batch, points[-1][0].batch
    best = max(value for _, value in points)
    # Sizes that double stand equally far apart.
    x: Scale = lambda batch: left + (right - left) * math.log(batch / first) / math.log(last / first)  # noqa: E731
    y: Scale = lambda value: BOTTOM - (BOTTOM - TOP) * value / (best * 1.12)  # noqa: E731
    for tick in _round_ticks(best):
        yield _rule(left, right, y(tick))
        yield _words(left - 6, y(tick) + 4, speed(tick), "end")
    if c.of_samples:  # else there is no knee
        yield _rule(left, right, y(0.95 * best), KNEE_COLOUR, 0.9, "2 3")
        yield _words_beside(
            [(x(r.batch), y(value)) for r, value in points], left, right, y(0.95 * best), "95 % of the best"
        )
    knee_is_left = c.knee is not None and x(c.knee) < (left + right) / 2
    path = " L".join(f"{x(r.batch):.1f} {y(value):.1f}" for r, value in points)
    yield f'<path d="M{path}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    for row, value in points:
        knee = row.batch == c.knee
        look = f'r="5" fill="none" stroke="{KNEE_COLOUR}" stroke-width="2.5"' if knee else 'r="2.5"'
        yield f'<circle cx="{x(row.batch):.1f}" cy="{y(value):.1f}" {look}/>'
        if knee:
            anchor = "start" if knee_is_left else "end"
            yield _words(x(row.batch), y(value) - 10, f"knee {row.batch}", anchor, bold=True)
    yield from _labels(c, [(x(r.batch), str(r.batch), r.batch == c.knee) for r, _ in points], (left + right) / 2)


def _round_ticks(highest: float, about: int = 4) -> list[float]:
    power = 10.0 ** math.floor(math.log10(highest / about))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= highest / about)
    return [i * step for i in range(int(highest / step) + 1)]


# -- pieces --------------------------------------------------------------------------------------------------------------


def _labels(c: Comparison, ticks: Sequence[tuple[float, str, bool]], middle: float) -> Iterable[str]:
    """Sizes below the axis: the important ones first, the others where there is room."""
    taken: list[tuple[float, float]] = []
    for at, label, important in sorted(ticks, key=lambda t: (not t[2], -t[0])):
        half = 3.6 * len(label) + 3
        if all(at + half <= a or at - half >= b for a, b in taken):
            taken.append((at - half, at + half))
            yield _words(at, BOTTOM + 15, label, "middle", bold=important)
    yield _words(middle, BOTTOM + 32, "batch size" if c.of_samples else escape(c.name), "middle")


def _rule(
    left: float, right: float, y: float, colour: str = "currentColor", opacity: float = 0.2, dash: str = ""
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{left} {y:.1f}H{right}" stroke="{colour}" opacity="{opacity}"{dashes}/>'


def _words_beside(curve: Sequence[tuple[float, float]], left: float, right: float, y: float, text: str) -> str:
    """``text`` at the end of the rule at ``y``, above or below it, where the curve is furthest from it."""
    wide = 6.2 * len(text)

    def room(begin: float, middle: float) -> float:
        inside = [at for i in range(9) if (at := _height(curve, begin + wide * i / 8)) is not None]
        return min((abs(at - middle) for at in inside), default=math.inf)

    ends = ((left, "start", left), (right, "end", right - wide))
    places = [(room(begin, y + dy - 4), x, y + dy, anchor) for dy in (-5, 14) for x, anchor, begin in ends]
    _, x, baseline, anchor = max(places, key=lambda place: min(place[0], 20))  # the first that is far enough
    return _words(x, baseline, text, anchor)


def _height(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """Where the curve through these points is at ``x``."""
    for (a, top), (b, bottom) in itertools.pairwise(curve):
        if a <= x <= b:
            return top + (bottom - top) * (x - a) / (b - a)
    return None


def _words(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    """``text`` is made of figures and our own words, or escaped."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{text}</text>'

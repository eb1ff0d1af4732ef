"""The timeline as SVG: a `Report` comes in, one picture goes out that is also the payload of the interactive one.

The same string is shown as an image (sanitized notebooks), stands in exported pages, and is taken over by
`assets/report.js`, which reads the figures from its ``metadata``. No ``defs``, no ``url()``, no ids. Text and axes are
``currentColor``: ink on paper of its own inside an image, the page's own colour once the script has put the picture into
the page. What belongs to an instant and stands outside the plot has class ``t``: the script moves it when it zooms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ipyvram.render.axes import byte_ticks, round_bytes, second_ticks
from ipyvram.render.markup import escape
from ipyvram.render.palette import COLOURS, LIMIT_COLOUR, PAPER
from ipyvram.render.payload import payload
from ipyvram.render.scene import (
    HEIGHT,
    LEFT,
    PLOT_H,
    PLOT_W,
    SAMPLED_LABELS,
    TOP,
    WIDTH,
    Curve,
    Scene,
    columns,
    make_scene,
    step_starts,
)  # fmt: skip
from ipyvram.report import Report
from ipyvram.report_rows import LABELS, Phase
from ipyvram.units import format_bytes, format_duration

DASHES = {"reserved": "6 3", "device_used": "2 3", "process_rss": ""}
_DASH_WORDS = {"reserved": "dashed", "device_used": "dotted"}
_LINE_H = 13  # of text
_PHASE_OPACITY = {"backward": 0.09, "optimizer": 0.2}
#: For the script: what it draws a zoom and the cursor with.
_MARKS = '<path opacity=".25"/><path class="l" stroke="currentColor"/>'
_SHORT = {"forward": "fwd", "backward": "bwd", "optimizer": "opt"}


def timeline(report: Report) -> tuple[str, str]:
    """The picture, and the line of words that stands below it; two empty strings where there is nothing to draw."""
    if not _anything(report):
        return "", ""
    scene = make_scene(report)
    plot = [*_shading(report, scene), *_grid(scene), *_areas(scene), *_lines(scene), _MARKS]
    around = [
        *_byte_labels(scene), *_line_labels(scene), *_time_labels(scene), *_steps(report, scene), *_peak(report, scene),
    ]  # fmt: skip
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'style="{PAPER}" fill="currentColor" font-family="system-ui,sans-serif" font-size="11">'
        f"<metadata>{payload(report, scene)}</metadata>"
        f'<svg class="g" x="{LEFT}" y="{TOP}" width="{PLOT_W}" height="{PLOT_H}" viewBox="0 0 {PLOT_W} {PLOT_H}" '
        f'preserveAspectRatio="none">{"".join(plot)}</svg>{"".join(around)}</svg>'
    )
    return svg, legend(scene)


def _anything(report: Report) -> bool:
    """Whether memory of the device was in use: the process's own, with no tensor below it, tells nothing."""
    data = report.timeline_data
    sampled = (
        max((n or 0 for n in column), default=0) for name, column in data.sampled.items() if name != "process_rss"
    )
    return bool(report.peak_bytes and (data.time_s or data.sampled_time_s)) or any(sampled)


def sentence(report: Report) -> str:
    """The picture in words, for ``alt``."""
    data = report.timeline_data
    length = max(data.end_s, data.sampled_time_s[-1] if data.sampled_time_s else 0.0)
    parts = [f"Memory over {format_duration(length)}"]
    if report.steps:
        traced = report.traced_steps or report.steps
        parts.append(f"{traced} traced steps" if traced != 1 else "one traced step")
    when = f" ({report.peak_when})" if report.peak_when else ""
    parts.append(f"peak {format_bytes(report.peak_bytes)} at {format_duration(report.peak_time_s)}{when}")
    largest = sorted(((n, c) for c, n in report.peak.items() if n), reverse=True)[:3]
    if largest:
        parts.append("largest there: " + ", ".join(f"{LABELS[c]} {format_bytes(n)}" for n, c in largest))
    return "; ".join(parts) + "."


def legend(scene: Scene) -> str:
    """What the lines are, and what is out of the picture."""
    drawn = dict.fromkeys(c.name for c in scene.curves)
    words = [f"{SAMPLED_LABELS[n]} {_DASH_WORDS[n]}" for n in drawn if n in _DASH_WORDS]
    if "allocated" in drawn:
        words.append("allocated (sampled) grey")
    if any(c.own_scale for c in scene.curves):
        words.append("right: process memory on a scale of its own")
    if scene.limit_bytes:
        words.append(f"limit {format_bytes(scene.limit_bytes)} pink")
    if any(len(panel.busy) > 1 for panel in scene.panels):
        words.append("time is not to one scale: the steps differ too much")
    if any(panel.idle for panel in scene.panels):
        words.append("the end, where nothing was allocated, is drawn short")
    if scene.untold:
        words.append("off the scale: " + ", ".join(scene.untold))
    return " · ".join(words)


# -- inside the plot -----------------------------------------------------------------------------------------------------


def _shading(report: Report, scene: Scene) -> Iterable[str]:
    for phase in report.phases:
        x, end = scene.x(phase.start_s), scene.x(min(phase.end_s, scene.data.end_s))
        if phase.name in _PHASE_OPACITY and end > x:
            yield f'<rect x="{x}" width="{end - x}" height="{PLOT_H}" opacity="{_PHASE_OPACITY[phase.name]}"/>'


def _grid(scene: Scene) -> Iterable[str]:
    own = any(c.own_scale for c in scene.curves)
    spans = [(round(p.left), round(p.right)) for p in scene.panels if p.traced] if own else [(0, PLOT_W)]
    for tick, (left, right) in itertools.product(byte_ticks(scene.top_bytes), spans):
        yield f'<path d="M{left} {scene.y(tick)}h{right - left}" stroke="currentColor" opacity=".2" shape-rendering="crispEdges"/>'


def _areas(scene: Scene) -> Iterable[str]:
    """Stacked steps. Each area reaches down to the ground and the next lower one covers it: one edge to draw for each."""
    data = scene.data
    if not data.time_s:
        return
    shown = columns([scene.x(t) for t in data.time_s], data.allocated)
    height = [0] * len(shown)
    paths: list[str] = []
    for category, column in data.categories.items():
        height = [h + column[row] for h, (_, row) in zip(height, shown, strict=True)]
        steps = [(x, scene.y(h)) for h, (x, _) in zip(height, shown, strict=True)]
        paths.append(f'<path class="a" fill="{COLOURS[category]}" d="{_area(steps, scene.x(data.end_s))}"/>')
    yield '<g shape-rendering="crispEdges">' + "".join(reversed(paths)) + "</g>"


def _area(steps: Sequence[tuple[int, int]], right: int) -> str:
    return f"M{steps[0][0]} {PLOT_H}" + _risers(steps, PLOT_H, right) + f"V{PLOT_H}z"


def _risers(steps: Sequence[tuple[int, int]], y: int, right: int) -> str:
    """Relative commands along steps at ``(x, y)`` as far as ``right``; what does not change the height is left out."""
    x, parts = steps[0][0], []
    for to_x, to_y in steps:
        if to_y != y:
            if to_x > x:
                parts.append(f"h{to_x - x}")
                x = to_x
            parts.append(f"v{to_y - y}")
            y = to_y
    return "".join(parts) + (f"h{right - x}" if right > x else "")


def _lines(scene: Scene) -> Iterable[str]:
    for curve in scene.curves:
        shown = columns([scene.x(t) for t in curve.time_s], curve.values)
        steps = [(x, scene.y(curve.values[row], curve.own_scale)) for x, row in shown]
        yield _line(curve, steps, max(scene.x(curve.end_s), steps[-1][0]))
    if scene.limit_bytes:
        y = scene.y(scene.limit_bytes)
        yield f'<path class="l" d="M0 {y}h{PLOT_W}" stroke="{LIMIT_COLOUR}" stroke-width="1.5"/>'


def _line(curve: Curve, steps: Sequence[tuple[int, int]], right: int) -> str:
    if curve.name == "allocated":
        return f'<path d="{_area(steps, right)}" opacity=".4" shape-rendering="crispEdges"/>'
    dash = f' stroke-dasharray="{DASHES[curve.name]}"' if DASHES[curve.name] else ""
    x, y = steps[0]
    d = f"M{x} {y}{_risers(steps, y, right)}"
    return f'<path class="l" d="{d}" fill="none" stroke="currentColor" stroke-width="1.5"{dash}/>'


# -- around it -----------------------------------------------------------------------------------------------------------


def _text(x: float, y: float, text: str, anchor: str = "", extra: str = "") -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{round(x)}" y="{round(y)}"{where}{extra}>{escape(text)}</text>'


def _byte_labels(scene: Scene) -> Iterable[str]:
    for tick in byte_ticks(scene.top_bytes):
        yield _text(LEFT - 8, TOP + scene.y(tick) + 4, round_bytes(tick), "end")
    for curve in scene.curves:
        if curve.own_scale:
            high = max(curve.values)
            x, y = LEFT + scene.x(curve.end_s), TOP + scene.y(high, True) - 6
            yield _text(x, y, f"{SAMPLED_LABELS[curve.name]}, up to {format_bytes(high)}", "end")


def _line_labels(scene: Scene) -> Iterable[str]:
    """The dashed and dotted lines named where they end, and the limit where it begins; where there is room."""
    ends = {c.name: (scene.x(c.end_s), scene.y(c.values[-1])) for c in scene.curves if c.name in _DASH_WORDS}
    above = -_LINE_H
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        if y - above >= _LINE_H:
            yield _text(LEFT + x - 2, TOP + y - 4, SAMPLED_LABELS[name], "end", ' class="t"')
            above = y
    if scene.limit_bytes:
        yield _text(LEFT + 4, TOP + scene.y(scene.limit_bytes) - 4, f"limit {format_bytes(scene.limit_bytes)}")


def _time_labels(scene: Scene) -> Iterable[str]:
    taken = -100.0
    for second in _time_ticks(scene):
        x = LEFT + scene.axis(second)
        if x - taken >= 64 and x <= WIDTH - 24:
            label = format_duration(second) if second else "0"
            yield _text(x, HEIGHT - 8, label, "middle" if second else "", ' class="t"')
            taken = x


def _time_ticks(scene: Scene) -> Iterable[float]:
    for panel in scene.panels:
        about = max(1, round((panel.right - panel.left) / 150))
        if len(panel.busy) == 1:
            yield from second_ticks(panel.start, panel.busy[0].end, about)
        else:
            yield from (piece.start for piece in panel.busy)
        if panel.idle:
            yield panel.busy[-1].end


def _steps(report: Report, scene: Scene) -> Iterable[str]:
    taken = -100.0
    for step, start in step_starts(report).items():
        x = LEFT + scene.x(start)
        yield f'<path class="t" d="M{x} {TOP - 8}v{PLOT_H + 8}" stroke="currentColor" opacity=".45"/>'
        if x - taken > 52:
            yield _text(x + 4, 11, f"step {step}", "", ' font-weight="600" class="t"')
            taken = x
    for phase in report.phases:
        yield from _phase_label(phase, scene)
    for panel in scene.panels:
        if not panel.traced and panel.right - panel.left > 60:
            # Steps may begin there, phases do not.
            yield _text(LEFT + panel.left + 4, 26, "sampled only", "", ' class="t"')


def _phase_label(phase: Phase, scene: Scene) -> Iterable[str]:
    x, end = scene.axis(phase.start_s), scene.axis(min(phase.end_s, scene.data.end_s))
    label = phase.name if end - x > 58 else _SHORT.get(phase.name, "") if end - x > 26 else ""
    if label:
        yield _text(LEFT + (x + end) / 2, 26, label, "middle", ' class="t"')


def _peak(report: Report, scene: Scene) -> Iterable[str]:
    """The peak marked and named; from the samples where they saw more than the trace."""
    second, label = report.peak_time_s, f"peak {format_bytes(report.peak_bytes)}"
    sampled = report.timeline_data.sampled.get("allocated", ())
    if report.provenance.get("peak") == "sampled":
        if not any(sampled):
            return
        second = report.timeline_data.sampled_time_s[max(range(len(sampled)), key=lambda i: sampled[i] or 0)]
        label += " (sampled)"
    elif not report.peak_bytes or not scene.data.time_s:
        return
    x, y = LEFT + scene.x(second), TOP + scene.y(report.peak_bytes)
    half = 4 * len(label)
    at = min(max(x, LEFT + half), WIDTH - half)
    yield f'<path class="t" d="M{x} {TOP - 3}V{y - 4}" stroke="currentColor" opacity=".7"/>'
    yield f'<circle class="t" cx="{x}" cy="{y}" r="4" fill="none" stroke="currentColor" stroke-width="1.8"/>'
    yield _text(at, TOP - 7, label, "middle", ' font-weight="700" class="t"')

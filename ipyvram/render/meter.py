"""The live meter's words and bar: pulses come in one after another, a line of text or a piece of HTML goes out.

Knows neither threads nor IPython; `render.live` shows what it says.
"""

from __future__ import annotations

import itertools
from collections import deque

from ipyvram.pulse import Pulse
from ipyvram.render.markup import MUTED, Part, clean, escape, stacked_bar, style
from ipyvram.render.palette import CARD_COLOURS, COLOURS
from ipyvram.report import LABELS
from ipyvram.units import format_bytes, format_duration

HISTORY_S = 60.0  # what the sparkline shows
TREND_S = 30.0  # over which growth is judged
RATE_S = 10.0  # over which steps are counted
SPARK = "▁▂▃▄▅▆▇█"
SPARK_ASCII = "_.:-=+*#"
SPARK_CELLS = 24
SPARK_LEAST = 0.02  # of the highest: what moves less is drawn flat
LIMIT_COLOUR = "#da3cb7"
_SOON_S = 24 * 3600.0  # a limit farther off than a day is no news


class Meter:
    """Remembers the last minute of pulses."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, float, int]] = deque()  # (elapsed seconds, bytes, steps)
        self._pulse: Pulse | None = None
        self.peak_bytes = 0.0

    def feed(self, pulse: Pulse) -> None:
        """Take in a new pulse."""
        self._pulse = pulse
        used = in_use(pulse)
        self.peak_bytes = max(self.peak_bytes, used)
        self._past.append((pulse.elapsed_s, used, pulse.steps))
        while self._past and self._past[0][0] < pulse.elapsed_s - HISTORY_S:
            self._past.popleft()

    def words(self) -> list[str]:
        """Current and peak, step and rate, time left to the limit: one fact an item; empty before the first pulse."""
        p = self._pulse
        if p is None:
            return []
        used = in_use(p)
        card = f" of {format_bytes(p.card_bytes)}" if p.card_bytes else ""
        what = "" if "allocated" in p.figures else "process "
        facts = [format_duration(int(p.elapsed_s)), f"{p.device} {what}{format_bytes(used)}{card}"]
        facts.append(f"peak {format_bytes(self.peak_bytes)}")
        if p.steps:
            rate = self.rate()
            facts.append(f"step {p.steps:,}" + (f", {rate:.3g} a second" if rate else ""))
        left = self.seconds_left()
        if left is not None:
            facts.append(f"{format_duration(round(left))} to the limit")
        return facts

    def rate(self) -> float:
        """Steps a second, of late; 0 where none were made."""
        recent = [row for row in self._past if row[0] >= self._past[-1][0] - RATE_S]
        span = recent[-1][0] - recent[0][0] if recent else 0.0
        return (recent[-1][2] - recent[0][2]) / span if span > 0 else 0.0

    def seconds_left(self) -> float | None:
        """Until memory reaches the limit if it goes on growing as it does; None where it does not grow steadily."""
        p = self._pulse
        if p is None or p.limit_bytes is None:
            return None
        recent = [(t, used) for t, used, _ in self._past if t >= p.elapsed_s - TREND_S]
        if len(recent) < 8 or recent[-1][0] - recent[0][0] < 5:
            return None
        lows = _lows(recent)
        slope = _slope(lows)
        left = (p.limit_bytes - taken(p)) / slope if slope > 0 else -1.0
        grown = lows[-1][1] - lows[0][1]
        steady = all(b >= a for (_, a), (_, b) in itertools.pairwise(lows))
        return left if steady and grown > 0.01 * p.limit_bytes and 0 < left < _SOON_S else None

    def spark(self, unicode: bool = True) -> str:
        """The last minute as a row of bars from its lowest to its highest; flat where it hardly moves."""
        if not self._past:
            return ""
        end = max(self._past[-1][0], HISTORY_S)
        cells = [0.0] * SPARK_CELLS
        for t, used, _ in self._past:
            at = min(SPARK_CELLS - 1, int((t - (end - HISTORY_S)) / HISTORY_S * SPARK_CELLS))
            cells[at] = max(cells[at], used)
        high, low = max(cells), min((c for c in cells if c), default=0.0)
        signs = SPARK if unicode else SPARK_ASCII
        span = high - low
        flat = span < SPARK_LEAST * high
        return "".join((signs[3] if flat else signs[round((c - low) / span * 7)]) if c else " " for c in cells).strip()

    def line(self, width: int, unicode: bool = True) -> str:
        """Everything on one line of at most ``width`` columns."""
        words = self.words()
        if not words:
            return ""
        assert self._pulse is not None
        name = [clean(self._pulse.label)] if self._pulse.label else []
        text = (" · " if unicode else " - ").join([*name, *words])
        spark = self.spark(unicode)
        if len(text) + len(spark) + 2 <= width:
            text = f"{text}  {spark}"
        text = text if unicode else text.encode("ascii", "replace").decode()
        return text[:width]

    def html(self) -> str:
        """The bar of the card and the facts; empty before the first pulse."""
        p = self._pulse
        if p is None:
            return ""
        name = f"<strong>{escape(p.label)}</strong> · " if p.label else ""
        facts = " · ".join(map(escape, self.words()))
        spark = f'<span{style("letter-spacing:-1px", "margin-left:10px")} title="the last minute">{self.spark()}</span>'
        look = style("font:12px/1.5 system-ui,sans-serif", "color:inherit", "max-width:880px")
        return f"<div{look}>{_bar(p)}<div{style(MUTED, 'white-space:nowrap', 'overflow:hidden')}>{name}{facts}{spark}</div></div>"

    def text(self) -> str:
        """The plain form of `html`."""
        return self.line(200)


def in_use(pulse: Pulse) -> float:
    """Bytes the cell is judged by: allocated by torch where it counts them, else the process's memory."""
    figures = pulse.figures
    return figures.get("allocated", figures.get("process_rss", 0.0))


def taken(pulse: Pulse) -> float:
    """Bytes of the card that are not the cell's to give back: tensors, the context, other processes."""
    figures = pulse.figures
    allocated = figures.get("allocated", 0.0)
    beside = figures.get("device_used", 0.0) - figures.get("reserved", 0.0)
    return allocated + max(0.0, beside)


def _bar(pulse: Pulse) -> str:
    if not pulse.card_bytes or "allocated" not in pulse.figures:
        return ""
    figures = pulse.figures
    allocated = figures["allocated"]
    cache = max(0.0, figures.get("reserved", allocated) - allocated)
    beside = max(0.0, taken(pulse) - allocated)
    parts = [
        *_tensors(pulse, allocated),
        Part("Cache", CARD_COLOURS["cache"], cache, format_bytes(cache)),
        Part("Context and other processes", CARD_COLOURS["other_processes"], beside, format_bytes(beside)),
    ]
    bar = stacked_bar(parts, pulse.card_bytes, height_px=8)
    if not pulse.limit_bytes or pulse.limit_bytes >= pulse.card_bytes:
        return bar
    left = 100 * pulse.limit_bytes / pulse.card_bytes
    look = style("height:3px", f"margin-left:{left:.1f}%", f"border-left:2px solid {LIMIT_COLOUR}")
    return f'{bar}<div{look} title="limit {escape(format_bytes(pulse.limit_bytes))}"></div>'


def _tensors(pulse: Pulse, allocated: float) -> list[Part]:
    """What is allocated: by category as far as that is known while the cell runs, the rest as one."""
    known = [Part(LABELS[c], COLOURS[c], size, format_bytes(size)) for c, size in pulse.held.items()]
    rest = allocated - sum(part.size for part in known)
    if rest < 0:  # a model that was let go since
        known, rest = [], allocated
    name = "Activations and other tensors" if known else "Tensors"
    return [*known, Part(name, COLOURS["activations"], rest, format_bytes(rest))]


def _lows(recent: list[tuple[float, float]], parts: int = 6) -> list[tuple[float, float]]:
    """The lowest of each stretch: what a training step takes and gives back is no growth."""
    size = max(1, len(recent) // parts)
    stretches = [recent[i : i + size] for i in range(0, size * (len(recent) // size), size)]
    return [min(stretch, key=lambda row: row[1]) for stretch in stretches]


def _slope(rows: list[tuple[float, float]]) -> float:
    """Bytes a second of the straight line through rows, by least squares."""
    mean_t = sum(t for t, _ in rows) / len(rows)
    mean_v = sum(v for _, v in rows) / len(rows)
    spread = sum((t - mean_t) ** 2 for t, _ in rows)
    return sum((t - mean_t) * (v - mean_v) for t, v in rows) / spread if spread else 0.0

"""What the live meter says: pulses come in one after another, facts and a line of text go out.

Knows neither threads nor IPython; `render.meter_html` draws it and `render.live` shows it.
"""

from __future__ import annotations

import itertools
from collections import deque

from ipyvram.pulse import Pulse
from ipyvram.render.columns import display_width
from ipyvram.render.markup import clean
from ipyvram.units import format_bytes, format_duration

HISTORY_S = 60.0  # what the sparkline shows
TREND_S = 30.0  # over which growth is judged
RATE_S = 10.0  # over which steps are counted
SPARK = "▁▂▃▄▅▆▇█"
SPARK_ASCII = "_.:-=+*#"
SPARK_CELLS = 24
SPARK_LEAST = 0.02  # of the highest: what moves less is drawn flat
LABEL_LENGTH = 40  # of a label that is longer, the beginning
SHORT_LABEL = 16
#: What a narrow line does without, from the first on; a label is shortened before it goes.
LEAST_FIRST = ("label", "time", "label", "step", "peak", "left", "memory")
_SOON_S = 24 * 3600.0  # a limit farther off than a day is no news


class Meter:
    """Remembers the last minute of pulses."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, float, int]] = deque()  # (elapsed seconds, bytes, steps)
        self._pulse: Pulse | None = None
        self._facts: dict[str, str] | None = None  # of the newest pulse, once they were asked for
        self.peak_bytes = 0.0

    def feed(self, pulse: Pulse) -> None:
        """Take in a new pulse."""
        self._pulse, self._facts = pulse, None
        used = in_use(pulse)
        self.peak_bytes = max(self.peak_bytes, used)
        self._past.append((pulse.elapsed_s, used, pulse.steps))
        while self._past and self._past[0][0] < pulse.elapsed_s - HISTORY_S:
            self._past.popleft()

    def facts(self) -> dict[str, str]:
        """Name → words, in the order of display; empty before the first pulse, and without what is not known.

        ``label``, ``time``, ``memory``, ``peak``, ``left`` (until the limit), ``step``.
        """
        if self._facts is None:
            self._facts = {} if self._pulse is None else self._words(self._pulse)
        return dict(self._facts)

    def _words(self, p: Pulse) -> dict[str, str]:
        used = in_use(p)
        card = f" of {format_bytes(p.card_bytes)}" if p.card_bytes else ""
        what = "" if "allocated" in p.figures else "process "
        left = self.seconds_left()
        facts = {
            "label": _shortened(clean(p.label or ""), LABEL_LENGTH),
            "time": whole_seconds(p.elapsed_s),
            "memory": f"{p.device} {what}{format_bytes(used)}{card}",
            "peak": f"peak {format_bytes(self.peak_bytes)}",
            "left": "" if left is None else f"{whole_seconds(left)} to the limit",
            "step": f"step {p.steps:,}{_pace(self.rate())}" if p.steps else "",
        }
        return {name: words for name, words in facts.items() if words}

    @property
    def pulse(self) -> Pulse | None:
        """The newest."""
        return self._pulse

    @property
    def past(self) -> list[tuple[float, float]]:
        """Seconds since the cell began, and bytes, of the last minute."""
        return [(t, used) for t, used, _ in self._past]

    def rate(self) -> float:
        """Steps a second, of late, from the end of one to the end of another; 0 where that is not known or none ends any more."""
        ends = [(t, n) for (_, _, before), (t, _, n) in itertools.pairwise(self._past) if n > before]
        late = [end for end in ends if end[0] >= ends[-1][0] - RATE_S] if ends else []
        if len(late) < 2:
            late = ends[-2:]  # slow steps
        if len(late) < 2:
            return 0.0
        rate = (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0])
        return rate if self._past[-1][0] - late[-1][0] < max(RATE_S, 3 / rate) else 0.0

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
        """As much as fits on one line of at most ``width`` columns: whole facts, the last of `LEAST_FIRST` the longest."""
        facts, between = self.facts(), " · " if unicode else " - "
        if not unicode:
            facts = {
                name: words.replace("…", "...").encode("ascii", "replace").decode() for name, words in facts.items()
            }
        for name in LEAST_FIRST:
            if display_width(between.join(facts.values())) <= width:
                break
            if name == "label" and len(facts.get("label", "")) > SHORT_LABEL:
                facts["label"] = _shortened(facts["label"], SHORT_LABEL, "…" if unicode else "...")
            else:
                facts.pop(name, None)
        text = between.join(facts.values())
        spark = self.spark(unicode)
        return f"{text}  {spark}" if text and display_width(text) + len(spark) + 2 <= width else text

    def text(self) -> str:
        """The plain form of `html`."""
        return self.line(200)


def in_use(pulse: Pulse) -> float:
    """Bytes the cell is judged by: allocated by torch where it counts them, else the process's memory."""
    figures = pulse.figures
    return figures.get("allocated", figures.get("process_rss", 0.0))


def taken(pulse: Pulse) -> float:
    """Bytes that are not the cell's to give back: tensors, the context, other processes; off the GPU the process's memory."""
    figures = pulse.figures
    beside = figures.get("device_used", 0.0) - figures.get("reserved", 0.0)
    return in_use(pulse) + max(0.0, beside)


def whole_seconds(seconds: float) -> str:
    """``7 s``, ``1 min 07 s``: what changes a few times a second is not told more exactly."""
    whole = round(seconds)
    return (
        f"{whole} s"
        if whole < 60
        else format_duration(max(whole, 100))
        if whole >= 100
        else f"1 min {whole - 60:02d} s"
    )


def _pace(rate: float) -> str:
    if not rate:
        return ""
    return f", {rate:.3g}/s" if rate >= 1 else f", {format_duration(1 / rate)} each"


def _shortened(words: str, length: int, dots: str = "…") -> str:
    return words if len(words) <= length else words[: length - len(dots)].rstrip() + dots


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

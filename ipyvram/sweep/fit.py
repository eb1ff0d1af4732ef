"""Peak bytes measured at a few batch sizes come in; a line through them, and whether it is one, come out. Pure.

Ordinary least squares on each category: the sums of the categories' lines are the line of the peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: Slopes of neighbouring stretches that differ by more are no line; the smallest size goes first when it is to blame.
MAX_SLOPE_CHANGE = 0.25
#: A line may miss no point by more than this share of it.
MAX_RESIDUAL = 0.05
#: How far the middle of three sizes must lie off the line through the outer two, as a share of the peak, to count as a
#: bend: allocators round blocks up, and between two close sizes that alone makes a slope.
FLAT = 0.02
#: No figure is given for sizes beyond this multiple of the largest measured one.
MAX_EXTRAPOLATION = 2

#: Student's t, 97.5 %, for 1 to 10 degrees of freedom (any table of the distribution).
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Point(NamedTuple):
    """What one trial came to: the batch that was seen and the peak by category, in bytes."""

    batch: int
    categories: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.categories.values())


class Prediction(NamedTuple):
    """Bytes at a size, and the range they are expected in (None where two points leave nothing to estimate it from)."""

    bytes: int
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """``fixed + per_sample × batch``, and what is to be thought of it.

    Attributes
    ----------
    fixed_bytes, per_sample_bytes : float
    categories : dict of str to (float, float)
        Category → its own fixed bytes and bytes per sample.
    residual : float
        The largest miss, as a share of the measured peak.
    linear : bool
        Whether it may be used for sizes that were not measured; ``reason`` says why not.
    batches, peaks : tuple of int
        The points it went through; ``dropped`` are smaller sizes that it left out.
    of_samples : bool
        Whether the size is a number of samples.
    """

    fixed_bytes: float
    per_sample_bytes: float
    categories: dict[str, tuple[float, float]] = field(default_factory=dict)
    residual: float = 0.0
    linear: bool = True
    reason: str = ""
    batches: tuple[int, ...] = ()
    peaks: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    of_samples: bool = True

    def predict(self, batch: float) -> Prediction:
        """Peak bytes at a size: 95 % prediction interval from 4 points on, the range of the secants below."""
        middle = self.fixed_bytes + self.per_sample_bytes * batch
        n = len(self.batches)
        if n >= 4:
            half = _half_width(self, batch)
            return Prediction(round(middle), round(middle - half), round(middle + half))
        if n == 3:
            ends = [middle, *(line(batch) for line in _secants(self.batches, self.peaks))]
            return Prediction(round(middle), math.floor(min(ends)), math.ceil(max(ends)))
        return Prediction(round(middle))

    def largest(self, budget_bytes: float) -> float:
        """The batch (not whole) whose peak is ``budget_bytes``; infinite where the peak does not grow."""
        if self.per_sample_bytes <= 0:
            return math.inf if self.fixed_bytes <= budget_bytes else 0.0
        return (budget_bytes - self.fixed_bytes) / self.per_sample_bytes

    @property
    def reach(self) -> int:
        """The largest size it gives a figure for."""
        return MAX_EXTRAPOLATION * max(self.batches) if self.linear and self.of_samples else max(self.batches)


def fit(points: Iterable[Point], of_samples: bool = True) -> Fit | None:
    """The line through the points; None with fewer than two sizes.

    Memory is a straight line in the samples of a batch for a reason. In another size (an image's side) it need not be one: there
    two points are not taken for a line, and nothing is said beyond the last.

    Small sizes go when their stretch bends off the next one by more than `MAX_SLOPE_CHANGE` (there the peak is another
    moment of the step), as long as three remain to test the line with.
    """
    unique = {p.batch: p for p in sorted(points, key=lambda p: (p.batch, p.bytes))}
    used, dropped = list(unique.values()), list[int]()
    if len(used) < 2:
        return None
    while len(used) > 3 and _bends(*used[:3]):
        dropped.append(used.pop(0).batch)
    batches, peaks = tuple(p.batch for p in used), tuple(p.bytes for p in used)
    fixed, slope = line_through(batches, peaks)
    names = dict.fromkeys(name for p in used for name in p.categories)
    lines = {name: line_through(batches, [p.categories.get(name, 0) for p in used]) for name in names}
    residual = max(abs(y - fixed - slope * x) / y for x, y in zip(batches, peaks, strict=True) if y)
    reason = _objection(used, residual, fixed, of_samples)
    return Fit(fixed, slope, lines, residual, not reason, reason, batches, peaks, tuple(dropped), of_samples)


def line_through(batches: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line."""
    n = len(batches)
    centre, level = sum(batches) / n, sum(values) / n
    spread = sum((x - centre) ** 2 for x in batches)
    slope = sum((x - centre) * (y - level) for x, y in zip(batches, values, strict=True)) / spread
    return level - slope * centre, slope


def _objection(points: list[Point], residual: float, fixed: float, of_samples: bool) -> str:
    """Why the points are no line; empty when they may be one.

    Close sizes look straight on any curve, but where memory grows faster than the batch their line meets zero early.
    """
    if not of_samples and len(points) < 3:
        return "two sizes do not show whether it is"
    if fixed < -MAX_RESIDUAL * points[0].bytes:
        it, none = ("the batch", "an empty batch") if of_samples else ("the size", "a size of 0")
        return f"memory grows faster than {it} (by the line through these sizes {none} would give some back)"
    if residual > MAX_RESIDUAL:
        return f"a line misses a size by {residual:.0%}".replace("%", " %")
    for a, b, c in zip(points, points[1:], points[2:], strict=False):
        if _bends(a, b, c):
            before, after = _slope(a, b), _slope(b, c)
            times = f"{after / before:.1f} times the" if before > 0 < after else "not the"
            one = "a sample" if of_samples else "one more"
            return f"from {b.batch} to {c.batch} {one} costs {times} bytes it costs from {a.batch} to {b.batch}"
    return ""


def _bends(a: Point, b: Point, c: Point) -> bool:
    before, after = _slope(a, b), _slope(b, c)
    difference = abs(after - before)
    miss = difference * (b.batch - a.batch) * (c.batch - b.batch) / (c.batch - a.batch)
    return miss > FLAT * c.bytes and difference > MAX_SLOPE_CHANGE * abs(after)


def _slope(a: Point, b: Point) -> float:
    return (b.bytes - a.bytes) / (b.batch - a.batch)


class _Line(NamedTuple):
    fixed: float
    slope: float

    def __call__(self, batch: float) -> float:
        return self.fixed + self.slope * batch


def _secants(batches: Sequence[int], peaks: Sequence[int]) -> list[_Line]:
    points = list(zip(batches, peaks, strict=True))
    return [_Line(*line_through((a, b), (x, y))) for i, (a, x) in enumerate(points) for b, y in points[i + 1 :]]


def _half_width(fit: Fit, batch: float) -> float:
    n = len(fit.batches)
    centre = sum(fit.batches) / n
    spread = sum((x - centre) ** 2 for x in fit.batches)
    misses = (y - fit.fixed_bytes - fit.per_sample_bytes * x for x, y in zip(fit.batches, fit.peaks, strict=True))
    deviation = math.sqrt(sum(miss**2 for miss in misses) / (n - 2))
    return _t975(n - 2) * deviation * math.sqrt(1 + 1 / n + (batch - centre) ** 2 / spread)


def _t975(freedom: int) -> float:
    """97.5 % quantile of Student's t (Cornish and Fisher's expansion beyond the table)."""
    if freedom <= len(_T975):
        return _T975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)

"""Scales of the charts: ranges come in, ticks and positions go out."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ipyvram.units import GIB, KIB, MIB, TIB, format_bytes


def byte_ticks(highest: float, about: int = 5) -> list[int]:
    """Round numbers of bytes from 0 to at most ``highest``, ``about`` steps apart: 0, 1 GiB, 2 GiB …"""
    if highest <= 0:
        return [0]
    unit = next((u for u in (TIB, GIB, MIB, KIB) if highest >= u), 1)
    step = _nice(highest / unit / about) * unit
    step = max(1, int(step) if step >= 1 else 1)
    return list(range(0, int(highest) + 1, step))


def round_bytes(tick: int) -> str:
    """A tick as text without the digits that every round number has: ``2 GiB``, ``0.5 GiB``."""
    number, _, unit = format_bytes(tick).partition(" ")
    return f"{float(number):g} {unit}" if tick else "0"


def second_ticks(start: float, end: float, about: int = 5) -> list[float]:
    """Round instants within ``[start, end]`` seconds."""
    if end <= start:
        return [start]
    raw = (end - start) / about
    step = next((s for s in (60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400) if s >= raw), 86400.0)
    if raw < 60:
        step = _nice(raw)
    first = math.ceil(start / step - 1e-9)
    return [k * step for k in range(first, int(end / step + 1e-9) + 1)]


def _nice(raw: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


class Piece(NamedTuple):
    """Seconds ``start`` … ``end`` are drawn from ``left`` to ``right``."""

    start: float
    end: float
    left: float
    right: float


class TimeAxis:
    """Seconds to positions through pieces that each have a scale of their own, in ascending order."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self._ends = [p.end for p in self.pieces]

    def __call__(self, second: float) -> float:
        """Position of a second; seconds beyond the ends are drawn at the ends."""
        p = self.pieces[min(len(self.pieces) - 1, bisect_left(self._ends, second))]
        part = (second - p.start) / (p.end - p.start) if p.end > p.start else 0.0
        return p.left + min(1.0, max(0.0, part)) * (p.right - p.left)


#: Steps that differ more than this in duration are not drawn to one scale.
UNEVEN = 4.0

#: Then a stretch's width grows with this power of its duration: a slow first step no longer hides the others.
_COMPRESSION = 0.3


def spread(bounds: Sequence[float], left: float, right: float) -> list[Piece]:
    """Pieces between ``bounds`` (the start, where steps begin, the end): one scale for all, unless they are too uneven."""
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    steps = [n for n in lengths[1:] if n > 0] or lengths
    if len(lengths) < 2 or max(lengths) <= UNEVEN * min(steps):
        return [Piece(bounds[0], bounds[-1], left, right)]
    weights = [n**_COMPRESSION if n > 0 else 0.0 for n in lengths]
    # What comes before the steps is of least interest.
    weights[0] = min(weights[0], min(n for n in weights[1:] if n > 0) / 2)
    edges = [left + (right - left) * part / sum(weights) for part in itertools.accumulate(weights, initial=0.0)]
    return [
        Piece(a, b, x, y)
        for (a, b), (x, y) in zip(itertools.pairwise(bounds), itertools.pairwise(edges), strict=True)
        if b > a
    ]

"""Long curves and lists come in, short ones go out: no peak, no valley and no byte is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ipyvram.report_rows import GroupRow, TensorRow

if TYPE_CHECKING:
    from ipyvram.report_rows import Timeline

T = TypeVar("T", int, int | None)


def extremes(values: NDArray[np.int64], buckets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the first, last, lowest and highest value of each run of equal ``buckets``, ascending.

    Parameters
    ----------
    values, buckets : array of int, shape (n,)
        ``buckets`` is non-decreasing.
    """
    if len(values) == 0:
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.r_[True, np.diff(buckets) != 0])
    ends = np.r_[starts[1:], len(values)]
    group = np.repeat(np.arange(len(starts)), ends - starts)
    lowest = np.flatnonzero(values == np.minimum.reduceat(values, starts)[group])
    highest = np.flatnonzero(values == np.maximum.reduceat(values, starts)[group])
    first = lowest[np.r_[True, np.diff(group[lowest]) != 0]]  # of several equal ones: the first low, the last high
    last = highest[np.r_[np.diff(group[highest]) != 0, True]]
    return np.unique(np.concatenate([starts, ends - 1, first, last]))


def pick(time: NDArray[np.float64], values: NDArray[np.int64], points: int) -> NDArray[np.int64]:
    """Indices of at most about ``points`` rows that keep every bucket's lowest and highest value, ascending.

    There are three kinds of buckets, equal stretches of the row number, of time, and of the ups and downs: a step of many
    allocations deserves room, a slow phase of few its width, and a rise of some large ones its steps.
    """
    count = len(values)
    if count <= points:
        return np.arange(count)
    number = max(1, points // 12)
    travelled = np.cumsum(np.abs(np.diff(values, prepend=values[0])).astype(np.float64))
    found = [extremes(values, np.arange(count) * number // count)]
    for along in (time - time[0], travelled):
        if along[-1] > 0:
            buckets = np.minimum(along / along[-1] * number, number - 1).astype(np.int64)
            found.append(extremes(values, buckets))
    return np.unique(np.concatenate(found))


def thin_timeline(timeline: Timeline, points: int) -> Timeline:
    """A `Timeline` with at most about ``points`` exact and ``points`` sampled instants; extremes of ``allocated`` stay."""
    exact = pick(np.array(timeline.time_s), np.array(timeline.allocated, np.int64), points)
    leading = next((c for c in ("allocated", "device_used", "process_rss") if c in timeline.sampled), None)
    values = np.array([v or 0 for v in timeline.sampled[leading]], np.int64) if leading else np.empty(0, np.int64)
    sampled = pick(np.array(timeline.sampled_time_s), values, points)

    def take(column: tuple[T, ...], rows: NDArray[np.int64]) -> tuple[T, ...]:
        return tuple(column[i] for i in rows)

    return replace(
        timeline,
        time_s=tuple(timeline.time_s[i] for i in exact),
        categories={name: take(column, exact) for name, column in timeline.categories.items()},
        reserved=take(timeline.reserved, exact) if timeline.reserved else (),
        sampled_time_s=tuple(timeline.sampled_time_s[i] for i in sampled),
        sampled={name: take(column, sampled) for name, column in timeline.sampled.items()},
    )


def merge_tensors(rows: tuple[TensorRow, ...], keep: int) -> tuple[TensorRow, ...]:
    """The ``keep`` first rows, and one row for the rest of each category."""
    if len(rows) <= keep:
        return rows
    rest: dict[str, list[TensorRow]] = {}
    for row in rows[keep:]:
        rest.setdefault(row.category, []).append(row)
    merged = [
        TensorRow(sum(r.bytes for r in group), category, f"{(n := sum(r.count for r in group))} smaller", count=n)
        for category, group in rest.items()
    ]
    return rows[:keep] + tuple(sorted(merged, key=lambda r: -r.bytes))


def merge_groups(rows: tuple[GroupRow, ...], keep: int) -> tuple[GroupRow, ...]:
    """The ``keep`` first rows, and one for the rest."""
    if len(rows) <= keep:
        return rows
    rest, total = rows[keep:], dict[str, int]()
    for row in rest:
        for category, count in row.categories.items():
            total[category] = total.get(category, 0) + count
    return (
        *rows[:keep],
        GroupRow(f"{len(rest)} smaller", sum(r.bytes for r in rest), total, sum(r.count for r in rest)),
    )

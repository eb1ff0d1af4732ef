"""Trials at several sizes come in; the rows, the fit, both answers and what is to be said of them come out. Pure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ipyvram.comparison import Accumulation, Answer, Row, is_short, reached, share_given
from ipyvram.sweep.fit import Fit, Point, fit

if TYPE_CHECKING:
    from ipyvram.sweep.trial import Trial

#: The knee: the smallest size whose speed is at least this share of the best.
KNEE_SHARE = 0.95

#: Names by which a size in dim 1 of the input is the batch; else it is a length or a width.
_BATCH = re.compile(r"batch|samples|(^|_)bs(_|\d|$)|^[bn]$", re.IGNORECASE)

#: What is said of a size of which the data made no batch.
STARVED = "the model was given nothing: the data have no more"


def batch_axis(trials: Sequence[Trial], name: str) -> int | None:
    """Which dimension of the model's input is the batch; None where the size ``name`` is no number of samples.

    It is dim 0 if that changes. If not, it is dim 1 where that is the size (time first) and the name speaks of a batch; else,
    where a dimension goes with the size or the parameters do, the size is an image's side, a sequence's length, a layer's width.
    """
    ran = [t for t in trials if t.shape and not t.out_of_memory]
    if len({t.size for t in ran}) < 2 or len({t.shape[0] for t in ran}) > 1:
        return 0
    if names_a_batch(name) and all(len(t.shape) > 1 and t.shape[1] == t.size for t in ran):
        return 1
    return None if _is_another_size(ran) else 0


def names_a_batch(name: str) -> bool:
    """Whether a size of this name is that of a batch, as far as a name tells."""
    return _BATCH.search(name) is not None


def _is_another_size(ran: Sequence[Trial]) -> bool:
    """Whether a dimension is the size plus a constant, or a constant times it or its square; or the parameters grow with it."""
    for sizes in zip(*(t.shape[1:] for t in ran), strict=False):
        pairs = [(given, t.size) for given, t in zip(sizes, ran, strict=True)]
        ways = ([g - size for g, size in pairs], [g / size for g, size in pairs], [g / size**2 for g, size in pairs])
        if any(math.isclose(min(way), max(way)) for way in ways):
            return True
    parameters = {t.size: t.categories.get("parameters", 0) for t in ran}
    return all(parameters[a] < parameters[b] for a, b in itertools.pairwise(sorted(parameters)))


def seen(trial: Trial, axis: int | None) -> int | None:
    """The batch that the model was given; None where no module was called, or the size is none of samples."""
    return trial.shape[axis] if axis is not None and len(trial.shape) > axis else None


def clipped(trial: Trial, trials: Sequence[Trial], axis: int | None) -> bool:
    """Whether the data had fewer samples than this size asks for. One trial alone does not tell data from program."""
    alone = len(trials) < 2
    ran = [(t.size, seen(t, axis)) for t in trials if not t.out_of_memory]
    return not (alone or trial.out_of_memory) and is_short(trial.size, seen(trial, axis), share_given(ran))


def starved(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether the data made no batch of this size (``drop_last``), since those of smaller sizes reached a model."""
    smaller = any(t.shape for t in trials if t.size < trial.size)
    return smaller and not (trial.shape or trial.steps or trial.out_of_memory)


def rows(trials: Sequence[Trial], axis: int | None, verified: frozenset[int], estimated: bool) -> tuple[Row, ...]:
    """One row a size, ascending; the last trial of a size speaks for it."""
    found = dict[int, Row]()
    for trial in trials:
        row = _row(trial, axis, "predicted" if estimated else "measured")
        if starved(trial, trials):
            row = replace(row, seen=0, note=STARVED)
        found[trial.size] = row
    rows = (found[size] for size in sorted(found))
    return tuple(
        replace(row, status="verified") if row.batch in verified and row.status == "measured" else row for row in rows
    )


def _row(trial: Trial, axis: int | None, status: str) -> Row:
    speed = trial.samples_per_s
    if speed is not None and axis == 1:  # it was counted along dim 0
        speed *= trial.shape[1] / trial.shape[0]
    given = seen(trial, axis)
    if trial.out_of_memory:
        return Row(trial.size, "OOM", given, contaminated=bool(trial.leftover), note=_out_of_memory(trial))
    return Row(
        batch=trial.size,
        status=status,
        seen=given,
        peak_bytes=trial.peak_bytes,
        categories=trial.categories,
        reserved_bytes=trial.reserved_bytes,
        needed_bytes=trial.needed_bytes,
        samples_per_s=speed,
        step_s=trial.step_s,
        steps=trial.timed_steps,
        retries=trial.retries,
        contaminated=bool(trial.leftover),
        note=_row_note(trial, given),
    )


def _out_of_memory(trial: Trial) -> str:
    """``could not allocate 8.88 MiB``: the rest of the message is in the other columns."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \wi?B)", trial.error)
    return f"could not allocate {wanted[1]}" if wanted else trial.error[:80]


def _row_note(trial: Trial, given: int | None) -> str:
    notes = []
    if given is not None and given != trial.size:
        notes.append(f"the model was given {given}")
    if trial.leftover:
        notes.append(trial.leftover)
    if trial.retries:
        notes.append(f"the allocator retried {trial.retries}×")
    return "; ".join(notes)


def fit_rows(rows: Sequence[Row], of_samples: bool = True) -> Fit | None:
    """The line through the clean rows, over the sizes that the data filled; ``of_samples`` as in `Comparison`."""
    clean = [r for r in rows if r.peak_bytes is not None and r.categories and not r.contaminated and r.seen != 0]
    sizes = reached(rows)
    return fit((Point(sizes[r.batch], r.categories) for r in clean), of_samples)


def overhead(rows: Sequence[Row]) -> tuple[float, int]:
    """``reserved / allocated`` as observed, and the bytes outside the allocator: what a predicted peak needs besides."""
    known = [r for r in rows if r.peak_bytes and r.needed_bytes is not None and not r.retries]
    ran = [r for r in known if r.status != "predicted"] or known
    ratio = max((r.reserved_bytes / r.peak_bytes for r in ran if r.reserved_bytes and r.peak_bytes), default=1.0)
    outside = max((r.needed_bytes - (r.reserved_bytes or r.peak_bytes or 0) for r in ran if r.needed_bytes), default=0)
    return ratio, outside


def predicted_largest(rows: Sequence[Row], line: Fit | None, limit_bytes: int, multiple: int) -> Answer | None:
    """The largest size that the line says fits: at most twice the largest that ran, and below one that did not fit."""
    if line is None or not line.linear:
        return None
    ratio, outside = overhead(rows)
    size = min(line.largest((limit_bytes - outside) / ratio), line.reach)
    failed = [r.batch for r in rows if not fits_easily(r, limit_bytes)]
    if failed and size >= min(failed):
        size = min(failed) - multiple
    whole = int(size // multiple) * multiple
    if whole < 1:
        return None
    middle, low, high = (None if b is None else round(b * ratio + outside) for b in line.predict(whole))
    return Answer(whole, "predicted", middle, low, high, min(failed, default=None))


def fits(row: Row, limit_bytes: int) -> bool:
    """Whether a size ran and stayed within the limit."""
    return row.seen != 0 and row.status != "OOM" and row.needed_bytes is not None and row.needed_bytes <= limit_bytes


def fits_easily(row: Row, limit_bytes: int) -> bool:
    """The same, and the allocator never had to make room: else it would have held more."""
    return fits(row, limit_bytes) and not row.retries


def largest_that_ran(rows: Sequence[Row], limit_bytes: int) -> Answer | None:
    """The largest clean size that stayed within the limit without the allocator's having to make room.

    Where the data ended before the size, it is the size that they filled.
    """
    clean = [r for r in rows if not r.contaminated]
    good = [r for r in clean if fits_easily(r, limit_bytes)]
    if not good:
        return None
    best = max(good, key=lambda r: r.batch)
    if (most := reached(rows)[best.batch]) < best.batch:
        return Answer(most, best.status, best.needed_bytes, beyond=best.batch)
    failed = [r.batch for r in clean if not fits_easily(r, limit_bytes) and r.batch > best.batch]
    return Answer(best.batch, best.status, best.needed_bytes, beyond=min(failed, default=None))


def knee(rows: Sequence[Row], limit_bytes: int | None = None) -> int | None:
    """The smallest size within 5 % of the best speed; None with fewer than two speeds, or where that size does not fit."""
    found = fast_enough(rows)
    within = limit_bytes is None or any(fits_easily(r, limit_bytes) for r in rows if r.batch == found)
    return found if within else None


def fast_enough(rows: Sequence[Row]) -> int | None:
    """The same, whether it fits or not."""
    speeds = [(r.batch, r.samples_per_s) for r in rows if r.samples_per_s is not None and not r.contaminated]
    if len(speeds) < 2:
        return None
    best = max(speed for _, speed in speeds)
    return min(batch for batch, speed in speeds if speed >= KNEE_SHARE * best)


def accumulate(effective: int, at_most: int) -> Accumulation:
    """The fewest batches, none larger than ``at_most``, that make ``effective`` samples.

    Equal ones where that takes at most twice as many; else the last is smaller.
    """
    fewest = math.ceil(effective / at_most)
    steps = next((n for n in range(fewest, 2 * fewest + 1) if effective % n == 0), fewest)
    return Accumulation(effective, math.ceil(effective / steps), steps)

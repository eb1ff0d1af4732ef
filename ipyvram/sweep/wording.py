"""What a sweep says while it runs and below its table, one plain line each: trials come in, sentences go out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ipyvram.comparison import Row
from ipyvram.sweep.answers import clipped, seen, starved
from ipyvram.sweep.fit import Fit
from ipyvram.units import format_bytes, format_share

if TYPE_CHECKING:
    from ipyvram.sweep.trial import Trial


def trying(name: str, size: int, number: str, last: Trial | None) -> str:
    """The line shown while a trial runs: ``trial 2 of 4 · batch_size = 16 · before: 8 → 1.2 GiB, 340 samples/s``."""
    text = f"trial {number} · {name} = {size}"
    return text if last is None else f"{text} · before: {last.size} → {outcome(last)}"


def outcome(trial: Trial) -> str:
    """What came of a trial in a few words."""
    if trial.out_of_memory:
        return "out of memory"
    parts = [format_bytes(trial.peak_bytes)] if trial.peak_bytes is not None else []
    if trial.samples_per_s is not None:
        parts.append(f"{trial.samples_per_s:,.0f} samples/s")
    return ", ".join(parts) or "done"


def did_not_change(name: str, sizes: Sequence[int], batch: int, loader: str) -> str:
    """Why a sweep stopped after its second trial."""
    tried = " and then ".join(map(str, sizes[:2]))
    what = f"{loader} was built in another cell, with a batch size of its own: move it into this one"
    other = f"{name} does not reach what makes the batches (build the loader in this cell), or the data have no more"
    return f"{name} was {tried}, but the model was given {batch} samples each time: {what if loader else other}"


def room_beyond(name: str, largest: int) -> str:
    """What is said where the limit leaves more room than a line may be used for."""
    return f"there is room beyond {largest}, twice the largest size compared: --max-batch {name} finds out how much"


def memory_limits_speed(fast: int) -> str:
    """What is said where the size at which speed levels off is too large."""
    return f"no size that fits is within 5 % of the best speed, that of {fast}: here memory limits the speed"


def more_untried(tried: int) -> str:
    """What is said where a search ended by the number of its trials."""
    return f"larger sizes were not tried: the search ends after {tried} trials, and the last of them fitted"


def notes(
    name: str,
    trials: Sequence[Trial],
    rows: Sequence[Row],
    axis: int | None,
    line: Fit | None,
    skipped: Sequence[int],
    estimated: bool,
) -> Iterator[str]:
    """What is to be said of the whole; ``axis`` as `batch_axis` gives it."""
    ran = [t for t in trials if not t.out_of_memory]
    yield from _about_the_device(ran)
    yield from _about_the_data(ran, axis, skipped)
    yield from _about_the_axis(name, ran, axis)
    yield from _about_leftovers(trials)
    yield from _about_a_second_step(ran)
    if not estimated:
        yield from _about_speeds(ran, rows)
    if axis is not None and line is not None:
        yield from _about_the_fixed_part(rows, line)
    yield from _about_retries(ran)
    yield from dict.fromkeys(note for t in (trials[-1:] if estimated else trials) for note in t.notes)


def _about_the_device(ran: Sequence[Trial]) -> Iterator[str]:
    if ran and not any(t.peak_bytes for t in ran):
        yield "nothing was on the device: the code computes elsewhere"


def _about_the_data(ran: Sequence[Trial], axis: int | None, skipped: Sequence[int]) -> Iterator[str]:
    short = next((t for t in ran if clipped(t, ran, axis)), None)
    if short is not None:
        yield f"at {short.size} the model was given {seen(short, axis)}: the data have no more"
    empty = next((t for t in ran if starved(t, ran)), None)
    if empty is not None:
        few = "fewer batches than the cell asks for" if empty.error else "no batch"
        yield f"at {empty.size} the data made {few}: they have no more, and the last smaller one is dropped"
    if skipped:
        why = "it would be the same" if short or empty else "smaller ones ran out of memory"
        yield f"not run: {', '.join(map(str, skipped))} ({why})"


def _about_the_axis(name: str, ran: Sequence[Trial], axis: int | None) -> Iterator[str]:
    if axis == 1:
        yield "the batch is dimension 1 of the model's input"
    if axis is None:
        yield f"the model was given {ran[0].shape[0]} samples at each size: {name} is another size of the program than the batch"
    if ran and not any(t.shape for t in ran):
        yield "no module was called, so nothing shows that the batch really changed"


def _about_leftovers(trials: Sequence[Trial]) -> Iterator[str]:
    left = [t for t in trials if t.leftover]
    if left:
        sizes = ", ".join(dict.fromkeys(str(t.size) for t in left))
        yield f"contaminated: memory was not back at its baseline before {sizes}, so figures there are too high: {left[0].leftover}"


def _about_a_second_step(ran: Sequence[Trial]) -> Iterator[str]:
    last = max((t for t in ran if t.more_bytes), key=lambda t: t.size, default=None)
    if last is not None:
        yield (
            f"at {last.size} the cell made one step: needs counts a second one, which has the optimizer's state beside it "
            f"(about {format_bytes(last.more_bytes)} more)"
        )


def _about_speeds(ran: Sequence[Trial], rows: Sequence[Row]) -> Iterator[str]:
    few = [str(r.batch) for r in rows if r.samples_per_s is not None and r.steps < 3]
    if ran and all(t.steps == 0 for t in ran):
        yield "there is no optimizer step: each trial was the whole cell, and its speed includes the tracing"
    elif few:
        yield f"fewer than 3 steps were timed at {', '.join(few)}: those speeds are rough"
    if untimed := _untimed(ran, rows):
        yield (
            f"no speed at {', '.join(map(str, untimed))}: the cell made no more steps there than those that warm up; more"
            " data or a longer loop gives one"
        )


def _untimed(ran: Sequence[Trial], rows: Sequence[Row]) -> list[int]:
    """Sizes whose cell made steps, and ended before the first one to be timed."""
    stepped = {t.size for t in ran if t.steps and not t.timed_steps}
    return [r.batch for r in rows if r.batch in stepped and r.status != "verified" and r.peak_bytes is not None]


def _about_the_fixed_part(rows: Sequence[Row], line: Fit) -> Iterator[str]:
    largest = max((r.seen or r.batch for r in rows if r.peak_bytes), default=0)
    growing, whole = line.per_sample_bytes * largest, line.fixed_bytes + line.per_sample_bytes * largest
    if line.linear and line.per_sample_bytes > 0 and growing < 0.1 * whole:
        yield (
            f"the batch makes {format_share(growing, whole)} of the peak at {largest}: parameters and optimizer state "
            "dominate, so its size hardly helps"
        )


def _about_retries(ran: Sequence[Trial]) -> Iterator[str]:
    retried = [t for t in ran if t.retries]
    if retried:
        yield f"at {retried[-1].size} the allocator retried {retried[-1].retries}×: too tight, the speed suffers"

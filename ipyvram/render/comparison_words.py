"""What is said of a comparison of batch sizes, in the words that text and HTML share: a `Comparison` comes in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ipyvram.comparison import Accumulation, Answer, Comparison, Row, describe_fit
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes, format_duration

#: Heads of the main table (`heads` has them for one comparison), and which of its columns are figures.
COLUMNS = ("batch", "peak", "reserved", "needs", "samples/s", "share of best", "status")
FIGURES = (0, 1, 2, 3, 4, 5)

#: Sizes in the table of categories: the rest lie on the line between them.
SIZES_SHOWN = 10

#: Why a size beyond the answer is none, though it would fit.
NO_MORE = "the data have no more"


@dataclass(frozen=True, slots=True)
class Words:
    """The parts of a comparison as plain text.

    Attributes
    ----------
    title : str
        The label; ``context`` is what was compared, where, and in how many trials.
    headline : tuple of (str, str)
        Answers, the most important first: what stands out, and what is said of it.
    fit : str
        The line through the peaks.
    cells : tuple of tuple of str
        The main table, one row a size, by `COLUMNS`; ``remarks`` is what is to be said of each row.
    sizes : tuple of str
        The sizes in the table of categories; with very many, only some.
    categories : tuple of (str, str, tuple of str)
        Category, its label, and its bytes at each of `sizes`.
    """

    title: str
    context: tuple[str, ...]
    headline: tuple[tuple[str, str], ...]
    fit: str
    cells: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]
    sizes: tuple[str, ...]
    categories: tuple[tuple[str, str, tuple[str, ...]], ...]
    notes: tuple[str, ...]
    trouble: str


def put_into_words(c: Comparison) -> Words:
    """All that is said of a comparison."""
    shown = columns_shown(c)
    return Words(
        title=c.label or ("Batch sizes" if c.of_samples else "Sizes"),
        context=tuple(_context(c)),
        headline=tuple(_headline(c)),
        fit=describe_fit(c.fit, _size(c)) if c.fit is not None else "",
        cells=tuple(tuple(cell for cell, show in zip(_cells(c, row), shown, strict=True) if show) for row in c.rows),
        remarks=tuple(row.note for row in c.rows),
        sizes=tuple(str(row.batch) for row in _told(c)),
        categories=tuple(_categories(c)),
        notes=(*c.notes, *([_needs(c)] if shown[COLUMNS.index("needs")] else [])),
        trouble=_trouble(c),
    )


def _needs(c: Comparison) -> str:
    """What the column is about."""
    on_card = any(row.reserved_bytes is not None for row in c.rows)
    parts = ": reserved, the CUDA context and other processes" if on_card else ""
    return f"needs is what counts against the limit{parts}"


def columns_shown(c: Comparison) -> tuple[bool, ...]:
    """Which of `COLUMNS` have anything to show."""
    more = any((r.needed_bytes or 0) > (r.reserved_bytes or r.peak_bytes or 0) for r in c.rows)
    reserved = any(r.reserved_bytes is not None for r in c.rows)
    speed = c.best_samples_per_s is not None
    return True, True, reserved, more and c.limit_bytes is not None, speed, speed and c.of_samples, True


def heads(c: Comparison) -> tuple[str, ...]:
    """`COLUMNS`, the first as what is compared."""
    return (_size(c) or COLUMNS[0], *COLUMNS[1:])


def _size(c: Comparison) -> str:
    """What is compared, where it is no batch."""
    return "" if c.of_samples else c.name


def _context(c: Comparison) -> list[str]:
    parts = [c.name]
    device = " ".join(p for p in (c.device, c.device_name) if p and p.lower() != "cpu") or c.device
    parts += [device] if device else []
    if c.limit_bytes is not None:
        card = f" of {format_bytes(c.card_bytes)}" if c.card_bytes else ""
        other = f" ({c.card_name})" if c.card_name and c.card_name != c.device_name else ""
        parts.append(f"limit {format_bytes(c.limit_bytes)}{card}{other}")
    parts.append(f"{c.trials} {'estimate' if c.kind == 'estimated' else 'trial'}{'' if c.trials == 1 else 's'}")
    parts.append(format_duration(c.duration_s))
    return parts


def _headline(c: Comparison) -> Iterator[tuple[str, str]]:
    if c.limit_bytes is not None:
        yield from _what_fits(c, c.limit_bytes)
    knee = next((r for r in c.rows if r.batch == c.knee), None)
    if knee is not None:
        yield f"Knee: {knee.batch}", _about_the_knee(c, knee)
    if c.accumulation is not None:
        yield f"Effective {c.accumulation.effective}", accumulation_words(c.accumulation)


def _what_fits(c: Comparison, limit_bytes: int) -> Iterator[tuple[str, str]]:
    if c.largest is not None:
        beyond = next((r for r in c.rows if r.batch == c.largest.beyond), None)
        why = _why_beyond(beyond, limit_bytes) if beyond is not None else ""
        words = answer_words(c.largest, limit_bytes, None if c.rule == "sizes" else c.multiple, why)
        yield f"Largest that fits: {c.largest.batch}", words
    elif c.rows:
        least = next((r for r in c.rows if (r.needed_bytes or 0) > limit_bytes), None)
        even = f": {least.batch} needs {format_bytes(least.needed_bytes or 0)}" if least is not None else ""
        yield "No size fits", f"into {format_bytes(limit_bytes)}{even}"


def _about_the_knee(c: Comparison, knee: Row) -> str:
    share = f"{c.share_of_best(knee) or 0:.0%}".replace("%", " %")
    any_size = "any that was timed" if any(r.peak_bytes and r.samples_per_s is None for r in c.rows) else "any"
    peak = f", {format_bytes(knee.peak_bytes)}" if knee.peak_bytes else ""
    return f"the smallest size that is about as fast as {any_size} ({share}){peak}"


def answer_words(answer: Answer, limit_bytes: int, multiple: int | None = None, why: str = "") -> str:
    """``verified, 59.8 MiB of 60.0 MiB; 166 does not fit``; of a search also whether it left out sizes between the two.

    ``why``: what is to be said of the size beyond, where that is not that it does not fit.
    """
    words = answer.status
    if answer.needed_bytes is not None:
        words += f", {format_bytes(answer.needed_bytes)}"
        words += _range(answer.low_bytes, answer.high_bytes)
        words += f" of {format_bytes(limit_bytes)}"
    if answer.beyond is None:
        return words
    if why == NO_MORE:
        return f"{words}; {why}"
    between = multiple is not None and answer.beyond - answer.batch > multiple
    return words + f"; {answer.beyond} {why or 'does not fit'}" + (", between them none was tried" if between else "")


def _why_beyond(row: Row, limit_bytes: int) -> str:
    if row.seen == 0:
        return NO_MORE
    if row.needed_bytes is None or row.needed_bytes > limit_bytes:
        return ""
    return "fits only with retries of the allocator" if row.retries else NO_MORE


def accumulation_words(a: Accumulation) -> str:
    """How to make up the effective batch, and what differs from a batch of that size."""
    if a.steps == 1:
        return "fits as one batch, nothing to accumulate"
    last = f", the last of {a.effective - a.batch * (a.steps - 1)}" if a.batch * a.steps != a.effective else ""
    return (
        f"{a.steps} batches of {a.batch}{last} before each optimizer step, each loss divided by {a.steps} "
        f"(BatchNorm sees {a.batch} at a time; a loss averaged over tokens needs weights)"
    )


def _cells(c: Comparison, row: Row) -> tuple[str, ...]:
    share = c.share_of_best(row)
    peak = "–" if row.peak_bytes is None else format_bytes(row.peak_bytes)
    peak += _range(row.low_bytes, row.high_bytes)
    status = row.status + (" · contaminated" if row.contaminated else "")
    if c.limit_bytes is not None and row.needed_bytes is not None and row.needed_bytes > c.limit_bytes:
        status += " · over the limit"
    return (
        str(row.batch),
        peak,
        "–" if row.reserved_bytes is None else format_bytes(row.reserved_bytes),
        "–" if row.needed_bytes is None else format_bytes(row.needed_bytes),
        "–" if row.samples_per_s is None else speed(row.samples_per_s),
        "–" if share is None else f"{share:.0%}".replace("%", " %"),
        status,
    )


def _range(low: int | None, high: int | None) -> str:
    """`` (59.1 MiB to 60.4 MiB)``; empty where the two read the same."""
    if low is None or high is None or format_bytes(low) == format_bytes(high):
        return ""
    return f" ({format_bytes(low)} to {format_bytes(high)})"


def speed(samples_per_s: float) -> str:
    """Samples a second: three significant digits below a thousand."""
    return f"{samples_per_s:,.0f}" if samples_per_s >= 99.5 else f"{samples_per_s:.3g}"


def _categories(c: Comparison) -> list[tuple[str, str, tuple[str, ...]]]:
    used = [name for name in LABELS if any(r.categories.get(name) for r in c.rows)]
    return [
        (
            name,
            LABELS[name],
            tuple(format_bytes(r.categories[name]) if r.categories.get(name) else "–" for r in _told(c)),
        )
        for name in used
    ]


def _told(c: Comparison) -> list[Row]:
    """The rows whose categories are shown: all, or the first, the last and those at equal distances between them."""
    rows = [row for row in c.rows if row.categories]
    if len(rows) <= SIZES_SHOWN:
        return rows
    return [rows[round(i * (len(rows) - 1) / (SIZES_SHOWN - 1))] for i in range(SIZES_SHOWN)]


def _trouble(c: Comparison) -> str:
    if not c.ended:
        return ""
    done = f"{c.trials} trial{'' if c.trials == 1 else 's'} had ended"
    return (
        f"Interrupted: {done} by then." if c.ended == "interrupted" else f"Stopped by the cell's own error: {c.ended}"
    )


def sentence(c: Comparison) -> str:
    """The pictures in words, for ``alt``."""
    parts = [f"Peak memory and speed against {c.name}"]
    parts += [f"{r.batch}: {format_bytes(r.peak_bytes)}" for r in c.rows if r.peak_bytes is not None]
    parts += [f"{r.batch}: out of memory" for r in c.rows if r.status == "OOM"]
    parts += [f"{strong}, {rest}" for strong, rest in islice(_headline(c), 2)]
    return "; ".join(parts) + "."

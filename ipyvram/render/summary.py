"""What a report says, in words: a `Report` comes in, a `Summary` goes out that the text and the HTML form both show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ipyvram.render.palette import ALL_COLOURS, CATEGORIES
from ipyvram.report import Report
from ipyvram.report_rows import LABELS, GroupRow, StepAccount, TensorRow
from ipyvram.units import format_bytes, format_duration, format_share

#: Figure → what it is called where its provenance is told.
_FIGURES = {
    "peak": "peak",
    "categories": "categories",
    "end": "end",
    "reserved": "reserved",
    "context": "context",
    "other_processes": "other processes",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A category in the table. Sizes in bytes, ``share`` of the peak."""

    category: str
    label: str
    colour: str
    start: int
    peak: int
    end: int
    share: float
    holder: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The words of a report; every renderer takes them from here, so that none says less.

    Attributes
    ----------
    title : str
        The label, or what stands in for it.
    context : tuple of str
        Device, card, steps, duration: what was run.
    peak, when : str
        ``"3.22 GiB"`` and ``"in step 3, end of forward"``.
    how : str
        ``exact``, ``sampled``, ``inferred`` or ``predicted``, of the peak, and what it holds for where that is not the whole
        cell; empty where there is no peak.
    remarks : tuple of str
        Share of the card and headroom to the limit.
    sums : str
        The parts of the bar adding up.
    sum_parts : tuple of (str, str)
        The same in pieces: the part of the card that a piece is about, or nothing, and its words.
    lines, zeros : tuple
        Categories that hold something at the start, the peak or the end; labels of those that do not.
    category_title : str
        ``"category"``, with how the categories came about where they are not exact.
    end_title : str
        ``"end"``, or ``"end of trace"`` where the trace ended before the cell.
    verdicts, findings : tuple of str
        What is the answer to what was asked, and stands first; what else is worth saying.
    sources : str
        Which figures are exact, sampled, inferred, predicted.
    """

    title: str
    context: tuple[str, ...]
    peak: str
    how: str
    when: str
    remarks: tuple[str, ...]
    over_limit: bool
    bar: tuple[tuple[str, int], ...]
    bar_total: int
    sums: str
    sum_parts: tuple[tuple[str, str], ...]
    lines: tuple[Line, ...]
    zeros: tuple[str, ...]
    category_title: str
    end_title: str
    sources: str
    trouble: str
    verdicts: tuple[str, ...]
    findings: tuple[str, ...]
    measured: tuple[str, ...]


#: Kinds of findings that answer what was asked.
_VERDICTS = ("does_not_fit",)


def summarise(report: Report) -> Summary:
    """Put a report into words."""
    lines = tuple(line for line in map(_liner(report), CATEGORIES) if line.start or line.peak or line.end)
    remarks, over = _remarks(report)
    shown = {line.category for line in lines}
    bar, total = _bar(report)
    sums = tuple(_sums(report))
    return Summary(
        title=report.label or _untitled(report),
        context=_context(report),
        peak=format_bytes(report.peak_bytes),
        how=report.peak_provenance,
        when=_when(report),
        remarks=remarks,
        over_limit=over,
        bar=bar,
        bar_total=total,
        sums="".join(words for _, words in sums),
        sum_parts=sums,
        lines=lines,
        zeros=tuple(LABELS[c] for c in CATEGORIES if c not in shown) if lines else (),
        category_title=_marked("category", report.provenance.get("categories", "")),
        end_title="end of trace" if report.provenance.get("end") == "end of trace" else "end",
        sources=_sources(report),
        trouble=_trouble(report),
        verdicts=tuple(f.text for f in report.findings if f.kind in _VERDICTS),
        findings=tuple(f.text for f in report.findings if f.kind not in _VERDICTS),
        measured=_measured(report),
    )


def _untitled(report: Report) -> str:
    return {"estimated": "Estimate", "snapshot": "Snapshot"}.get(report.kind, "This cell")


def _liner(report: Report) -> Callable[[str], Line]:
    def line(category: str) -> Line:
        return Line(
            category,
            LABELS[category],
            ALL_COLOURS[category],
            report.start[category],
            report.peak[category],
            report.end[category],
            report.peak[category] / report.peak_bytes if report.peak_bytes else 0.0,
            report.holders.get(category, ""),
        )

    return line


def _context(report: Report) -> tuple[str, ...]:
    name = report.device_name
    device = f"{report.device} {name}" if name and name.lower() != report.device else name or report.device
    parts = [device]
    if report.card_bytes:
        size = format_bytes(report.card_bytes)
        other = report.card_name and report.card_name != name
        parts.append(f"judged by {report.card_name}, {size}" if other else f"{size} card")
    if report.kind == "estimated":
        parts.append("estimated, nothing was computed")
    elif report.kind == "snapshot":
        parts.append("memory snapshot")
    parts.append(_steps(report))
    if report.duration_s:
        parts.append(format_duration(report.duration_s))
    if report.environment.get("optimizer"):
        parts.append(report.environment["optimizer"])
    return tuple(p for p in parts if p)


def _steps(report: Report) -> str:
    if not report.steps:
        return ""
    steps = f"{report.steps:,} step" + ("s" if report.steps != 1 else "")
    if not 0 < report.traced_steps < report.steps:
        return steps
    if report.timeline_data.gaps_s:
        return f"{steps}, {report.traced_steps} of them traced"
    return (
        f"{steps}, the first {report.traced_steps} traced" if report.traced_steps > 1 else f"{steps}, the first traced"
    )


def _when(report: Report) -> str:
    when = report.peak_when
    if not when or when.startswith(("after", "before", "in the update")):
        return when
    return f"at the {when}" if when.startswith(("start of", "end of")) else f"in {when}"


def _remarks(report: Report) -> tuple[tuple[str, ...], bool]:
    """Share of the card, and the room that is left below the limit: what torch caches can be used again and counts as room."""
    card = report.card_bytes or 0
    remarks = [f"{format_share(report.peak_bytes, card)} of the card"] if card else []
    over = False
    if report.limit_bytes:
        taken = report.peak_bytes + report.card.get("context", 0) + report.card.get("other_processes", 0)
        room = report.limit_bytes - taken
        over = room < 0
        limit = _limit(report.limit_bytes, card)
        remarks.append(f"{format_bytes(-room)} over {limit}" if over else f"{format_bytes(room)} to {limit}")
    return tuple(remarks), over


def _limit(limit: int, card: int) -> str:
    """``the 80 % limit`` where it was given so, else its size."""
    percent = 100 * limit / card if card else 0.5
    return (
        f"the {percent:.0f} % limit" if abs(percent - round(percent)) < 1e-3 else f"the limit of {format_bytes(limit)}"
    )


#: Where the cell takes less than this share of its card, the bar is of the cell alone: on the card it would be a line.
_BAR_OF_PEAK = 0.02


def _bar(report: Report) -> tuple[tuple[tuple[str, int], ...], int]:
    """The parts of the bar, and what its whole length stands for."""
    parts = report.peak if _tiny(report) else report.peak | report.card
    bar = tuple((c, n) for c, n in parts.items() if n > 0)
    total = sum(n for _, n in bar)
    return bar, total if _tiny(report) else max(report.card_bytes or 0, total)


def _tiny(report: Report) -> bool:
    taken = sum(report.card.values()) - report.card.get("free", 0) + report.peak_bytes
    return bool(report.card_bytes) and taken < _BAR_OF_PEAK * (report.card_bytes or 0)


def _nothing(report: Report) -> str:
    if report.device != "cpu":
        return "no tensors were made"
    return "no tensors were made or used; those that were there before are not counted: %vram shows them"


def _sums(report: Report) -> Iterator[tuple[str, str]]:
    peak = format_bytes(report.peak_bytes)
    if not report.card:
        yield "", f"all categories together are the peak, {peak}" if report.peak_bytes else _nothing(report)
        return
    tiny, cache = _tiny(report), report.card.get("cache", 0)
    yield "", f"tensors {peak}"
    if report.peak_reserved_bytes is not None:  # the CPU has no allocator that keeps a cache
        yield "", " + "
        yield "" if tiny else "cache", f"cache {format_bytes(cache)}"
        yield "", f" = reserved {format_bytes(report.peak_bytes + cache)}"
    for name, count in report.card.items():
        if name != "cache" and (count > 0 or name == "free"):
            words = f"{LABELS[name]} {format_bytes(count)}" if count >= 0 else f"{format_bytes(-count)} missing"
            yield "", " · "
            yield "" if tiny else name, _marked(words, report.provenance.get(name, ""))
    if tiny:
        yield "", " · the bar is the peak alone"


def _marked(words: str, how: str) -> str:
    """Words, and how the figure came about where it is not exact."""
    return f"{words} ({how})" if how not in ("", "exact") else words


def _sources(report: Report) -> str:
    groups: dict[str, list[str]] = {}
    if not report.peak_bytes and not report.card:
        return ""
    for figure, how in report.provenance.items():
        if figure in _FIGURES and (figure not in report.card or report.card[figure]):
            if figure in ("context", "other_processes") and not report.card:
                continue
            figure_name = _FIGURES[figure]
            if how == "end of trace":
                continue
            groups.setdefault(how, []).append(figure_name)
    return " · ".join(f"{how}: {', '.join(names)}" for how, names in groups.items())


#: Characters of an error's message that are repeated in the report: the traceback above it has them all.
_MESSAGE = 90


def _trouble(report: Report) -> str:
    if not report.error:
        return ""
    if report.oom is not None:  # told in full right below
        return "The cell ran out of memory – the figures are those of the part that ran."
    kind, _, message = report.error.partition(": ")
    if kind == "KeyboardInterrupt":
        return "Interrupted: the figures are those of the part that ran."
    first = message.partition("\n")[0].strip().rstrip(".")
    first = first if len(first) <= _MESSAGE else first[: _MESSAGE - 1].rstrip() + "…"
    told = f"{kind}: {first}" if first else kind
    return f"The cell ended with {told} – the figures are those of the part that ran."


def _measured(report: Report) -> tuple[str, ...]:
    """How it was measured, one fact an item."""
    m = report.measurement
    facts = []
    if m.source:
        events = f"{m.events:,} event" + ("s" if m.events != 1 else "")
        reach = f"{events} in {format_duration(m.traced_s)}" if m.events else "no events"
        ended = f", until {m.ended_by}" if m.ended_by else ""
        claims = f"{m.claims:,} claim" + ("s" if m.claims != 1 else "")
        facts.append(f"Source: {m.source}, {reach}{ended}; {claims} of ownership")
    facts += _batches(report)
    if m.samples:
        facts.append(
            f"Samples: {m.samples:,}, one every {format_duration(m.period_s)}, longest gap {format_duration(m.longest_gap_s)}"
        )
    elif report.kind == "measured":
        facts.append("Samples: none")
    if report.kind == "measured":
        facts.append(f"Overhead: {format_duration(report.overhead_s)} in ipyvram's own code on the cell's thread")
    if m.notes:
        facts += [f"Note: {note}" for note in m.notes]
    versions = [
        f"{name} {report.environment[name]}"
        for name in ("ipyvram", "torch", "cuda", "python", "ipython")
        if name in report.environment
    ]
    if versions:
        facts.append("Versions: " + ", ".join(versions))
    return tuple(facts)


def _batches(report: Report) -> tuple[str, ...]:
    """The peak at each size of batch, where traced steps had several."""
    highest: dict[int, StepAccount] = {}
    for row in report.step_accounts:
        if row.batch and (row.batch not in highest or row.peak_bytes > highest[row.batch].peak_bytes):
            highest[row.batch] = row
    if len(highest) < 2:
        return ()
    peaks = (f"{size}: {format_bytes(row.peak_bytes)} (step {row.step})" for size, row in sorted(highest.items()))
    return ("Peak by batch size: " + ", ".join(peaks),)


def tensor_words(row: TensorRow) -> tuple[str, str, str]:
    """A tensor's name, its place and its shape, in words."""
    name = row.called
    where = [row.module] if row.module and row.module not in name else []
    if row.line is not None:
        where.append(row.place)
    shape = "×".join(map(str, row.shape)) if row.shape is not None else ""
    return name, " · ".join(where), " ".join(p for p in (shape, row.dtype) if p)


def group_words(row: GroupRow, otherwise: str) -> str:
    """What a group is about: its key, and the text of the line."""
    return f"{row.key or otherwise}  {row.source}".strip() if row.source else row.key or otherwise

"""Findings about the card around the tensors: cache, context, other processes, host memory.

Observations read here:

===============  =======================================================================================================
kind             meaning
===============  =======================================================================================================
``process``      process ``name`` (its PID in ``count``) holds ``bytes`` of the card; ``holder`` is ``worker`` for a
                 child of this process, else ``other``
``empty_cache``  segments of ``bytes`` were given back to the driver though no allocation had failed
``caught_oom``   the last allocation that did not fit, of ``bytes``, and the cell did not end with it
``pinned_host``  page-locked host memory that torch holds
===============  =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator

from ipyvram.findings.worth import Rule, code, observed, worth
from ipyvram.report import Report
from ipyvram.report_rows import Finding
from ipyvram.units import GIB, MIB, format_bytes, format_share

#: Share of the reserved bytes that lies unused at the peak before it is called fragmentation.
FRAGMENTED = 0.2
#: … and only from this share of the card: less is not what keeps a batch from fitting.
FRAGMENTED_CARD = 0.01
#: Tensors below this share of what nvidia-smi shows: then the difference is worth spelling out.
RECONCILE = 0.75
#: Another process matters from this share of the card.
PROCESS_SHARE = 0.05
#: Page-locked host memory worth a word.
PINNED_BYTES = 1 * GIB
SEGMENT_BYTES = 2 * MIB  # torch's smallest segment: less than this is no cache to speak of


def _fragmentation(report: Report) -> Iterator[Finding]:
    unused = report.card.get("cache", 0)
    reserved = report.peak_bytes + unused
    if unused < max(SEGMENT_BYTES, FRAGMENTED * reserved, FRAGMENTED_CARD * (report.card_bytes or 0)):
        return
    earlier = _cached_before(report, reserved, unused)
    if 2 * earlier >= unused:
        text = (
            f"{format_bytes(earlier)} of the {format_bytes(reserved)} reserved ({format_share(earlier, reserved)}) are cache "
            "that was there before this cell: later tensors will use it where they fit. torch.cuda.empty_cache() gives it back."
        )
        yield Finding("earlier_cache", text, earlier)
        return
    text = (
        f"{format_bytes(unused)} of the {format_bytes(reserved)} reserved ({format_share(unused, reserved)}) lie unused "
        "even at the peak: fragmentation. PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, set before the kernel "
        "starts, usually gives most of it back."
    )
    yield Finding("fragmentation", text, unused)


def _cached_before(report: Report, reserved: int, unused: int) -> int:
    """Of what lies unused at the peak, how much at most was unused before the cell, too."""
    before = report.allocator.get("reserved_before", 0)
    if reserved - before < FRAGMENTED * unused:  # hardly more was reserved: there was room enough
        return unused
    return max(0, min(unused, before - sum(report.start.values())))


def _retries(report: Report) -> Iterator[Finding]:
    retries = report.allocator.get("retries", 0) - report.allocator.get("ooms", 0)  # each of these was a retry, too
    if retries > 0:
        text = (
            f"The allocator had to empty its cache and try again {retries} times: the card is too full and "
            "throughput suffers. A slightly smaller batch may be faster."
        )
        yield Finding("retries", text.replace("1 times", "once") if retries == 1 else text, report.card.get("cache", 0))


def _caught(report: Report) -> Iterator[Finding]:
    """An out-of-memory that the program got over: the run goes on, with less than it asked for."""
    found = list(observed(report, "caught_oom"))
    if found and report.oom is None:
        count = max(report.allocator.get("ooms", 0), 1)
        times = "An out-of-memory was" if count == 1 else f"{count} out-of-memory errors were"
        text = f"{times} caught by the program (asked for: {format_bytes(found[0].bytes)}); it went on without."
        yield Finding("caught_oom", text, found[0].bytes)


def _reconcile(report: Report) -> Iterator[Finding]:
    """Why nvidia-smi shows more than the tensors take."""
    card = report.card
    if not card or not report.device.startswith("cuda") or report.kind != "measured":
        return
    used = report.peak_bytes + card["cache"] + card["context"] + card["other_processes"]
    if not card["context"] + card["other_processes"] or report.peak_bytes >= RECONCILE * used:
        return  # without a driver's figure there is nothing to reconcile
    parts = [f"{format_bytes(report.peak_bytes)} tensors", f"{format_bytes(card['cache'])} cache"]
    parts += [f"{format_bytes(card['context'])} context"] if card["context"] else []
    parts += [f"{format_bytes(card['other_processes'])} other processes"] if card["other_processes"] else []
    text = f"At the peak nvidia-smi would show {format_bytes(used)} = {' + '.join(parts)}."
    yield Finding("reconcile", text, used - report.peak_bytes)


def _processes(report: Report) -> Iterator[Finding]:
    others = [o for o in observed(report, "process") if o.holder != "worker"]
    workers = [o for o in observed(report, "process") if o.holder == "worker"]
    card = report.device_bytes or report.card_bytes or 0
    for o in others:
        if o.bytes >= PROCESS_SHARE * card:
            text = f"Another process, {code(o.name)} (PID {o.count}), holds {format_bytes(o.bytes)} of this card."
            yield Finding("process", text, o.bytes)
    total = sum(o.bytes for o in workers)
    if workers and worth(total, report):
        text = (
            f"{len(workers)} child processes (DataLoader workers?) hold {format_bytes(total)} of the card, mostly "
            "contexts: keep CUDA tensors out of the data set and of collate_fn."
        )
        yield Finding("workers", text, total)


def _spill(report: Report) -> Iterator[Finding]:
    held = report.peak_reserved_bytes or 0
    if report.device_bytes and report.device.startswith("cuda") and report.kind == "measured":
        over = held - report.device_bytes
        if over > 0:
            text = (
                f"{format_bytes(over)} more than the card has were reserved: the driver (Windows, WSL) spills to system "
                "RAM. No out-of-memory error will come, only a crawl."
            )
            yield Finding("spill", text, over)


def _empty_cache(report: Report) -> Iterator[Finding]:
    if report.environment.get("cudnn_benchmark") == "True":
        return  # its search for algorithms empties the cache too, and nobody wrote that
    for o in observed(report, "empty_cache"):
        live = report.allocator.get("allocated", sum(report.end.values()))
        if worth(o.bytes, report) and worth(live, report):
            text = (
                f"empty_cache() gave {format_bytes(o.bytes)} of unused cache back to the driver; the "
                f"{format_bytes(live)} of live tensors stay until their last reference goes (%vram who)."
            )
            yield Finding("empty_cache", text, o.bytes)


def _pinned_host(report: Report) -> Iterator[Finding]:
    for o in observed(report, "pinned_host"):
        if o.bytes >= PINNED_BYTES:
            text = f"{format_bytes(o.bytes)} of pinned memory are host RAM for transfers, not memory of the card."
            yield Finding("pinned_host", text, 0)


RULES: tuple[Rule, ...] = (
    _fragmentation,
    _caught,
    _retries,
    _reconcile,
    _processes,
    _spill,
    _empty_cache,
    _pinned_host,
)

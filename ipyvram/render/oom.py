"""An out-of-memory in words, as text and as HTML: an `OutOfMemory` comes in. It stands first in the report, under the traceback."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipyvram.render.markup import MUTED, Column, Part, escape, folded, legend, prose, stacked_bar, style, swatch, table
from ipyvram.render.palette import ALL_COLOURS, COLOURS, LETTERS, TROUBLE_COLOUR
from ipyvram.render.summary import tensor_words
from ipyvram.report_rows import LABELS, OutOfMemory, place_words
from ipyvram.units import MIB, format_bytes

if TYPE_CHECKING:
    from ipyvram.render.text import Pen

#: Holders told; the rest is in the account.
HOLDER_ROWS = 8
#: From here on what the traceback keeps alive is worth a sentence.
MIN_PINNED = MIB


def asked(oom: OutOfMemory) -> str:
    """Who asked for how much, when: one sentence."""
    what = [oom.op] if oom.op else []
    if oom.shape is not None:
        what.append("×".join(map(str, oom.shape)) + f" {oom.dtype}".rstrip())
    parts = [f"Out of memory: {format_bytes(oom.requested_bytes)} asked for"]
    if what:
        parts.append(f"({' '.join(what)})")
    if oom.module:
        parts.append(f"in module {oom.module}")
    if oom.line is not None:
        parts.append(f"at {place_words(oom.file, oom.line)}")
    if oom.when:
        parts.append(oom.when if oom.when.startswith(("after ", "before ", "in the update")) else f"in {oom.when}")
    return " ".join(parts) + "."


def room(oom: OutOfMemory) -> str:
    """What there was and what was left: the sums."""
    of = (
        ""
        if oom.limit_bytes is None
        else f" of {format_bytes(oom.limit_bytes)}" + (" (--budget)" if oom.budget else "")
    )
    parts = [f"{format_bytes(oom.allocated_bytes)}{of} were allocated"]
    if oom.reserved_bytes is not None:
        cached = oom.reserved_bytes - oom.allocated_bytes
        largest = (
            "" if oom.largest_free_bytes is None else f", largest free block {format_bytes(oom.largest_free_bytes)}"
        )
        parts.append(f"{format_bytes(cached)} cached{largest}")
    if oom.share_left_bytes is not None:
        parts.append(
            f"{format_bytes(oom.share_left_bytes)} left of what this process may take (set_per_process_memory_fraction), "
            f"though {format_bytes(oom.free_bytes or 0)} of the card are free"
        )
    elif oom.free_bytes is not None:
        outside = f", {format_bytes(oom.outside_bytes)} outside torch (contexts, other processes)"
        parts.append(f"{format_bytes(oom.free_bytes)} free" + (outside if oom.outside_bytes else ""))
    return ", ".join(parts) + "."


def pinned(oom: OutOfMemory) -> str:
    """What the traceback keeps alive now; empty where it is nothing to speak of."""
    if oom.pinned_bytes < MIN_PINNED:
        return ""
    return (
        f"This error's traceback still holds {format_bytes(oom.pinned_bytes)}: %vram free --traceback gives them back "
        "(and ends %debug)."
    )


def remedy_words(oom: OutOfMemory) -> list[tuple[str, str, str]]:
    """Each way out: the saving, whether it is enough, the sentence."""
    words = {True: "enough", False: "not enough alone", None: "perhaps enough"}
    return [(format_bytes(r.saves_bytes), words[r.enough], r.text) for r in oom.remedies]


def _account(oom: OutOfMemory) -> list[tuple[str, int]]:
    return sorted(((c, n) for c, n in oom.account.items() if n), key=lambda item: -item[1])


# -- text ----------------------------------------------------------------------------------------------------------------


def oom_text(oom: OutOfMemory, pen: Pen) -> list[str]:
    """Lines of at most the pen's width."""
    lines = [*map(pen.bold, pen.wrap(asked(oom), "  ")), *pen.wrap(room(oom), "  ")]
    for category, count in _account(oom):
        words = f"{LETTERS[category]} {LABELS[category]:<16} {format_bytes(count):>10}"
        lines.append("  " + pen.paint(pen.plain(words), category))
    if oom.remedies:
        lines += pen.wrap("Ways out, cheapest first (savings predicted from this cell's account):", "  ")
        for saves, enough, words in remedy_words(oom):
            lines += pen.wrap(f"  {saves:>9}  {words} [{enough}]", " " * 13)
    if oom.holders:
        lines.append("Largest holders at that instant:")
        for row in oom.holders[:HOLDER_ROWS]:
            name, where, shape = tensor_words(row)
            told = " · ".join(p for p in (name, where, shape) if p)
            letter = pen.paint(LETTERS[row.category], row.category)
            lines.append(f"  {format_bytes(row.bytes):>10}  {letter} {pen.cut(told, pen.width - 16)}")
    return [*lines, *pen.wrap(pinned(oom), "  "), ""]


# -- HTML ----------------------------------------------------------------------------------------------------------------


def oom_html(oom: OutOfMemory) -> str:
    """A block of markup that survives the sanitizer of untrusted notebooks."""
    look = style(f"border-left:3px solid {TROUBLE_COLOUR}", "padding:2px 0 4px 12px", "margin:6px 0 12px")
    head = f"<div{style('font-size:17px', 'line-height:1.4')}><strong>{escape(asked(oom))}</strong></div><div>{escape(room(oom))}</div>"
    return f"<div{look}>{head}{_bar(oom)}{_remedies(oom)}{_holders(oom)}{_pinned(oom)}</div>"


def _bar(oom: OutOfMemory) -> str:
    parts = [Part(LABELS[c], ALL_COLOURS[c], n, format_bytes(n)) for c, n in _account(oom)]
    total = max(oom.limit_bytes or 0, oom.allocated_bytes + oom.requested_bytes)
    words = legend((ALL_COLOURS[c], f"{LABELS[c]} {format_bytes(n)}") for c, n in _account(oom))
    return f"<div{style('margin-top:6px')}>{stacked_bar(parts, total)}</div>{words}"


def _remedies(oom: OutOfMemory) -> str:
    if not oom.remedies:
        return ""
    columns = [Column("saves", numeric=True), Column("enough?", muted=True), Column("way out", wrap=True)]
    rows = [[saves, enough, prose(words)] for saves, enough, words in remedy_words(oom)]
    words = "Ways out, cheapest first; savings predicted from this cell's own account:"
    return f"<div{style(MUTED)}>{escape(words)}</div>" + table("Ways out", columns, rows)


def _holders(oom: OutOfMemory) -> str:
    if not oom.holders:
        return ""
    columns = [
        Column("holder", wrap=True),
        Column("size", numeric=True),
        Column("category"),
        Column("where", muted=True),
    ]
    rows = []
    for row in oom.holders[:HOLDER_ROWS]:
        name, where, shape = tensor_words(row)
        label = f"{swatch(COLOURS[row.category])} {escape(LABELS[row.category])}"
        rows.append([escape(name), format_bytes(row.bytes), label, escape(" · ".join(p for p in (where, shape) if p))])
    return folded("Largest holders at that instant", table("Largest holders when it happened", columns, rows))


def _pinned(oom: OutOfMemory) -> str:
    return f"<div{style('margin-top:4px')}>{escape(pinned(oom))}</div>" if pinned(oom) else ""

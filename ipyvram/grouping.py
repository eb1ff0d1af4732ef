"""Tensors that were live at an instant come in; sums by module or line, the largest holders, the size of the batch go out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ipyvram.recording import CATEGORIES
from ipyvram.report_rows import GroupRow, TensorRow
from ipyvram.units import format_bytes

_BY_PLACE = ("activations", "temporaries", "other")

Key = Callable[[TensorRow], tuple[str, str]]


def by_module(tensor: TensorRow) -> tuple[str, str]:
    """Key of `group`: the module's path."""
    return tensor.module, ""


def by_line(tensor: TensorRow) -> tuple[str, str]:
    """Key of `group`: where the line is, and its text. What an earlier cell made has no line in this one."""
    return tensor.place or ("there before the trace" if tensor.phase == "before" else ""), tensor.source


def group(tensors: tuple[TensorRow, ...], key: Key) -> tuple[GroupRow, ...]:
    """Bytes per key and category, largest first."""
    totals: dict[tuple[str, str], Counter[str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for tensor in tensors:
        place = key(tensor)
        totals.setdefault(place, Counter())[tensor.category] += tensor.bytes
        counts[place] += tensor.count
    rows = [
        GroupRow(name, sum(c.values()), {k: c[k] for k in CATEGORIES if c[k]}, counts[name, source], source)
        for (name, source), c in totals.items()
    ]
    return tuple(sorted(rows, key=lambda g: (-g.bytes, g.key)))


def batch_size(tensors: tuple[TensorRow, ...]) -> int | None:
    """Samples in the batch, None where that is not known: dimension 0 of an input, largest inputs first.

    Of several, such as a batch and the data set it was taken from, the one whose dimension 0 most bytes of activations have;
    the largest, where no activation has a known shape.
    """
    alike: Counter[int] = Counter()
    for t in tensors:
        if t.category == "activations" and t.shape:
            alike[t.shape[0]] += t.bytes
    inputs = sorted((t for t in tensors if t.category == "inputs"), key=lambda t: -t.bytes)
    sizes = [t.shape[0] for t in inputs if t.shape and len(t.shape) > 1]
    found = max(sizes, key=lambda size: alike[size], default=0)
    return found if found > 1 and (alike[found] or not alike) else None


def holders(tensors: tuple[TensorRow, ...]) -> dict[str, str]:
    """Category → its largest tensor in words, and how many there are."""
    found: dict[str, str] = {}
    for category in CATEGORIES:
        mine = [t for t in tensors if t.category == category]
        if not mine:
            continue
        top, count = mine[0], sum(t.count for t in mine)
        parts = [f"{top.module} {top.name}" if category in _BY_PLACE and top.module and top.name else top.called]
        if category == "inputs" and top.shape:
            parts.append("×".join(map(str, top.shape)) + f" {top.dtype}")
        if category in _BY_PLACE and top.line is not None and not top.file:
            parts.append(f"line {top.line}")
        parts.append(format_bytes(top.bytes))
        if count > 1:
            parts.append(f"of {count} tensors")
        found[category] = " · ".join(p for p in parts if p)
    return found

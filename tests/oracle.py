"""The peak of a CPU program as torch's profiler sees it, without what no trace of operators can see.

Left out, to the byte: memory that an operator takes and gives back within one call (oneDNN's copies in convolutions,
scratch space of reductions), and memory that no operator allocates (the 8 bytes around a Python number, the states
of random generators that checkpointing keeps).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


class _Allocation(NamedTuple):
    time_ns: int
    pointer: int
    size: int  # negative for a free
    operators: tuple[tuple[int, str], ...]  # outermost first: id and name


def peak_bytes(program: Callable[[], Any]) -> int:
    """The most bytes that were live at once of those allocated while ``program`` ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        program()
    found: list[_Allocation] = []
    for root in profiler.profiler.kineto_results.experimental_event_tree():
        _collect(root, (), found)
    found.sort(key=lambda a: a.time_ns)
    unseen = _unseen(found)
    running = peak = 0
    for i, allocation in enumerate(found):
        if i not in unseen:
            running += allocation.size
            peak = max(peak, running)
    return peak


def _collect(event: Any, operators: tuple[tuple[int, str], ...], found: list[_Allocation]) -> None:
    if event.tag == _EventType.Allocation:
        fields = event.extra_fields
        found.append(_Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, operators))
        return
    if event.tag == _EventType.TorchOp and event.name.startswith("aten::"):
        operators = (*operators, (event.id, event.name))
    for child in event.children:
        _collect(child, operators, found)


def _unseen(found: list[_Allocation]) -> set[int]:
    live: dict[int, int] = {}
    unseen: set[int] = set()
    for i, event in enumerate(found):
        if event.size > 0:
            live[event.pointer] = i
        elif event.pointer in live:
            made = live.pop(event.pointer)
            first = found[made].operators
            shared = [a for a, b in zip(first, event.operators, strict=False) if a == b]
            if not first or not all(_is_composite(name) for _, name in shared):
                unseen |= {made, i}
    return unseen


@functools.cache
def _is_composite(name: str) -> bool:
    """Whether an operator is only others in a row: what passes between them is seen."""
    packet = getattr(torch.ops.aten, name.removeprefix("aten::"), None)
    overloads = packet.overloads() if packet is not None else []
    full = [name if overload == "default" else f"{name}.{overload}" for overload in overloads]
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(f, "CompositeImplicitAutograd") for f in full)

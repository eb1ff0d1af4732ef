"""When a recorded program was in forward, backward and the optimizer: a snapshot in, `Mark`s out.

Nobody put marks while it was recorded. Optimizer steps are annotated by torch itself, on the clock of the events. Backward
is where allocations come from the autograd engine (its C++ frames, or no Python frame at all, since its thread runs none);
forward is where they come from a module, if backward follows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ipyvram.recording import Mark

Entry = Mapping[str, Any]

_ENGINE = "torch::autograd::Engine::"
_RECOMPUTED = ("backward", "unpack_hook", "recompute_fn")  # Python that the engine calls: own functions, checkpoints
_SEARCHED = 256


class _Stretch(NamedTuple):
    """Allocations of one kind in a row, ns."""

    kind: str
    begin_ns: int
    last_ns: int
    end_ns: int  #: when the next one begins
    begins_step: bool = False  #: whether an optimizer step lies before it


def marks_of(device_traces: Iterable[Sequence[Entry]], annotations: Iterable[Entry]) -> tuple[Mark, ...]:
    """Marks of all phases, in order of time."""
    optimizer = _optimizer_marks(annotations)
    trace = max(device_traces, key=len, default=())
    ends = [m.time_ns for m in optimizer if not m.begin]
    phases: list[tuple[int, int, str, int]] = []  # begin, end, kind, step
    follows = ""  # what comes after the forwards that are looked at: from the last to the first
    for stretch in reversed(_stretches(trace, [m.time_ns for m in optimizer])):
        step = bisect_right(ends, stretch.begin_ns) + 1
        if stretch.kind == "backward":
            phases.append((stretch.begin_ns, stretch.end_ns - 1, "backward", step))
        elif stretch.kind == "forward" and follows == "backward":
            phases.append((stretch.begin_ns, stretch.last_ns, "forward", step))
        follows = "" if stretch.begins_step else stretch.kind if stretch.kind == "backward" else follows
    return tuple(sorted([*optimizer, *_in_turn(phases)], key=lambda m: m.time_ns))


def _in_turn(phases: list[tuple[int, int, str, int]]) -> Iterator[Mark]:
    """Marks of phases that follow each other: stamps are in microseconds, and several events may share one."""
    last = 0
    for begin, end, kind, step in sorted(phases):
        begin = max(begin, last + 1)
        last = max(end, begin + 1)
        yield Mark(begin, kind, True, step)
        yield Mark(last, kind, False, step)


def _optimizer_marks(annotations: Iterable[Entry]) -> list[Mark]:
    marks, step, depth = [], 1, 0
    for a in sorted(annotations, key=lambda a: int(a["time_us"])):
        if not str(a["name"]).startswith("Optimizer.step#"):
            continue
        begin = a["stage"] == "START"
        depth += 1 if begin else -1
        name = str(a["name"]).removeprefix("Optimizer.step#").removesuffix(".step")
        marks.append(Mark(int(a["time_us"]) * 1000, "optimizer", begin, step, name))
        step += not begin and depth == 0
    return marks


def _stretches(trace: Sequence[Entry], borders: Sequence[int]) -> list[_Stretch]:
    """Runs of allocations of one kind; an optimizer step ends a run too."""
    found: list[_Stretch] = []
    kinds = _Kinds(any(e.get("frames") for e in trace))
    for e in trace:
        if e["action"] != "alloc":
            continue
        time_ns, kind = int(e["time_us"]) * 1000, kinds(e.get("frames") or ())
        last = found[-1] if found else None
        if (
            last is not None
            and last.kind == kind
            and bisect_right(borders, last.last_ns) == bisect_right(borders, time_ns)
        ):
            found[-1] = last._replace(last_ns=time_ns)
        else:
            new_step = last is not None and bisect_right(borders, last.last_ns) != bisect_right(borders, time_ns)
            found.append(_Stretch(kind, time_ns, time_ns, 0, new_step))
    stop = int(trace[-1]["time_us"]) * 1000 + 1 if trace else 0
    starts = [*(s.begin_ns for s in found), stop][1:]
    limits = [next((b for b in borders if b > s.last_ns), stop) for s in found]
    return [s._replace(end_ns=min(start, limit)) for s, start, limit in zip(found, starts, limits, strict=True)]


class _Kinds:
    """``forward``, ``backward`` or neither, by the frames of an allocation."""

    def __init__(self, recorded: bool) -> None:
        self._silent = "backward" if recorded else ""  # stacks were recorded, and this one has none
        self._known: dict[int, tuple[Sequence[Entry], str]] = {}  # keeps the frames, so that their id stays taken

    def __call__(self, frames: Sequence[Entry]) -> str:
        if not frames:
            return self._silent
        known = self._known.get(id(frames))
        if known is None:
            known = self._known[id(frames)] = (frames, self._kind(frames))
        return known[1]

    def _kind(self, frames: Sequence[Entry]) -> str:
        names = [str(f.get("name", "")) for f in frames[:_SEARCHED]]
        if any(_ENGINE in name or name in _RECOMPUTED for name in names):
            return "backward"
        return "forward" if "forward" in names or "_call_impl" in names else ""

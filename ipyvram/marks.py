"""Marks come in; stretches of time go out: the phases of each step, and which module ran when."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass

from ipyvram.recording import Claim, Mark


@dataclass(frozen=True, slots=True)
class PhaseSpan:
    """A phase of a step, times in ns. ``forward`` reaches to the next phase: the loss belongs to it."""

    begin_ns: int
    end_ns: int
    name: str
    step: int
    grad: bool
    body_end_ns: int  #: when the root module itself returned


def phase_spans(marks: tuple[Mark, ...], stop_ns: int) -> tuple[PhaseSpan, ...]:
    """Marks as stretches that do not overlap.

    A forward inside a backward is a recomputation and no phase of its own; forward and backward inside an optimizer step
    are (``optimizer.step(closure)``): the step's own phase is what follows the last of them.
    """
    spans: list[PhaseSpan] = []
    open_marks: list[Mark] = []
    current: Mark | None = None
    begin = 0
    for mark in (m for m in marks if m.kind != "module"):
        if mark.begin:
            open_marks.append(mark)
        else:
            at = next((i for i in reversed(range(len(open_marks))) if open_marks[i].kind == mark.kind), None)
            if at is not None:
                del open_marks[at:]
        phase = next((m for m in open_marks if m.kind != "optimizer"), open_marks[0] if open_marks else None)
        if phase is current:
            continue
        before_closure = current is not None and current.kind == "optimizer" and phase is not None
        if current is not None and not before_closure:
            spans.append(_span(current, begin, mark.time_ns))
        current, begin = phase, mark.time_ns
    if current is not None:  # the cell ended, or tracing stopped, inside a phase
        spans.append(_span(current, begin, stop_ns))
    return _merge_forwards(spans)


def _span(mark: Mark, begin_ns: int, end_ns: int) -> PhaseSpan:
    return PhaseSpan(begin_ns, end_ns, mark.kind, mark.step, mark.grad, end_ns)


def _merge_forwards(spans: list[PhaseSpan]) -> tuple[PhaseSpan, ...]:
    """Consecutive forwards of one step are one (a criterion is a module too), reaching to the backward that follows."""
    merged: list[PhaseSpan] = []
    for span in spans:
        last = merged[-1] if merged else None
        if (
            last
            and last.name == "forward"
            and last.step == span.step
            and last.grad == span.grad
            and span.name == "forward"
            and span.grad
        ):
            merged[-1] = PhaseSpan(last.begin_ns, span.end_ns, "forward", last.step, last.grad, span.end_ns)
            continue
        if last and last.name == "forward" and last.step == span.step and span.name == "backward":
            merged[-1] = PhaseSpan(last.begin_ns, span.begin_ns, "forward", last.step, last.grad, last.body_end_ns)
        merged.append(span)
    return tuple(merged)


def phase_at(phases: tuple[PhaseSpan, ...], begins: list[int], time_ns: int) -> PhaseSpan | None:
    """The phase that was running at a time; ``begins`` are those of the phases."""
    i = bisect_right(begins, time_ns) - 1
    return phases[i] if i >= 0 and time_ns < phases[i].end_ns else None


def root_forwards(marks: tuple[Mark, ...]) -> list[tuple[int, int, bool]]:
    """Begin and end in ns of each call of a root module outside backward, and whether autograd recorded it."""
    found: list[tuple[int, int, bool]] = []
    begin, backwards = None, 0
    for mark in marks:
        if mark.kind == "backward":
            backwards = max(0, backwards + (1 if mark.begin else -1))
        elif mark.kind == "forward" and not backwards:
            if mark.begin:
                begin = mark
            elif begin is not None:
                found.append((begin.time_ns, mark.time_ns, begin.grad))
                begin = None
    return found


def forwards_of_a_backward(marks: tuple[Mark, ...]) -> int:
    """How often one root module ran under autograd before one backward, at most: once for each state of an episode, say."""
    most, calls, backwards = 0, dict[str, int](), 0
    for mark in marks:
        if mark.kind == "backward":
            if mark.begin and not backwards:
                most = max([most, *calls.values()])
                calls.clear()
            backwards = max(0, backwards + (1 if mark.begin else -1))
        elif mark.kind == "forward" and mark.begin and mark.grad and not backwards:
            calls[mark.name] = calls.get(mark.name, 0) + 1
    return most


def cut_forwards(marks: tuple[Mark, ...]) -> list[tuple[int, int]]:
    """Begin and end in ns of each call of a root module under autograd that an error ended."""
    begins = [mark.time_ns for mark in marks if mark.kind == "forward" and mark.begin]
    ends = [mark.time_ns for mark in marks if mark.kind == "forward" and mark.raised and mark.grad]
    places = [bisect_right(begins, end) for end in ends]  # 0: it began before the trace
    return [(begins[place - 1] if place else marks[0].time_ns, end) for place, end in zip(places, ends, strict=True)]


def optimizer_steps(marks: tuple[Mark, ...]) -> list[tuple[int, int]]:
    """Begin and end in ns of each whole optimizer step, with the forwards and backwards of its closure."""
    found: list[tuple[int, int]] = []
    begin, depth = 0, 0
    for mark in (m for m in marks if m.kind == "optimizer"):
        depth += 1 if mark.begin else -1
        if mark.begin and depth == 1:
            begin = mark.time_ns
        elif not mark.begin and depth <= 0:
            found.append((begin, mark.time_ns))
            depth = 0
    return found


def step_ends(phases: tuple[PhaseSpan, ...]) -> list[int]:
    """Times at which a step's first phase after the last optimizer phase begins: the borders between steps."""
    borders: list[int] = []
    for before, after in itertools.pairwise(phases):
        if after.step != before.step:
            borders.append(before.end_ns)
    return borders


def rounds(steps: list[int], marks: tuple[Mark, ...]) -> list[int]:
    """Borders between the rounds of a loop: those of steps; without an optimizer, calls of the root module that ran first."""
    begins = [m for m in marks if m.kind == "forward" and m.begin]
    return steps or [m.time_ns for m in begins if m.name == begins[0].name]


def models(claims: tuple[Claim, ...]) -> frozenset[str]:
    """Variables (or classes) of the modules that own parameters; a criterion owns none."""
    return frozenset(c.module for c in claims if c.category == "parameters" and c.module)


def module_at(marks: tuple[Mark, ...], time_ns: int, found: frozenset[str] = frozenset()) -> str:
    """Path of the module that was running at a time; empty outside."""
    track = module_track(marks, found)
    place = bisect_right(track.times, time_ns) - 1
    return track.paths[place] if place >= 0 else ""


def _split(name: str, found: frozenset[str]) -> tuple[str, str]:
    """The model that a root module is, or is a part of, and the path there; nothing of what is in no model."""
    roots = [model for model in found if name == model or name.startswith(model + ".")]
    root = max(roots, key=len, default="")
    return root, name[len(root) + 1 :] if root else ""


@dataclass(frozen=True, slots=True)
class ModuleTrack:
    """Which module ran when: from ``times[i]`` on it was ``paths[i]``, whose forward ended at ``ends[i]`` (0: none ran)."""

    times: list[int]
    paths: list[str]
    ends: list[int]


def module_track(marks: tuple[Mark, ...], found: frozenset[str] = frozenset()) -> ModuleTrack:
    """The innermost module at any time; a model itself has the empty path.

    Parameters
    ----------
    found : frozenset of str
        See `models`; where there is more than one, their names begin their modules' paths.
    """
    times: list[int] = []
    paths: list[str] = []
    ends: list[int] = []
    prefix = ""
    stack: list[tuple[str, list[int]]] = []  # path, and the entries of the track that wait for its end
    for mark in marks:
        if mark.kind not in ("module", "forward"):
            continue
        if mark.begin:
            path = mark.name
            if mark.kind == "forward":
                root, path = _split(mark.name, found)
                prefix = root if len(found) > 1 else ""
            stack.append((f"{prefix}.{path}".strip("."), []))
        elif stack:
            for entry in stack.pop()[1]:
                ends[entry] = mark.time_ns
        times.append(mark.time_ns)
        paths.append(stack[-1][0] if stack else "")
        ends.append(0)
        if stack:
            stack[-1][1].append(len(times) - 1)
    return ModuleTrack(times, paths, ends)

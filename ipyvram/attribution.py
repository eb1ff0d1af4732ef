"""The category of every allocation, at every instant: claims first, then what its birth and death tell.

Rules, in order (the first that applies wins; `docs/architecture.md` gives the reasons):

1. claimed as parameter, buffer, optimizer state, gradient: that, for life;
2. claimed as input: that, unless it was claimed as an output before (a discriminator fed by a generator);
3. saved for backward: *activation* until the graph lets go; data that was there before the step's forward, or that several
   steps save, is an *input*; what outlives its graph is an *output*;
4. claimed as output: that;
5. the size of a cuBLAS workspace, and never freed: *workspace*;
6. born in forward under autograd and alive when forward ends, or born in a recomputed module and alive when it ends:
   *activation* (a checkpoint's input, a recomputed activation);
7. held by a variable: data (*input*) when it was there before the first forward, else a result (*output*);
8. freed within the step it was born in: *temporary*;
9. anything else: *other*. Nothing is spread.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipyvram.ledger import Ints, Ledger, account
from ipyvram.recording import CATEGORIES, Claim, Mark, Recording

INDEX = {name: i for i, name in enumerate(CATEGORIES)}
RELEASED = "released"
_FOR_LIFE = ("parameters", "buffers", "optimizer_state", "gradients")
_UNKNOWN = -1


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Who counts where: allocation ``row`` belongs to ``category`` (index into `CATEGORIES`) for ``begin <= k < end``."""

    row: Ints
    category: Ints
    begin: Ints
    end: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Categories, names and places of every allocation of one ledger.

    Attributes
    ----------
    spans : Spans
        Every instant of every allocation exactly once.
    claims : dict of int to tuple of Claim
        Row → its claims, in order of time.
    module : tuple of str
        Row → path of the module that was running when it was made.
    phase : tuple of str
        Row → ``forward``, ``backward``, ``optimizer`` or an empty string.
    """

    spans: Spans
    claims: dict[int, tuple[Claim, ...]]
    module: tuple[str, ...]
    phase: tuple[str, ...]

    def accounts(self, ledger: Ledger) -> dict[str, Ints]:
        """Category → bytes at each instant; the sum over categories is `Ledger.allocated`."""
        s, result = self.spans, {}
        for name, i in INDEX.items():
            rows = s.category == i
            result[name] = account(s.begin[rows], s.end[rows], ledger.bytes[s.row[rows]], ledger.instants)
        return result

    def category_at(self, instant: int) -> dict[int, str]:
        """Row → category of everything live at an instant."""
        s = self.spans
        live = np.flatnonzero((s.begin <= instant) & (s.end > instant))
        return {int(s.row[i]): CATEGORIES[s.category[i]] for i in live}


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
    """Marks as stretches that do not overlap; nested marks (a recomputed forward inside backward) are not phases."""
    spans: list[PhaseSpan] = []
    open_mark: Mark | None = None
    depth = 0
    for mark in marks:
        if mark.kind == "module":
            continue
        if mark.begin:
            depth += 1
            if depth == 1:
                open_mark = mark
        else:
            depth = max(0, depth - 1)
            if depth == 0 and open_mark is not None:
                o = open_mark
                spans.append(PhaseSpan(o.time_ns, mark.time_ns, o.kind, o.step, o.grad, mark.time_ns))
                open_mark = None
    if open_mark is not None:  # the cell ended, or tracing stopped, inside a phase
        spans.append(PhaseSpan(open_mark.time_ns, stop_ns, open_mark.kind, open_mark.step, open_mark.grad, stop_ns))
    return _merge_forwards(spans)


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


def attribute(recording: Recording, ledger: Ledger, device: str) -> Attribution:
    """Apply the rules of this module to one ledger."""
    return _Attributor(recording, ledger, device).run()


class _Attributor:
    def __init__(self, recording: Recording, ledger: Ledger, device: str) -> None:
        self.ledger = ledger
        self.count = len(ledger.born)
        self.phases = phase_spans(recording.marks, recording.stop_ns)
        self.starts = [p.begin_ns for p in self.phases]
        self.born_ns = ledger.time_ns[np.minimum(ledger.born, ledger.instants - 1)]
        last = ledger.time_ns[-1] + 1
        self.died_ns = np.where(
            ledger.died < ledger.instants, ledger.time_ns[np.minimum(ledger.died, ledger.instants - 1)], last
        )
        self.never = ledger.died >= ledger.instants
        self.claims = self._match([c for c in recording.claims if c.device == device])
        self.module_times, self.module_paths, self.module_ends = _module_track(recording.marks)
        self.workspace = int(recording.environment.get("cublas_workspace_bytes", "0") or 0)
        self.first_forward = next((p.begin_ns for p in self.phases if p.name == "forward"), None)
        self.steps = _step_ends(self.phases)

    def _match(self, claims: list[Claim]) -> dict[int, tuple[Claim, ...]]:
        if not claims:
            return {}
        rows = self.ledger.find(
            np.array([c.address for c in claims], np.int64), np.array([c.time_ns for c in claims], np.int64)
        )
        matched: dict[int, list[Claim]] = {}
        for row, claim in zip(rows.tolist(), claims, strict=True):
            if row >= 0:
                matched.setdefault(row, []).append(claim)
        return {row: tuple(found) for row, found in matched.items()}

    def run(self) -> Attribution:
        born, died = self.ledger.born, self.ledger.died
        first = self._unclaimed()
        rows, second, switches = [], [], []  # allocations that change category once
        for row in self.claims:
            category, switch, after = self._claimed(row)
            if category != _UNKNOWN:
                first[row] = category
            if switch is not None and born[row] < switch < died[row]:
                rows.append(row)
                second.append(after)
                switches.append(switch)
        every = np.arange(self.count)
        changed, at = np.array(rows, np.int64), np.array(switches, np.int64)
        end = died.copy()
        end[changed] = at
        spans = Spans(
            row=np.r_[every, changed],
            category=np.r_[first, np.array(second, np.int64)],
            begin=np.r_[born, at],
            end=np.r_[end, died[changed]],
        )
        return Attribution(spans, self.claims, self._modules(), self._phases())

    # -- rules 1 to 4: claims ------------------------------------------------------------------------------------------

    def _claimed(self, row: int) -> tuple[int, int | None, int]:
        """First category, the instant at which it changes (None: never), and what it changes to."""
        claims = self.claims[row]
        kinds = {c.category for c in claims}
        for name in _FOR_LIFE:
            if name in kinds:
                return INDEX[name], None, 0
        result = next((c.category for c in claims if c.category in ("inputs", "outputs")), None)
        if result == "inputs" and "activations" in kinds and self._made_by_forward(row):
            result = "outputs"
        if result == "inputs":
            return INDEX["inputs"], None, 0
        if "activations" in kinds:
            if result is None and self._is_data(row, claims):
                return INDEX["inputs"], None, 0
            return INDEX["activations"], self._release(claims), INDEX["outputs"]
        if result is not None:
            return INDEX[result], None, 0
        return _UNKNOWN, None, 0

    def _made_by_forward(self, row: int) -> bool:
        phase = self._phase_at(int(self.born_ns[row]))
        return phase is not None and phase.name == "forward" and phase.grad and self.ledger.born[row] > 0

    def _is_data(self, row: int, claims: tuple[Claim, ...]) -> bool:
        """Saved for backward but not made by the forward that saved it: the batch, labels, masks, data sets."""
        saved = [c for c in claims if c.category == "activations"]
        if self.ledger.born[row] == 0:
            return True
        if len({bisect_right(self.steps, c.time_ns) for c in saved}) > 1:
            return True
        if self.first_forward is None:
            return False
        begin = max(
            (p.begin_ns for p in self.phases if p.name == "forward" and p.begin_ns <= saved[0].time_ns), default=None
        )
        return begin is not None and int(self.born_ns[row]) < begin

    def _release(self, claims: tuple[Claim, ...]) -> int | None:
        """The instant at which the last graph that saved this let go of it; None while one still holds it."""
        last_saved = max(c.time_ns for c in claims if c.category == "activations")
        released = next((c.time_ns for c in claims if c.category == RELEASED and c.time_ns > last_saved), None)
        return None if released is None else int(np.searchsorted(self.ledger.time_ns, released, side="right"))

    # -- rules 5 to 9: birth and death -----------------------------------------------------------------------------------

    def _unclaimed(self) -> Ints:
        """A category for every row, as if none were claimed."""
        born, died, ledger = self.born_ns, self.died_ns, self.ledger
        before = ledger.born == 0
        category = np.full(self.count, INDEX["other"], np.int64)
        step_of_birth, step_of_death = np.searchsorted(self.steps, born), np.searchsorted(self.steps, died)
        category[~self.never & (step_of_birth == step_of_death) & ~before] = INDEX["temporaries"]
        for row, claims in self.claims.items():  # rule 7: a variable holds it
            if any(c.name and not c.category for c in claims):
                early = self.first_forward is None or int(born[row]) < self.first_forward
                category[row] = (
                    INDEX["inputs"] if early and self.phases else INDEX["other"] if early else INDEX["outputs"]
                )
        for phase in self.phases:  # rule 6
            if phase.name == "forward" and phase.grad:
                inside = (born >= phase.begin_ns) & (born < phase.body_end_ns) & (died > phase.end_ns) & ~before
                follows = next((p for p in self.phases if p.begin_ns >= phase.end_ns), None)
                if follows is not None and follows.name == "backward":
                    category[inside & ~self.never & (died <= follows.end_ns)] = INDEX["activations"]
                elif follows is None:
                    category[inside & self.never] = INDEX["activations"]
        category[self._recomputed()] = INDEX["activations"]
        if self.workspace:
            category[(ledger.bytes == -(-self.workspace // 512) * 512) & self.never] = INDEX["workspaces"]
        return category

    def _recomputed(self) -> NDArray[np.bool_]:
        """Born in a module's forward during backward, and alive after that module returned: a recomputed activation."""
        found = np.zeros(self.count, bool)
        if not self.module_times:
            return found
        place = np.searchsorted(np.array(self.module_times), self.born_ns, side="right") - 1
        ends = np.array([*self.module_ends, 0])[place]
        inside = (place >= 0) & (ends > 0) & (self.died_ns > ends) & (self.ledger.born > 0)
        for phase in self.phases:
            if phase.name == "backward":
                found |= (
                    inside
                    & (self.born_ns >= phase.begin_ns)
                    & (self.born_ns < phase.end_ns)
                    & (self.died_ns <= phase.end_ns)
                )
        return found

    # -- where -------------------------------------------------------------------------------------------------------

    def _phase_at(self, time_ns: int) -> PhaseSpan | None:
        i = bisect_right(self.starts, time_ns) - 1
        return self.phases[i] if i >= 0 and time_ns < self.phases[i].end_ns else None

    def _phases(self) -> tuple[str, ...]:
        born = self.ledger.born.tolist()
        found = (self._phase_at(t) if b else None for t, b in zip(self.born_ns.tolist(), born, strict=True))
        return tuple(p.name if p else "" for p in found)

    def _modules(self) -> tuple[str, ...]:
        if not self.module_times:
            return ("",) * self.count
        place = np.searchsorted(np.array(self.module_times), self.born_ns, side="right") - 1
        return tuple(
            self.module_paths[i] if i >= 0 and b else ""
            for i, b in zip(place.tolist(), self.ledger.born.tolist(), strict=True)
        )


def _step_ends(phases: tuple[PhaseSpan, ...]) -> list[int]:
    """Times at which a step's first phase after the last optimizer phase begins: the borders between steps."""
    borders: list[int] = []
    for before, after in itertools.pairwise(phases):
        if after.step != before.step:
            borders.append(before.end_ns)
    return borders


def _module_track(marks: tuple[Mark, ...]) -> tuple[list[int], list[str], list[int]]:
    """Times at which the running module changes, its path from each, and when that module's forward ends (0: none runs)."""
    times: list[int] = []
    paths: list[str] = []
    ends: list[int] = []
    stack: list[tuple[str, list[int]]] = []  # path, and the entries of the track that wait for its end
    for mark in marks:
        if mark.kind not in ("module", "forward"):
            continue
        if mark.begin:
            stack.append((mark.name if mark.kind == "module" else "", []))
        elif stack:
            for entry in stack.pop()[1]:
                ends[entry] = mark.time_ns
        times.append(mark.time_ns)
        paths.append(stack[-1][0] if stack else "")
        ends.append(0)
        if stack:
            stack[-1][1].append(len(times) - 1)
    return times, paths, ends

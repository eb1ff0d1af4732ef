"""The category of every allocation, at every instant: claims first, then what its birth and death tell.

Rules, in order (the first that applies wins; `docs/architecture.md` gives the reasons):

1. claimed as parameter, buffer, optimizer state, gradient: that, for life; but a leaf that is only a module's argument
   (adversarial examples, gradient penalties) is an input;
2. claimed as input: that, unless the forward made it (a discriminator fed by a generator); a plain attribute of a module
   before its forwards: *buffer*;
3. saved for backward: *activation* until the graph lets go; what was handed in, or was there before the forward that
   saved it, is an *input*; what outlives its graph is an *output*;
4. claimed as output: that, unless the forward itself let it go, or only the graph held it (*activation*); held in
   a dict under the name of a parameter, in a container with one for each, or cloned outside any phase in the shape of one
   and kept beyond the step: *parameter* (an average of the weights, a best state); *gradient* if made after a backward and
   before the step that follows; *optimizer state* if written or computed where the program steps by hand;
5. the size of a workspace of cuBLAS, or the first of the size of cuBLASLt's, and never freed: *workspace*; the size of a bucket in which several processes gather
   gradients, and there in more than one step: *gradient*;
6. born in a phase and alive when it ends. Forward under autograd: *activation* if it ends with the backward that follows
   (a checkpoint's input), else *output*; forward without autograd: *output* (*temporary* if it is a
   parameter in half precision, as autocast keeps it); backward: *gradient* (of `autograd.grad`);
   optimizer step (with a closure: outside the phases in it): *optimizer state*. Born in a recomputed module and alive when
   that ends, or live when an error ended its forward under autograd: *activation*;
7. held by a variable: data (*input*) when it was there before the first forward and no model of an earlier cell returned it,
   else a result (*output*); made outside
   any phase and still there when a model runs: the batch (*input*);
8. freed within the step it was born in, or born in the backward or optimizer phase that an error cut short: *temporary*;
9. anything else: *other*. Nothing is spread.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipyvram.ledger import Ints, Ledger, account
from ipyvram.marks import (
    PhaseSpan,
    cut_forwards,
    models,
    module_track,
    optimizer_steps,
    phase_spans,
    root_forwards,
    rounds,
    step_ends,
)
from ipyvram.recording import CATEGORIES, Claim, Recording
from ipyvram.unclaimed import INDEX, Unclaimed

#: Private categories of claims, see `probes.graph_claims`, `probes.copies`, `probes.member_claims`, `probes.variable_claims`.
RELEASED, DATA, COPY, STATE, KEPT, ATTRIBUTE = "released", "data", "copy", "state", "kept", "attribute"
RESULT_BEFORE = "result"
_FOR_LIFE = ("parameters", "buffers", "optimizer_state", "gradients")
_SAVED = ("activations", DATA, KEPT)
_UNKNOWN = -1
_COPYING = ("aten.clone", "aten._to_copy")
_LOADING = (
    "rand",
    "zeros",
    "ones",
    "full",
    "empty",
    "arange",
    "eye",
    "linspace",
    "normal",
    "_to_copy",
    "lift",
    "stack",
    "cat",
)


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Who counts where: allocation ``row`` belongs to ``category`` (index into `CATEGORIES`) for ``begin <= k < end``."""

    row: Ints
    category: Ints
    begin: Ints
    end: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """A name for every row, as an index into the few that there are; -1 for none."""

    index: Ints
    names: tuple[str, ...]

    def __getitem__(self, row: int) -> str:
        at = self.index[row]
        return self.names[at] if at >= 0 else ""


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Categories, names and places of every allocation of one ledger.

    Attributes
    ----------
    spans : Spans
        Every instant of every allocation exactly once.
    claims : dict of int to tuple of Claim
        Row → its claims, in order of time.
    modules, phases : Places
        Row → path of the module that was running when it was made; ``forward``, ``backward``, ``optimizer``, ``before`` the
        trace, or nothing.
    cast : array of bool
        Row → whether it is autocast's copy of a parameter.
    """

    spans: Spans
    claims: dict[int, tuple[Claim, ...]]
    modules: Places
    phases: Places
    cast: npt.NDArray[np.bool_]

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


def attribute(recording: Recording, ledger: Ledger, device: str) -> Attribution:
    """Apply the rules of this module to one ledger."""
    return _Attributor(recording, ledger, device).run()


class _Attributor:
    def __init__(self, recording: Recording, ledger: Ledger, device: str) -> None:
        self.ledger = ledger
        self.count = len(ledger.born)
        self.phases = phase_spans(recording.marks, recording.stop_ns)
        self.cut_short = self.phases[-1] if self.phases and recording.error is not None else None
        self.starts = [p.begin_ns for p in self.phases]
        self.forwards = [p.begin_ns for p in self.phases if p.name == "forward"]
        self.born_ns = ledger.time_ns[np.minimum(ledger.born, ledger.instants - 1)]
        last = max(int(ledger.time_ns[-1]), recording.stop_ns) + 1  # later than any phase, not only than any event
        self.died_ns = np.where(
            ledger.died < ledger.instants, ledger.time_ns[np.minimum(ledger.died, ledger.instants - 1)], last
        )
        self.claims = self._match([c for c in recording.claims if c.device == device])
        self.origins = recording.origins
        operators = [origin.op.removeprefix("aten.") for origin in recording.origins]
        # The last: unknown, -1.
        self.loaded = np.array([not op or op.startswith(_LOADING) for op in operators] + [False])
        self.modules = module_track(recording.marks, models(recording.claims))
        buckets = recording.environment.get("gradient_bucket_bytes", "")
        self.buckets = tuple(int(size) for size in buckets.split(",") if size)
        self.workspace = int(recording.environment.get("cublas_workspace_bytes", "0") or 0)
        self.lt_workspace = int(recording.environment.get("cublaslt_workspace_bytes", "0") or 0)
        stacks = recording.environment.get("stacks_of_threads", "")
        # What a thread of the program loads meanwhile is none of what the model makes.
        self.aside = np.isin(ledger.stack, [int(stack) for stack in stacks.split(",") if stack])
        self.autocast = bool(recording.environment.get("autocast_without_gradients"))
        self.steps, self.marks = step_ends(self.phases), recording.marks
        self.roots = root_forwards(recording.marks)
        self.cut = cut_forwards(recording.marks)
        self.stepping = [(begin, end) for begin, end in optimizer_steps(recording.marks) if begin < end]  # else by hand
        self.with_gradients = any(c.category == "gradients" for c in recording.claims)
        self.trained = [(begin, end) for begin, end, grad in self.roots if grad]
        self.trained_begins = [begin for begin, _ in self.trained]

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
        self.cast = self._cast(self.autocast)
        first = self._unclaimed().categories()
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
        return Attribution(spans, self.claims, self._modules(), self._phases(), self.cast)

    def _unclaimed(self) -> Unclaimed:
        named, claimed = np.zeros(self.count, bool), np.zeros(self.count, bool)
        claimed[list(self.claims)] = True
        shapes = {c.shape for claims in self.claims.values() for c in claims if c.category in ("parameters", "buffers")}
        copied = np.array(
            [o.op == "aten.clone" and bool(o.shape) and o.shape in shapes for o in self.origins] + [False]
        )
        named[[row for row, claims in self.claims.items() if any(c.name and not c.category for c in claims)]] = True
        return Unclaimed(
            ledger=self.ledger,
            born_ns=self.born_ns,
            died_ns=self.died_ns,
            named=named,
            claimed=claimed,
            loaded=self.loaded[self.ledger.origin],
            copied=copied[self.ledger.origin],
            cast=self.cast,
            phases=self.phases,
            cut_short=self.cut_short,
            borders=self.steps,
            rounds=rounds(self.steps, self.marks),
            roots=self.roots,
            cut=self.cut,
            stepping=self.stepping,
            modules=self.modules,
            aside=self.aside,
            workspace=self.workspace,
            lt_workspace=self.lt_workspace,
            buckets=self.buckets,
        )

    def _cast(self, autocast: bool) -> npt.NDArray[np.bool_]:
        """What autocast keeps of a parameter until it is left, in a forward without gradients: made in the parameter's module, as
        large as that is in half precision, and held by nobody."""
        found = np.zeros(self.count, bool)
        if not autocast:
            return found
        halves = dict[str, set[int]]()
        for c in (c for claims in self.claims.values() for c in claims if c.category == "parameters" and c.shape):
            if c.dtype == "float32":
                path = c.name.rpartition(".")[0]
                for name in (path, f"{c.module}.{path}".strip(".")):  # of several models, paths begin with theirs
                    halves.setdefault(name, set()).add(2 * math.prod(c.shape or ()))
        modules = self._modules()
        for row in np.flatnonzero(np.isin(self.ledger.requested, list(set().union(*halves.values())))).tolist():
            phase = self._phase_at(int(self.born_ns[row]))
            outlives = (
                phase is not None and phase.name == "forward" and not phase.grad and self.died_ns[row] > phase.end_ns
            )
            if outlives and row not in self.claims and self.ledger.requested[row] in halves.get(modules[row], ()):
                origin = self.ledger.origin[row]
                found[row] = origin < 0 or self.origins[origin].op in _COPYING
        return found

    # -- rules 1 to 4: claims ------------------------------------------------------------------------------------------

    def _claimed(self, row: int) -> tuple[int, int | None, int]:
        """First category, the instant at which it changes (None: never), and what it changes to."""
        claims = self.claims[row]
        kinds = {c.category for c in claims}
        for name in _FOR_LIFE:
            if name in kinds and not ("inputs" in kinds and _is_input_too(name, claims)):
                return INDEX[name], None, 0
        saved = [c for c in claims if c.category in _SAVED]
        result = next((c.category for c in claims if c.category in ("inputs", "outputs")), None)
        if result == "inputs" and saved and self._made_by_forward(row):
            result = "outputs"
        if result == "inputs":
            return INDEX["inputs"], None, 0
        if ATTRIBUTE in kinds:
            return INDEX["buffers"], None, 0
        if COPY in kinds or STATE in kinds:
            return INDEX[self._copied(row, STATE in kinds)], None, 0
        if saved:
            if result is None and self._is_data(row, saved):
                return INDEX["inputs"], None, 0
            return INDEX["activations"], self._release(claims, saved), INDEX["outputs"]
        if result is not None and not self._ended_with_forward(row, claims):
            return INDEX["activations" if self._ended_with_backward(row, claims) else result], None, 0
        if RESULT_BEFORE in kinds:
            return INDEX["outputs"], None, 0
        return _UNKNOWN, None, 0

    def _copied(self, row: int, written: bool) -> str:
        """What a tensor is that stands in a container with one for each parameter.

        An optimizer needs none of the program's: then it is a copy of gradients when it was made while these waited for their
        step, else of parameters. Without one the program updates them itself, with what it computed or writes in place; but
        where a backward leaves no gradient, it is this that is trained, through a function of the parameters.
        """
        last = bisect_right(self.starts, int(self.born_ns[row])) - 1
        phase = self.phases[last] if last >= 0 and self.ledger.born[row] else None
        if phase is not None and phase.name == "backward" and (self.stepping or self.born_ns[row] < phase.end_ns):
            return "gradients"
        op = self.origins[self.ledger.origin[row]].op if self.ledger.origin[row] >= 0 else ""
        without = not self.with_gradients and any(p.name == "backward" for p in self.phases)
        changes = (self.with_gradients and bool(op)) or (written and not without)
        return "optimizer_state" if changes and not self.stepping and op not in _COPYING else "parameters"

    def _ended_with_forward(self, row: int, claims: tuple[Claim, ...]) -> bool:
        """One module's output that was only another one's input."""
        phase = self._born_in(row)
        kept = any(c.name and not c.category for c in claims)
        return not kept and phase is not None and phase.name == "forward" and self.died_ns[row] < phase.body_end_ns

    def _ended_with_backward(self, row: int, claims: tuple[Claim, ...]) -> bool:
        """A result that only the graph held, and let go of within the engine: where a checkpoint begins."""
        born, died = self._born_in(row), self._phase_at(int(self.died_ns[row]))
        kept = any(c.name and not c.category for c in claims)
        if kept or born is None or died is None or not born.grad:
            return False
        return born.name == "forward" and died.name == "backward" and self.died_ns[row] < died.end_ns

    def _made_by_forward(self, row: int) -> bool:
        """Whether a root module under autograd made it (not what the program made between two of them)."""
        i = bisect_right(self.trained_begins, int(self.born_ns[row])) - 1
        within = i >= 0 and int(self.born_ns[row]) < self.trained[i][1]
        return within and bool(self.ledger.born[row] > 0) and not self.aside[row]

    def _is_data(self, row: int, saved: list[Claim]) -> bool:
        """Saved for backward but not made by the forward that saved it: the batch, labels, masks, data sets."""
        if self.ledger.born[row] == 0:
            return all(c.category != KEPT for c in saved)
        if any(c.category == DATA for c in saved):
            return not self._made_by_forward(row)
        if not all(c.name.endswith(".tensors") for c in saved):
            return False  # an operator saved its result, or something with a history
        if len({bisect_right(self.steps, c.time_ns) for c in saved}) > 1:
            return True
        forward = bisect_right(self.forwards, saved[0].time_ns) - 1
        return forward >= 0 and int(self.born_ns[row]) < self.forwards[forward]

    def _release(self, claims: tuple[Claim, ...], saved: list[Claim]) -> int | None:
        """The instant at which the last graph that saved this let go of it; None while one still holds it."""
        last_saved = max(c.time_ns for c in saved)
        released = next((c.time_ns for c in claims if c.category == RELEASED and c.time_ns > last_saved), None)
        return None if released is None else int(np.searchsorted(self.ledger.time_ns, released, side="right"))

    # -- where -------------------------------------------------------------------------------------------------------

    def _born_in(self, row: int) -> PhaseSpan | None:
        before = self.ledger.born[row] == 0 or self.aside[row]
        return None if before else self._phase_at(int(self.born_ns[row]))

    def _phase_at(self, time_ns: int) -> PhaseSpan | None:
        i = bisect_right(self.starts, time_ns) - 1
        return self.phases[i] if i >= 0 and time_ns < self.phases[i].end_ns else None

    def _phases(self) -> Places:
        place = np.searchsorted(np.array(self.starts, np.int64), self.born_ns, side="right") - 1
        ends = np.array([p.end_ns for p in self.phases] + [0], np.int64)
        within = (place >= 0) & (self.born_ns < ends[place]) & (self.ledger.born > 0) & ~self.aside
        index = np.where(self.ledger.born == 0, len(self.phases), np.where(within, place, -1))
        return Places(index, (*(p.name for p in self.phases), "before"))

    def _modules(self) -> Places:
        place = np.searchsorted(np.array(self.modules.times, np.int64), self.born_ns, side="right") - 1
        return Places(np.where((self.ledger.born > 0) & ~self.aside, place, -1), tuple(self.modules.paths))


def _is_input_too(category: str, claims: tuple[Claim, ...]) -> bool:
    """Whether a claim for life is weaker than the one as input.

    Nothing but its wish for a gradient makes it a parameter: no model and no optimizer holds it. Or it was an input first:
    the tokens whose memory is the indices of a sparse gradient.
    """
    if category == "parameters":
        return not any(c.module for c in claims if c.category == "parameters")
    first = next(c.category for c in claims if c.category in (category, "inputs"))
    return category == "gradients" and first == "inputs"

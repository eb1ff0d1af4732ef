"""The category of every allocation, at every instant: claims first, then what its birth and death tell.

Rules, in order (the first that applies wins; `docs/architecture.md` gives the reasons):

1. claimed as parameter, buffer, optimizer state, gradient, or as what a library keeps (*workspace*): that, for life; but a leaf that is only a module's argument
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
from dataclasses import dataclass

import numpy as np

from ipyvram.claimed import COPYING, Claimed, Claims, match
from ipyvram.ledger import Ints, Ledger, account
from ipyvram.marks import (
    cut_forwards,
    models,
    module_track,
    optimizer_steps,
    phase_at,
    phase_spans,
    root_forwards,
    rounds,
    step_ends,
)
from ipyvram.recording import CATEGORIES, Origin, Recording
from ipyvram.unclaimed import INDEX, Flags, Unclaimed

#: Operators that compute nothing from tensors begin so.
_LOADING = (
    "rand", "zeros", "ones", "full", "empty", "arange", "eye", "linspace", "normal", "_to_copy", "lift", "stack", "cat",
)  # fmt: skip


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
    claims : Claims
    modules, phases : Places
        Row → path of the module that was running when it was made; ``forward``, ``backward``, ``optimizer``, ``before`` the
        trace, or nothing.
    cast : array of bool
        Row → whether it is autocast's copy of a parameter.
    """

    spans: Spans
    claims: Claims
    modules: Places
    phases: Places
    cast: Flags

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
        self.recording, self.ledger = recording, ledger
        self.phases = phase_spans(recording.marks, recording.stop_ns)
        self.begins = [p.begin_ns for p in self.phases]
        self.born_ns = ledger.time_ns[np.minimum(ledger.born, ledger.instants - 1)]
        last = max(int(ledger.time_ns[-1]), recording.stop_ns) + 1  # later than any phase, not only than any event
        self.died_ns = np.where(
            ledger.died < ledger.instants, ledger.time_ns[np.minimum(ledger.died, ledger.instants - 1)], last
        )
        self.claims = match([c for c in recording.claims if c.device == device], ledger)
        # What a thread of the program loads meanwhile is none of what the model makes.
        self.aside = np.isin(ledger.stack, _numbers(recording.environment.get("stacks_of_threads", "")))
        self.stepping = [(begin, end) for begin, end in optimizer_steps(recording.marks) if begin < end]  # else by hand
        self.roots = root_forwards(recording.marks)
        self.track = module_track(recording.marks, models(recording.claims))
        self.modules = self._modules()
        self.cast = self._cast() if recording.environment.get("autocast_without_gradients") else self._rows([])

    def run(self) -> Attribution:
        born, died = self.ledger.born, self.ledger.died
        first, claimed = self._unclaimed().categories(), self._claimed()
        rows, second, switches = [], [], []  # allocations that change category once
        for row in self.claims:
            course = claimed.course(row)
            if course is None:
                continue
            first[row] = course.first
            if course.switch is not None and born[row] < course.switch < died[row]:
                rows.append(row)
                second.append(course.after)
                switches.append(course.switch)
        every = np.arange(len(born))
        changed, at = np.array(rows, np.int64), np.array(switches, np.int64)
        end = died.copy()
        end[changed] = at
        spans = Spans(
            row=np.r_[every, changed],
            category=np.r_[first, np.array(second, np.int64)],
            begin=np.r_[born, at],
            end=np.r_[end, died[changed]],
        )
        return Attribution(spans, self.claims, self.modules, self._phases(), self.cast)

    def _claimed(self) -> Claimed:
        return Claimed(
            claims=self.claims,
            ledger=self.ledger,
            born_ns=self.born_ns,
            died_ns=self.died_ns,
            aside=self.aside,
            phases=self.phases,
            stepping=self.stepping,
            origins=self.recording.origins,
            trained=[(begin, end) for begin, end, grad in self.roots if grad],
            with_gradients=any(c.category == "gradients" for c in self.recording.claims),
        )

    def _unclaimed(self) -> Unclaimed:
        marks, environment, steps = self.recording.marks, self.recording.environment, step_ends(self.phases)
        named = [row for row, claims in self.claims.items() if any(c.name and not c.category for c in claims)]
        return Unclaimed(
            ledger=self.ledger,
            born_ns=self.born_ns,
            died_ns=self.died_ns,
            named=self._rows(named),
            claimed=self._rows(list(self.claims)),
            loaded=self._made_by([_loads(o) for o in self.recording.origins]),
            copied=self._copied(),
            cast=self.cast,
            phases=self.phases,
            cut_short=self.phases[-1] if self.phases and self.recording.error is not None else None,
            borders=steps,
            rounds=rounds(steps, marks),
            roots=self.roots,
            cut=cut_forwards(marks),
            stepping=self.stepping,
            modules=self.track,
            aside=self.aside,
            workspace=int(environment.get("cublas_workspace_bytes", "0") or 0),
            lt_workspace=int(environment.get("cublaslt_workspace_bytes", "0") or 0),
            buckets=tuple(_numbers(environment.get("gradient_bucket_bytes", ""))),
        )

    def _copied(self) -> Flags:
        """Cloned in the shape of a parameter or buffer."""
        shapes = {c.shape for claims in self.claims.values() for c in claims if c.category in ("parameters", "buffers")}
        return self._made_by(
            [o.op == "aten.clone" and bool(o.shape) and o.shape in shapes for o in self.recording.origins]
        )

    def _made_by(self, origins: list[bool]) -> Flags:
        """The rows of these origins; not those of which none is known."""
        return np.array([*origins, False])[self.ledger.origin]

    def _rows(self, rows: list[int]) -> Flags:
        """These rows, as a flag for each that there is."""
        found = np.zeros(len(self.ledger.born), bool)
        found[rows] = True
        return found

    def _cast(self) -> Flags:
        """What autocast keeps of a parameter until it is left, in a forward without gradients: made in the parameter's module, as
        large as that is in half precision, and held by nobody."""
        found = self._rows([])
        halves = dict[str, set[int]]()
        for c in (c for claims in self.claims.values() for c in claims if c.category == "parameters" and c.shape):
            if c.dtype == "float32":
                path = c.name.rpartition(".")[0]
                for name in (path, f"{c.module}.{path}".strip(".")):  # of several models, paths begin with theirs
                    halves.setdefault(name, set()).add(2 * math.prod(c.shape or ()))
        for row in np.flatnonzero(np.isin(self.ledger.requested, list(set().union(*halves.values())))).tolist():
            phase = phase_at(self.phases, self.begins, int(self.born_ns[row]))
            outlives = (
                phase is not None and phase.name == "forward" and not phase.grad and self.died_ns[row] > phase.end_ns
            )
            if outlives and row not in self.claims and self.ledger.requested[row] in halves.get(self.modules[row], ()):
                origin = self.ledger.origin[row]
                found[row] = origin < 0 or self.recording.origins[origin].op in COPYING
        return found

    def _phases(self) -> Places:
        place = np.searchsorted(np.array(self.begins, np.int64), self.born_ns, side="right") - 1
        ends = np.array([p.end_ns for p in self.phases] + [0], np.int64)
        within = (place >= 0) & (self.born_ns < ends[place]) & (self.ledger.born > 0) & ~self.aside
        index = np.where(self.ledger.born == 0, len(self.phases), np.where(within, place, -1))
        return Places(index, (*(p.name for p in self.phases), "before"))

    def _modules(self) -> Places:
        place = np.searchsorted(np.array(self.track.times, np.int64), self.born_ns, side="right") - 1
        return Places(np.where((self.ledger.born > 0) & ~self.aside, place, -1), tuple(self.track.paths))


def _loads(origin: Origin) -> bool:
    """Whether an operator computes nothing from tensors; also where there was none."""
    op = origin.op.removeprefix("aten.")
    return not op or op.startswith(_LOADING)


def _numbers(text: str) -> list[int]:
    """``"1,2"`` of a recording's environment."""
    return [int(number) for number in text.split(",") if number]

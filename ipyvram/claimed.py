"""What was said of an allocation comes in; its category and what that turns into go out (rules 1 to 4 of `attribution`)."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from ipyvram.ledger import Ints, Ledger
from ipyvram.marks import PhaseSpan, phase_at, step_ends
from ipyvram.recording import CATEGORIES, Claim, Origin
from ipyvram.unclaimed import INDEX, Flags

#: Private categories of claims, see `probes.graph_claims`, `probes.copies`, `probes.member_claims`, `probes.variable_claims`.
RELEASED, DATA, COPY, STATE, KEPT, ATTRIBUTE = "released", "data", "copy", "state", "kept", "attribute"
RESULT_BEFORE = "result"
#: Operators that give a copy of what they are given.
COPYING = ("aten.clone", "aten._to_copy")

_FOR_LIFE = ("parameters", "buffers", "optimizer_state", "gradients", "workspaces")
_SAVED = ("activations", DATA, KEPT)

#: Row of a ledger → its claims, in order of time.
Claims = dict[int, tuple[Claim, ...]]


class Course(NamedTuple):
    """The category of an allocation, and what it is from the instant ``switch`` on, if there is one; indices into `CATEGORIES`."""

    first: int
    switch: int | None = None
    after: int = 0


_ALWAYS = {name: Course(INDEX[name]) for name in CATEGORIES}


class _Said(NamedTuple):
    """The claims of one row; those as saved for backward, and whether it was given to a module or came out of one."""

    claims: tuple[Claim, ...]
    kinds: set[str]
    saved: list[Claim]
    result: str  #: ``inputs``, ``outputs``, or empty


class Claimed:
    """Applies the rules to one row after the other.

    Parameters
    ----------
    claims : Claims
    ledger, born_ns, died_ns, aside, phases, stepping
        See `Unclaimed`.
    origins : tuple of Origin
        What the rows of the ledger refer to.
    trained : list of (begin, end)
        Calls of root modules under autograd.
    with_gradients : bool
        Whether any leaf of the program has a gradient.
    """

    def __init__(
        self,
        claims: Claims,
        ledger: Ledger,
        born_ns: Ints,
        died_ns: Ints,
        aside: Flags,
        phases: tuple[PhaseSpan, ...],
        stepping: list[tuple[int, int]],
        origins: tuple[Origin, ...],
        trained: list[tuple[int, int]],
        with_gradients: bool,
    ) -> None:
        self.claims, self.ledger, self.born_ns, self.died_ns, self.aside = claims, ledger, born_ns, died_ns, aside
        self.phases, self.stepping, self.origins, self.trained = phases, stepping, origins, trained
        self.with_gradients = with_gradients
        self._begins = [p.begin_ns for p in phases]
        self._forwards = [p.begin_ns for p in phases if p.name == "forward"]
        self._trained_begins = [begin for begin, _ in trained]
        self._borders = step_ends(phases)

    def course(self, row: int) -> Course | None:
        """What a row is, None where its claims leave that open: the first rule that says something."""
        said = self._said(row)
        return next((course for rule in _RULES if (course := rule(self, row, said)) is not None), None)

    def _said(self, row: int) -> _Said:
        claims = self.claims[row]
        saved = [c for c in claims if c.category in _SAVED]
        result = next((c.category for c in claims if c.category in ("inputs", "outputs")), "")
        if result == "inputs" and saved and self._made_by_forward(row):
            result = "outputs"
        return _Said(claims, {c.category for c in claims}, saved, result)

    # -- rules -------------------------------------------------------------------------------------------------------

    def _of_its_owner(self, row: int, said: _Said) -> Course | None:
        """What the object says that owns it, for life."""
        return next((_ALWAYS[n] for n in _FOR_LIFE if n in said.kinds and not _is_input_instead(n, said)), None)

    def _of_what_it_was_given_to(self, row: int, said: _Said) -> Course | None:
        if said.result == "inputs":
            return _ALWAYS["inputs"]
        return _ALWAYS["buffers"] if ATTRIBUTE in said.kinds else None

    def _of_its_container(self, row: int, said: _Said) -> Course | None:
        if COPY in said.kinds or STATE in said.kinds:
            return _ALWAYS[self._copied(row, STATE in said.kinds)]
        return None

    def _of_its_graph(self, row: int, said: _Said) -> Course | None:
        if not said.saved:
            return None
        if not said.result and self._is_data(row, said.saved):
            return _ALWAYS["inputs"]
        return Course(INDEX["activations"], self._release(said), INDEX["outputs"])

    def _of_a_call(self, row: int, said: _Said) -> Course | None:
        if said.result and not self._ended_with_forward(row):
            return _ALWAYS["activations" if self._ended_with_backward(row) else said.result]
        return _ALWAYS["outputs"] if RESULT_BEFORE in said.kinds else None

    # -- what they ask -----------------------------------------------------------------------------------------------

    def _copied(self, row: int, written: bool) -> str:
        """What a tensor is that stands in a container with one for each parameter.

        An optimizer needs none of the program's: then it is a copy of gradients when it was made while these waited for their
        step, else of parameters. Without one the program updates them itself, with what it computed or writes in place; but
        where a backward leaves no gradient, it is this that is trained, through a function of the parameters.
        """
        last = bisect_right(self._begins, int(self.born_ns[row])) - 1
        phase = self.phases[last] if last >= 0 and self.ledger.born[row] else None
        if phase is not None and phase.name == "backward" and (self.stepping or self.born_ns[row] < phase.end_ns):
            return "gradients"
        op = self.origins[self.ledger.origin[row]].op if self.ledger.origin[row] >= 0 else ""
        without = not self.with_gradients and any(p.name == "backward" for p in self.phases)
        changes = (self.with_gradients and bool(op)) or (written and not without)
        return "optimizer_state" if changes and not self.stepping and op not in COPYING else "parameters"

    def _ended_with_forward(self, row: int) -> bool:
        """One module's output that was only another one's input."""
        phase = self._born_in(row)
        if phase is None or self._is_named(row):
            return False
        return phase.name == "forward" and bool(self.died_ns[row] < phase.body_end_ns)

    def _ended_with_backward(self, row: int) -> bool:
        """A result that only the graph held, and let go of within the engine: where a checkpoint begins."""
        born, died = self._born_in(row), phase_at(self.phases, self._begins, int(self.died_ns[row]))
        if born is None or died is None or not born.grad or self._is_named(row):
            return False
        return born.name == "forward" and died.name == "backward" and bool(self.died_ns[row] < died.end_ns)

    def _is_named(self, row: int) -> bool:
        """Whether a variable holds it."""
        return any(c.name and not c.category for c in self.claims[row])

    def _made_by_forward(self, row: int) -> bool:
        """Whether a root module under autograd made it (not what the program made between two of them)."""
        i = bisect_right(self._trained_begins, int(self.born_ns[row])) - 1
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
        if len({bisect_right(self._borders, c.time_ns) for c in saved}) > 1:
            return True
        forward = bisect_right(self._forwards, saved[0].time_ns) - 1
        return forward >= 0 and int(self.born_ns[row]) < self._forwards[forward]

    def _release(self, said: _Said) -> int | None:
        """The instant at which the last graph that saved this let go of it; None while one still holds it."""
        last_saved = max(c.time_ns for c in said.saved)
        released = next((c.time_ns for c in said.claims if c.category == RELEASED and c.time_ns > last_saved), None)
        return None if released is None else int(np.searchsorted(self.ledger.time_ns, released, side="right"))

    def _born_in(self, row: int) -> PhaseSpan | None:
        if self.ledger.born[row] == 0 or self.aside[row]:
            return None
        return phase_at(self.phases, self._begins, int(self.born_ns[row]))


_RULES = (
    Claimed._of_its_owner,
    Claimed._of_what_it_was_given_to,
    Claimed._of_its_container,
    Claimed._of_its_graph,
    Claimed._of_a_call,
)


def _is_input_instead(category: str, said: _Said) -> bool:
    """Whether a claim for life is weaker than the one as input.

    Nothing but its wish for a gradient makes it a parameter: no model and no optimizer holds it. Or it was an input first:
    the tokens whose memory is the indices of a sparse gradient.
    """
    if "inputs" not in said.kinds:
        return False
    if category == "parameters":
        return not any(c.module for c in said.claims if c.category == "parameters")
    first = next(c.category for c in said.claims if c.category in (category, "inputs"))
    return category == "gradients" and first == "inputs"


def match(claims: list[Claim], ledger: Ledger) -> Claims:
    """Which allocation each claim is of; one of none is passed over."""
    if not claims:
        return {}
    rows = ledger.find(np.array([c.address for c in claims], np.int64), np.array([c.time_ns for c in claims], np.int64))
    matched: dict[int, list[Claim]] = {}
    for row, claim in zip(rows.tolist(), claims, strict=True):
        if row >= 0:
            matched.setdefault(row, []).append(claim)
    return {row: tuple(found) for row, found in matched.items()}

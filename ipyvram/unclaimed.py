"""Births and deaths come in; a category for every allocation that nobody claimed goes out (rules 5 to 9 of `attribution`).

All of it is vectorised over allocations: there may be a million of them, and thousands of phases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipyvram.ledger import Ints, Ledger
from ipyvram.marks import ModuleTrack, PhaseSpan
from ipyvram.recording import CATEGORIES

INDEX = {name: i for i, name in enumerate(CATEGORIES)}
Flags = NDArray[np.bool_]

_SCALAR_BYTES = 16  # no batch is smaller; a loss or a count is


@dataclass(frozen=True, slots=True, eq=False)
class Unclaimed:
    """When each allocation of a ledger began and ended, in ns, and what happened around it.

    Attributes
    ----------
    born_ns, died_ns : int64
        ``died_ns`` lies beyond the trace for what was never freed.
    named : bool
        Held by a variable of the notebook.
    claimed : bool
        Somebody said something of it.
    loaded : bool
        Made by an operator that computes nothing from tensors, or by none: filled, copied to the device, stacked.
    copied : bool
        Cloned in the shape of a parameter or buffer.
    aside : bool
        Made by another thread than that on which the models run.
    cut_short : PhaseSpan or None
        The phase that an error ended.
    borders, rounds : list of int
        Times between optimizer steps; between rounds of the loop, see `marks.rounds`.
    roots : list of (begin, end, grad)
        Calls of root modules outside backward; ``grad``: under autograd.
    cut : list of (begin, end)
        Those of them under autograd that an error ended.
    stepping : list of (begin, end)
        Whole optimizer steps, with what their closures run.
    workspace : int
        Bytes of a cuBLAS workspace, 0 where there is none.
    lt_workspace : int
        Bytes of one of cuBLASLt, 0 where it has none of its own.
    buckets : tuple of int
        Bytes of each buffer in which several processes gather gradients.
    """

    ledger: Ledger
    born_ns: Ints
    died_ns: Ints
    named: Flags
    claimed: Flags
    loaded: Flags
    copied: Flags
    cast: Flags
    aside: Flags
    phases: tuple[PhaseSpan, ...]
    cut_short: PhaseSpan | None
    borders: list[int]
    rounds: list[int]
    roots: list[tuple[int, int, bool]]
    cut: list[tuple[int, int]]
    stepping: list[tuple[int, int]]
    modules: ModuleTrack
    workspace: int
    lt_workspace: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def before(self) -> Flags:
        """Live before the trace began."""
        return np.asarray(self.ledger.born == 0)

    @property
    def never(self) -> Flags:
        """Still live when the trace ended."""
        return self.ledger.died >= self.ledger.instants

    def categories(self) -> Ints:
        """A category (index into `CATEGORIES`) for every allocation, as if none were claimed."""
        steps = np.array(self.borders, np.int64)
        kept = self.never | (np.searchsorted(steps, self.born_ns) != np.searchsorted(steps, self.died_ns))
        category = np.full(len(self.born_ns), INDEX["other"], np.int64)
        category[~self.before & (~kept | self._passed_on())] = INDEX["temporaries"]
        self._held(category)
        self._prepared(category)
        self._rebound(category, steps)
        inside, place = self._in_phase()
        copied = self.copied & kept & ~self.named & ~inside
        category[copied] = INDEX["parameters"]
        if self.stepping and self.phases:  # made while gradients waited for their step: of these
            backward = np.array([p.name == "backward" for p in self.phases])[place]
            category[copied & backward & ~self.before & (self.born_ns > self.phases[0].begin_ns)] = INDEX["gradients"]
        self._survivors(category, kept)
        category[self._recomputed() | self._cut_off()] = INDEX["activations"]
        for bucket in self.buckets:
            category[self._made_for(bucket) & kept] = INDEX["gradients"]
        if self.workspace:
            category[self._workspaces()] = INDEX["workspaces"]
        return category

    def _workspaces(self) -> Flags:
        """Those of cuBLAS; and of cuBLASLt, whose size is one that a program may ask for, too, as many as there are handles."""
        found = self._made_for(self.workspace) & self.never
        if self.lt_workspace:
            handles = max(1, int(found.sum()))
            found[np.flatnonzero(self._made_for(self.lt_workspace) & self.never & ~self.claimed)[:handles]] = True
        return found

    def _made_for(self, request: int) -> Flags:
        """Asked for in this size: blocks are larger than that by up to 1 MiB, and a 3×3 convolution of 512 channels is as large."""
        return np.asarray(self.ledger.requested == request)

    def _passed_on(self) -> Flags:
        """Made outside any phase and freed before the next forward, if after the step's end: the norm of the gradients."""
        forwards = np.array([p.begin_ns for p in self.phases if p.name == "forward"], np.int64)
        same = np.searchsorted(forwards, self.born_ns) == np.searchsorted(forwards, self.died_ns)
        return np.asarray(~self._in_phase()[0] & ~self.never & same & bool(len(forwards)))

    def _held(self, category: Ints) -> None:
        """Rule 7: a variable's data, when it was there before the first forward, or a result.

        In a cell without one: data, unless it is known to be computed. The allocator's history does not tell by what.
        """
        first = next((p.begin_ns for p in self.phases if p.name == "forward"), None)
        early = self.before | self.loaded | (self.ledger.origin < 0) if first is None else self.born_ns < first
        early = early | (self.aside & ~self.before)  # by a thread that loads
        category[self.named] = np.where(early[self.named], INDEX["inputs"], INDEX["outputs"])

    def _prepared(self, category: Ints) -> None:
        """Rule 7 too: what the program made outside any phase and still had when a model ran is its batch.

        Not if a variable holds what was computed, or what outlived two rounds: predictions, counts. Where operators are not
        known, what one line of the program made is of one kind, the last rounds' too.
        """
        outside = ~self._in_phase()[0] & ~self.before
        begins = np.array([begin for begin, _, _ in self.roots] + [np.iinfo(np.int64).max], np.int64)
        following = begins[np.searchsorted(begins[:-1], self.born_ns, side="right")]
        present = outside & (self.died_ns > following)
        rounds, stack = np.array(self.rounds, np.int64), self.ledger.stack
        lasts = self.named & (np.searchsorted(rounds, self.died_ns) - np.searchsorted(rounds, self.born_ns) > 1)
        alike = lasts | np.isin(stack, stack[lasts & outside & (stack >= 0)])
        result = self.named & np.where(self.ledger.origin >= 0, ~self.loaded, alike)
        small = self.ledger.bytes <= _SCALAR_BYTES
        category[present & ~small & ~result] = INDEX["inputs"]
        category[self.aside & ~self.before & ~small & (category == INDEX["other"])] = INDEX[
            "inputs"
        ]  # it waits in a queue
        category[present & small & (category == INDEX["other"])] = INDEX["outputs"]
        if self.stepping:  # the directions of L-BFGS while its closure runs
            begins, ends = np.array(self.stepping, np.int64).T
            place = np.searchsorted(begins, self.born_ns, side="right") - 1
            within = outside & ~self.aside & (place >= 0) & (self.born_ns < ends[place])
            category[within] = np.where(self.died_ns > ends[place], INDEX["optimizer_state"], INDEX["temporaries"])[
                within
            ]

    def _rebound(self, category: Ints, steps: Ints) -> None:
        """Results of a program without modules that its variables hold until the next step gives them others."""
        if self.phases and not self.roots:
            born = np.searchsorted(steps, self.born_ns)
            held = np.where(self.never, born == len(steps), np.searchsorted(steps, self.died_ns) - born <= 1)
            held &= ~self._in_phase()[0] & ~self.before
            category[held & (category == INDEX["other"])] = INDEX["outputs"]

    def _survivors(self, category: Ints, kept: Flags) -> None:
        """Rule 6: what outlives the phase that made it."""
        if not self.phases:
            return
        inside, place = self._in_phase()
        columns = [(p.end_ns, p.body_end_ns, p.name == "forward", p.grad, p.name == "backward") for p in self.phases]
        end, body_end, forward, grad, backward = (np.array(column)[place] for column in zip(*columns, strict=True))
        alive = inside & (self.died_ns > end) & ~self.before
        category[alive & backward] = INDEX["gradients"]
        category[alive & ~backward & ~forward] = INDEX["optimizer_state"]
        if self.cut_short is not None and self.cut_short.name != "forward":  # they would not have outlived it
            category[alive & self.never & (self.born_ns >= self.cut_short.begin_ns)] = INDEX["temporaries"]
        category[alive & forward & ~grad] = INDEX["outputs"]
        category[alive & forward & ~grad & self.cast] = INDEX["temporaries"]
        trained = alive & forward & grad
        last = place == len(self.phases) - 1
        follows = np.minimum(place + 1, len(self.phases) - 1)
        used = np.array([p.name == "backward" for p in self.phases])[follows] & ~last
        with_graph = used & ~self.never & (self.died_ns <= np.array([p.end_ns for p in self.phases])[follows])
        within = self._in_roots()
        category[trained & within & (with_graph | (last & self.never))] = INDEX["activations"]
        outlives = trained & ~with_graph & ~last & kept
        category[outlives & (within | (self.born_ns >= body_end) | ~self.loaded & (category == INDEX["other"]))] = (
            INDEX["outputs"]
        )

    def _in_phase(self) -> tuple[Flags, Ints]:
        """Whether each was born in a phase, and the index of the last phase that had begun."""
        if not self.phases:
            return np.zeros(len(self.born_ns), bool), np.zeros(len(self.born_ns), np.int64)
        begins = np.array([p.begin_ns for p in self.phases])
        ends = np.array([p.end_ns for p in self.phases])
        place = np.searchsorted(begins, self.born_ns, side="right") - 1
        inside = (place >= 0) & (self.born_ns < ends[place]) & ~self.aside
        return inside, np.maximum(place, 0).astype(np.int64)

    def _in_roots(self) -> Flags:
        """Born while a root module ran under autograd."""
        spans = [(begin, end) for begin, end, grad in self.roots if grad]
        if not spans:
            return np.zeros(len(self.born_ns), bool)
        place = np.searchsorted(np.array([begin for begin, _ in spans]), self.born_ns, side="right") - 1
        return (place >= 0) & (self.born_ns < np.array([end for _, end in spans])[place]) & ~self.aside

    def _cut_off(self) -> Flags:
        """Live in a forward when an error ended it: the error freed them, or what holds it does. Nobody could read their graph.

        An error frees and allocates nothing more: it came after the last birth within the forward.
        """
        found = np.zeros(len(self.born_ns), bool)
        for begin, end in self.cut:
            within = (self.born_ns > begin) & (self.born_ns < end) & ~self.before & ~self.aside
            last = self.ledger.born[within].max(initial=0)
            found |= within & (self.ledger.died > last)
        return found

    def _recomputed(self) -> Flags:
        """Born in a module's forward during backward, and alive after that module returned: a recomputed activation."""
        track = self.modules
        if not track.times or not self.phases:
            return np.zeros(len(self.born_ns), bool)
        place = np.searchsorted(np.array(track.times), self.born_ns, side="right") - 1
        ends = np.array([*track.ends, 0])[place]
        inside, phase = self._in_phase()
        backward = np.array([p.name == "backward" for p in self.phases])[phase] & inside
        within = self.died_ns <= np.array([p.end_ns for p in self.phases])[phase]
        outlives = (place >= 0) & (ends > 0) & (self.died_ns > ends) & ~self.before
        return np.asarray(outlives & backward & within)

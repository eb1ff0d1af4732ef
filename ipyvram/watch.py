"""Decides when a cell deserves another short trace: samples and step ends come in, a reason or nothing goes out.

Between traces nothing of ours hangs on the program but a counter of optimizer steps, so a change is noticed from what is
there anyway: the sampler's figures, and the variables of the functions that are running when a step ends.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, strided

from ipyvram.probes.tensors import OTHER, TENSOR, Kinds, tensors_in
from ipyvram.probes.variables import Place, Variables
from ipyvram.units import MIB, format_bytes

#: Short traces after the first: a cell whose batches differ forever must not be traced forever.
MAX_RETRACES = 4
#: … but for later ones, up to so many, while each has this many steps for itself.
_MAX_LATE, _STEPS_EACH = 12, 10
#: From so many on, only what can raise the peak, or a request, is worth another one.
_MAX_FOR_OTHER_SHAPES = 3

#: Figures whose rise says that memory peaked anew → (bytes, share) that the rise must exceed. The allocator's own
#: high-water mark is exact; the resident size of a process also moves for reasons that are none of ours.
_RISES = {"allocated_peak": (MIB, 0.02), "driver_allocated": (64 * MIB, 0.1), "process_rss": (256 * MIB, 0.25)}
GROWTH = 1.1  # a batch with at least this many times the elements of any traced one raises the peak

_DOUBLING = 1.6  #: results that are collected do not grow so from the second step to the third: 2, 3, 4 …
_MAX_DOUBLED = 12  #: steps that a trace goes on for: from one sample to four thousand

_SEARCHED = 3  # steps at whose end all variables are looked at, traced or not: a batch shows by being another object
_MAX_SEARCHES = 16
_MAX_BATCHES = 32
_MAX_SHAPES = 64  # of one variable: where every batch has its own, none comes again

Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class _Batch:
    """A variable that holds another batch at every step.

    Attributes
    ----------
    sizes : list of int
        Elements at the traced steps, in their order.
    seen : dict of Shapes to int
        Shapes that no trace has covered → the last step that had them.
    largest : int
        Elements at most, at any step.
    doubles : bool
        Whether the last step had a good deal more than any before.
    collected : bool
        Whether it grows at every step: results, and no batch.
    held : (weakref.ref of Tensor, int)
        The first of the tensors that it held last, and how many.
    """

    name: str
    sizes: list[int] = field(default_factory=list)
    seen: dict[Shapes, int] = field(default_factory=dict)
    largest: int = 0
    doubles: bool = False
    collected: bool = False
    held: tuple[weakref.ref[Tensor], int] | None = None

    def meet(self, tensors: list[Tensor]) -> None:
        """What it holds now: where the first is still the same one, more were put beside it."""
        if self.held is not None and self.held[0]() is tensors[0] and len(tensors) > self.held[1]:
            self.collected = True
        self.held = weakref.ref(tensors[0]), len(tensors)

    def measure(self, elements: int) -> None:
        self.doubles = bool(self.largest) and elements >= _DOUBLING * self.largest
        self.largest = max(self.largest, elements)


class Watch:
    """Knows what the traced steps looked like; `reason` says what is new since.

    A larger batch is traced at once. Other shapes cannot raise the peak and are traced when they are expected: what has come
    twice comes again after as many steps. So a change that lasts costs one short trace, the last batch of an epoch too, and a
    single odd one none.

    Parameters
    ----------
    variables : Variables
        What the running functions hold; read, never changed.
    """

    def __init__(self, variables: Variables | None = None) -> None:
        self._variables = variables or Variables()
        self._known: dict[tuple[str, str], float] = {}  # (device, figure) → highest while a trace was running
        self._batches: dict[Place, _Batch] = {}
        self._wanted: dict[int, tuple[str, ...]] = {}  # their names, by code
        self._covered: set[Shapes] = set()  # shapes of traced batches
        self._objects: dict[Place, tuple[weakref.ref[Tensor], Shapes, bool]] = {}  # at the last search
        self._expected: dict[int, tuple[str, Shapes]] = {}  # step → who will have which shapes
        self._kinds = Kinds()
        self._step = self._searches = self._doubled = 0
        self._pending = ""
        self._accelerated = False
        self.retraces = 0
        #: Device and bytes of the allocator's own mark, where that rose since a step.
        self.rose: tuple[str, int] | None = None

    # -- while a trace runs ------------------------------------------------------------------------------------------

    def learn_figures(self, device: str, figures: Mapping[str, float]) -> None:
        """Figures of this moment are covered by a trace."""
        self._accelerated |= device != "cpu"
        for name in _RISES:
            if name in figures:
                self._known[device, name] = max(self._known.get((device, name), 0.0), figures[name])

    def learn_step(self) -> None:
        """A traced step has ended: the shapes of its batch are covered, and what grew before it."""
        self._step += 1
        self._pending = ""
        for batch, shapes in self._search(traced=True):
            self._cover(batch, shapes)

    def doubling(self) -> bool:
        """Whether each step's batch is a good deal larger than the one before: the next will be the peak, or too large."""
        found = any(batch.doubles and not batch.collected for batch in self._batches.values())
        self._doubled += found
        return found and self._doubled <= _MAX_DOUBLED

    def _search(self, traced: bool) -> list[tuple[_Batch, Shapes]]:
        """The batches among all variables: data in one that holds another object than at the last search."""
        self._searches += 1
        found, objects = list[tuple[_Batch, Shapes]](), dict[Place, tuple[weakref.ref[Tensor], Shapes, bool]]()
        for place, value in self._variables.all().items():
            tensors = self._data(value)
            if not tensors:
                continue
            shapes = _shapes(tensors)
            objects[place] = weakref.ref(tensors[0]), shapes, traced
            batch, before = self._batches.get(place), self._objects.get(place)
            if batch is None and before and before[0]() is not tensors[0] and len(self._batches) < _MAX_BATCHES:
                batch = self._batches[place] = _Batch(place[1])
                self._wanted[place[0]] = (*self._wanted.get(place[0], ()), place[1])
                if before[2]:
                    self._covered.add(before[1])
            if batch is not None:
                batch.meet(tensors)
                found.append((batch, shapes))
        self._objects = objects
        return found

    def _data(self, value: Any) -> list[Tensor]:
        """A tensor, or the few in a batch, that no gradient flows into; none for anything else."""
        kind = self._kinds[
            type(value)
        ]  # not isinstance: that asks the object for its class, which lazy proxies answer by loading
        if kind == TENSOR:
            return [] if value.requires_grad else [value]
        if kind != OTHER and 0 < len(value) <= 16:
            tensors = list(tensors_in(value, 17))
            if len(tensors) <= 16 and not any(t.requires_grad for t in tensors):
                return tensors
        return []

    def _cover(self, batch: _Batch, shapes: Shapes) -> None:
        batch.measure(_elements(shapes))
        batch.sizes.append(_elements(shapes))
        batch.seen.pop(shapes, None)
        self._covered.add(shapes)

    # -- between traces ----------------------------------------------------------------------------------------------

    def see_figures(self, device: str, figures: Mapping[str, float]) -> None:
        """Called by the sampler's thread; a rise is acted on when the step ends."""
        self._accelerated |= device != "cpu"
        if device == "cpu" and self._accelerated:
            return  # the memory of interest has counters of its own
        for name, (least, share) in _RISES.items():
            if name not in figures:
                continue
            value = figures[name]
            known = self._known.setdefault((device, name), value)
            if value - known > max(least, share * known):
                self._known[device, name] = value
                self._pending = f"memory grew by {format_bytes(int(value - known))}"
                if name == "allocated_peak":
                    self.rose = device, int(value)

    def allows(self) -> bool:
        """Whether another trace is within the bound."""
        late = self.retraces < _MAX_LATE and self.retraces * _STEPS_EACH <= self._step
        return self.retraces < MAX_RETRACES or late

    def reason(self) -> str:
        """Why the next step should be traced, or an empty string; called at the end of each step that was not."""
        self._step += 1
        if not self.allows():
            return ""
        pending, self._pending = self._pending, ""
        grown = [self._grown(batch, shapes) for batch, shapes in self._new()]
        return pending or next(filter(None, grown), "") or self._expected_next()

    def _new(self) -> list[tuple[_Batch, Shapes]]:
        """Batches of this step whose shapes no trace has covered, the largest first."""
        held = self._variables.some(self._wanted)
        if self._step <= _SEARCHED or (not held and self._searches < _MAX_SEARCHES):  # another loop has begun
            found = self._search(traced=False)
        else:
            found = []
            for place, value in held.items():
                if (batch := self._batches.get(place)) is not None and (tensors := self._data(value)):
                    batch.meet(tensors)
                    found.append((batch, _shapes(tensors)))
        new = [(batch, shapes) for batch, shapes in found if self._covered and shapes not in self._covered]
        return sorted(new, key=lambda item: -_elements(item[1]))

    def _grown(self, batch: _Batch, shapes: Shapes) -> str:
        """The reason when these shapes raise the peak; else they are noted, and expected again if they came before."""
        sizes = batch.sizes
        batch.measure(_elements(shapes))
        if sizes and _elements(shapes) >= GROWTH * max(sizes):
            if not batch.doubles and len(sizes) > 1 and all(a < b for a, b in itertools.pairwise(sizes)):
                batch.collected = True
            if batch.collected:
                self._cover(batch, shapes)
                return ""
            if shapes not in batch.seen:
                batch.seen[shapes] = self._step
                return f"{batch.name} grew to {_text(shapes)}"
        last = batch.seen.get(shapes)
        if last is not None or len(batch.seen) < _MAX_SHAPES:
            batch.seen[shapes] = self._step
        if last is not None:
            self._expected.setdefault(2 * self._step - last, (batch.name, shapes))
        return ""

    def _expected_next(self) -> str:
        name, shapes = self._expected.pop(self._step + 1, ("", ()))
        if not name or shapes in self._covered or self.retraces >= _MAX_FOR_OTHER_SHAPES:
            return ""
        return f"{name} changed to {_text(shapes)}"


def _shapes(tensors: list[Tensor]) -> Shapes:
    return tuple([_ragged(t) if t.is_nested else tuple(t.shape) for t in tensors])


def _ragged(tensor: Tensor) -> tuple[int, ...]:
    """Sizes of a nested tensor, -1 where it has several; none in the older layout, which has no shape."""
    return () if tensor.layout is strided else tuple(n if type(n) is int else -1 for n in tensor.shape)


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))


def _text(shapes: Shapes) -> str:
    """``64×3×32×32 and 64``."""
    return " and ".join("×".join(map(str, s)) or "a number" for s in shapes[:2])

"""Decides when a cell deserves another short trace: samples and step ends come in, a reason or nothing goes out.

Between traces nothing of ours hangs on the program but a counter of optimizer steps, so a change is noticed from what is
there anyway: the sampler's figures, and the notebook's own variables at the end of a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ipyvram.probes.tensors import tensors_in
from ipyvram.units import MIB, format_bytes

#: Short traces after the first: a cell whose batches differ forever must not be traced forever.
MAX_RETRACES = 3

#: Figures whose rise says that memory peaked anew → (bytes, share) that the rise must exceed. The allocator's own
#: high-water mark is exact; the resident size of a process also moves for reasons that are none of ours.
_RISES = {"allocated_peak": (MIB, 0.02), "driver_allocated": (64 * MIB, 0.1), "process_rss": (256 * MIB, 0.25)}
_MAX_NAMES = 32
GROWTH = 1.1  # a batch with at least this many times the elements of any traced one is new

Shapes = tuple[tuple[int, ...], ...]


class Watch:
    """Knows what the traced steps looked like; `reason` says what is new since.

    Parameters
    ----------
    namespace : mapping
        The notebook's variables; read, never changed.
    """

    def __init__(self, namespace: Mapping[str, Any]) -> None:
        self._namespace = namespace
        self._known: dict[tuple[str, str], float] = {}  # (device, figure) → highest while a trace was running
        self._names: dict[str, list[Shapes]] = {}  # variables that hold batches → their shapes at traced steps
        self._objects: dict[str, int] = {}
        self._pending = ""
        self._accelerated = False
        self.retraces = 0

    # -- while a trace runs ------------------------------------------------------------------------------------------

    def learn_figures(self, device: str, figures: Mapping[str, float]) -> None:
        """Figures of this moment are covered by a trace."""
        self._accelerated |= device != "cpu"
        for name in _RISES:
            if name in figures:
                self._known[device, name] = max(self._known.get((device, name), 0.0), figures[name])

    def learn_step(self) -> None:
        """A traced step has ended: the shapes of its batch are covered.

        A batch is data in a variable of the notebook that holds another object than at the last step.
        """
        objects = {}
        for name, value in list(self._namespace.items()):
            shapes = _data_shapes(value) if not name.startswith("_") else ()
            if not shapes:
                continue
            objects[name] = id(value)
            rebound = self._objects.get(name, id(value)) != id(value)
            if name in self._names or (rebound and len(self._names) < _MAX_NAMES):
                self._names.setdefault(name, []).append(shapes)
        self._objects = objects

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

    def allows(self) -> bool:
        """Whether another trace is within the bound."""
        return self.retraces < MAX_RETRACES

    def reason(self) -> str:
        """Why the next step should be traced, or an empty string; called at the end of a step."""
        if not self.allows():
            return ""
        pending, self._pending = self._pending, ""
        return pending or self._new_shapes()

    def _new_shapes(self) -> str:
        for name, known in self._names.items():
            shapes = _data_shapes(self._namespace.get(name))
            sizes = [_elements(s) for s in known]
            if not shapes or _elements(shapes) < GROWTH * max(sizes):
                continue  # a smaller batch, such as the last of an epoch, cannot raise the peak
            known.append(shapes)
            if len(sizes) > 1 and all(a < b for a, b in itertools.pairwise(sizes)):
                continue  # it grew at every step: results that are collected, not a batch
            return f"{name} grew to {' and '.join('×'.join(map(str, s)) for s in shapes[:2])}"
        return ""


def _data_shapes(value: Any) -> Shapes:
    """Shapes of a tensor, or of the few in a batch, that no gradient flows into; empty for anything else."""
    if isinstance(value, Tensor):
        return () if value.requires_grad else (tuple(value.shape),)
    if isinstance(value, (Mapping, tuple, list)) and 0 < len(value) <= 16:
        tensors = list(tensors_in(value, 17))
        if len(tensors) <= 16 and not any(t.requires_grad for t in tensors):
            return tuple(tuple(t.shape) for t in tensors)
    return ()


def _elements(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes))

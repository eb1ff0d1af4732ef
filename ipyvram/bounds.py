"""Why a stretch of a cell is traced, and when that has been long enough: steps, times and events come in, a reason goes out."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from dataclasses import dataclass

import torch

from ipyvram.probes.stepping import TURNS

#: Bounds on the trace of a cell that finishes no optimizer step (inference, raw loops). What a cell loads, builds and imports
#: before its first forward is not counted. A few slow passes may be one step: on a CPU its forward and backward can take minutes.
MAX_UNSTEPPED_S = 20.0
FEW_PASSES = 16
MAX_UNSTEPPED_EVENTS = 300_000
#: … and on what that may cost the cell: a graph that grows by thousands of small gradients is read again for each.
MAX_UNSTEPPED_OWN_S = 5.0


@dataclass(slots=True)
class Bounds:
    """Of one stretch.

    Attributes
    ----------
    steps : int
        Optimizer steps after which it ends; 0 where it has no bound at all.
    why : str
        The reason of a stretch after the first, in words.
    evaluation : bool
        Whether that is an evaluation.
    awaited : weakref.ref of torch.optim.Optimizer, optional
        The optimizer whose step it is to hold.
    first : int
        Steps of the program before it.
    began_ns, own_s : int, float
        The time when it began, and what ipyvram had taken of it by then.
    passes : int
        Forwards and backwards in it.
    """

    steps: int = 1
    why: str = ""
    evaluation: bool = False
    awaited: weakref.ref[torch.optim.Optimizer] | None = None
    first: int = 0
    began_ns: int = 0
    own_s: float = 0.0
    passes: int = 0

    def begin(self, first: int, now_ns: int, own_s: float) -> None:
        """It begins now."""
        self.first, self.began_ns, self.own_s, self.passes = first, now_ns, own_s, 0

    def expired(self, steps: int, now_ns: int, own_s: float, events: int) -> str:
        """Why it should end without an optimizer step, an empty string while it should not."""
        if steps != self.first or not self.steps:
            return ""
        if (now_ns - self.began_ns) / 1e9 > MAX_UNSTEPPED_S and not 0 < self.passes <= FEW_PASSES:
            return f"{MAX_UNSTEPPED_S:.0f} s without an optimizer step"
        if own_s - self.own_s > MAX_UNSTEPPED_OWN_S:
            return f"{MAX_UNSTEPPED_OWN_S:.0f} s of its own work without an optimizer step"
        if events > MAX_UNSTEPPED_EVENTS:
            return f"{MAX_UNSTEPPED_EVENTS:,} events without an optimizer step"
        return ""

    def reached(self, steps: int, stepped: Collection[int]) -> str:
        """Why it should end after a step of the program, an empty string while it should not.

        Parameters
        ----------
        stepped : collection of int
            Identities of the optimizers that have made a step in it.
        """
        if not self.steps or steps - self.first < self.steps:
            return ""
        awaited = None if self.awaited is None else self.awaited()
        if awaited is not None and id(awaited) not in stepped and steps - self.first < TURNS:
            return ""
        if self.why:
            return f"step {steps} ({self.why})"
        return f"{steps} steps" if steps > 1 else "1 step"

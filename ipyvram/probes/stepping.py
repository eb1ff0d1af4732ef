"""Steps of optimizers come in; how many steps the program has made goes out, and which optimizer no trace has covered.

A program may have several: one after another (layer by layer, a model after a model), in turn (a generator and a critic), one for
each parameter.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Steps that one optimizer may make for one of another with which it takes turns: a critic makes five for its generator.
TURNS = 12
GROWTH = 1.1  # with at least this many times the groups or states of its traced steps an optimizer does more

Signature = tuple[Any, ...]

_HOOKED = torch.optim.Optimizer.profile_hook_step(
    lambda *_: None
).__code__  # of every `step` that torch puts hooks around


def within_own_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook runs for a step within a step of the same optimizer: a subclass's that calls its base's has hooks around both."""
    if sum(hasattr(vars(kind).get("step"), "hooked") for kind in type(optimizer).__mro__) < 2:
        return False
    frame, around = sys._getframe(1).f_back, 0
    while frame is not None:
        around += frame.f_code is _HOOKED and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return around > 1


class News(NamedTuple):
    """Why an optimizer's next step should be traced, in words; until then a trace goes on."""

    why: str
    optimizer: weakref.ref[torch.optim.Optimizer]


class _Seen(NamedTuple):
    optimizer: weakref.ref[torch.optim.Optimizer]
    groups: int
    states: int


class Stepping:
    """Counts steps, and remembers what the traced ones were like.

    One optimizer leads, and its steps count: the first, until it is gone or another steps on without it. One that begins after
    the traced steps leads from there, unless the former goes on after a step of it: then they take turns. An inner loop makes its
    optimizer anew each time: one like the former that is gone leads again.

    Attributes
    ----------
    steps : int
        That the program has made.
    first : str
        The class of the first that stepped; empty before.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.first = ""
        self._leader: weakref.ref[torch.optim.Optimizer] | None = None
        self._former: weakref.ref[torch.optim.Optimizer] | None = None  # which led before one that began
        self._leads: Signature = ()
        self._led: Signature = ()  # what led before, if that was another kind
        self._alone: dict[int, int] = {}  # how often others stepped since the leader did
        self._seen: dict[int, _Seen] = {}
        self._parameters: dict[Signature, list[weakref.ref[Tensor]]] = {}  # the first of each optimizer that was seen

    def stepped(self, optimizer: torch.optim.Optimizer, begins: bool = False) -> bool:
        """An optimizer has made a step, and ``begins`` after the traced ones; whether that ends a step of the program."""
        leader, former = (None if ref is None else ref() for ref in (self._leader, self._former))
        if leader is optimizer:
            self._former = None
        elif leader is None or begins or self._returns(optimizer, former) or self._takes_over(optimizer):
            self._lead(optimizer, begins, gone=leader is None)
        else:
            return False
        self._alone.clear()
        self.steps += 1
        return True

    def by_hand(self, steps: int, optimizer: torch.optim.Optimizer | None) -> None:
        """The program has made steps that no optimizer told of; one that has their parameters made them in compiled code."""
        self.steps += steps
        if optimizer is not None:
            self.first = self.first or type(optimizer).__name__

    def _returns(self, optimizer: torch.optim.Optimizer, former: torch.optim.Optimizer | None) -> bool:
        """Whether it led before another kind did, or takes the place of what led then."""
        return former is optimizer or (former is None and bool(self._led) and self._led == _signature(optimizer))

    def _lead(self, optimizer: torch.optim.Optimizer, begins: bool, gone: bool) -> None:
        """Its steps count from here; ``gone``: the one that led is no more."""
        signature = _signature(optimizer)
        self._led = self._leads if (begins or gone) and self._leads != signature else ()
        self._former = self._leader if begins else None
        self._leader, self._leads = weakref.ref(optimizer), signature
        self.first = self.first or type(optimizer).__name__

    def _takes_over(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it has stepped so often without the leader that this is done; then these were steps of the program."""
        alone = self._alone[id(optimizer)] = self._alone.get(id(optimizer), 0) + 1
        if alone <= TURNS:
            return False
        self.steps += alone - 1
        return True

    def cover(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of it was traced."""
        if (known := self._known(optimizer)) is None:
            self._remember(optimizer, _signature(optimizer))
        elif (known.groups, known.states) != _size(optimizer):
            self._seen[id(optimizer)] = _Seen(known.optimizer, *_size(optimizer))

    def news(self, optimizer: torch.optim.Optimizer) -> News | None:
        """What is new about one whose step was not traced; each is told once."""
        if (known := self._known(optimizer)) is None:
            signature = _signature(optimizer)
            replaces = self._replaces(optimizer, signature)
            self._remember(optimizer, signature)
            return None if replaces else News(f"another {type(optimizer).__name__} began", weakref.ref(optimizer))
        groups, states = _size(optimizer)
        if groups < GROWTH * max(1, known.groups) and states < GROWTH * max(1, known.states):
            return None
        self._seen[id(optimizer)] = _Seen(known.optimizer, groups, states)
        return News(f"{type(optimizer).__name__} updates more", known.optimizer)

    def _known(self, optimizer: torch.optim.Optimizer) -> _Seen | None:
        known = self._seen.get(id(optimizer))
        return known if known is not None and known.optimizer() is optimizer else None

    def _remember(self, optimizer: torch.optim.Optimizer, signature: Signature) -> None:
        for key in [key for key, seen in self._seen.items() if seen.optimizer() is None]:
            del self._seen[key]
        self._seen[id(optimizer)] = _Seen(weakref.ref(optimizer), *_size(optimizer))
        there = [ref for ref in self._parameters.get(signature, ()) if ref() is not None]
        first = _first(optimizer)
        if first is not None and all(ref() is not first for ref in there):
            there.append(weakref.ref(first))
        self._parameters[signature] = there

    def _replaces(self, optimizer: torch.optim.Optimizer, signature: Signature) -> bool:
        """Whether it takes the place of one that was seen: it has the same parameters, or the same number where those are gone."""
        if signature not in self._parameters:
            return False
        there = [p for ref in self._parameters[signature] if (p := ref()) is not None]
        return not there or any(p is _first(optimizer) for p in there)


def _signature(optimizer: torch.optim.Optimizer) -> Signature:
    """Two that agree in it need the same memory for a step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return type(optimizer), *((tuple(p.shape), p.dtype, p.device) for p in parameters)


def _size(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    return len(optimizer.param_groups), len(optimizer.state)


def _first(optimizer: torch.optim.Optimizer) -> Tensor | None:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return next((p for p in parameters if isinstance(p, Tensor)), None)

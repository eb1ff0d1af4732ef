"""Optimizers that train nothing, and gradients that no optimizer uses: steps and the leaves of every backward come in, `Observation`s
go out."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes.keeping import earlier_models
from ipyvram.probes.reach import storage_of
from ipyvram.probes.tensors import tensors_in
from ipyvram.recording import Observation


class Orphans:
    """An optimizer is an orphan when it stepped, backwards ran, none of them reached one of its parameters, and none had a gradient.

    The last is for those that own copies (32-bit weights, shards) whose gradients the program or a wrapper brings along; those
    of a model that a variable held before have only stale ones.

    A parameter is untrained when it had a gradient at a step, and no optimizer that stepped or that a variable holds has it.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, weakref.ref[Tensor]] = {}  # by id; the optimizers below keep theirs alive
        self._fed: set[int] = set()  # ids of optimizers
        self._trained: set[int] = set()  # ids of parameters of those that stepped
        self._idle: dict[
            int, tuple[int, str]
        ] = {}  # parameters that had a gradient when others were updated: its bytes, where
        self._copies = False  # whether an optimizer updated what no backward had reached
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}

    def backward(self, leaves: Iterable[Tensor]) -> None:
        """A backward is about to reach these leaves."""
        self._leaves.update((id(leaf), weakref.ref(leaf)) for leaf in leaves)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer makes a step."""
        own = {id(p): p for group in optimizer.param_groups for p in group["params"]}
        self._optimizers.setdefault(id(optimizer), weakref.ref(optimizer))
        if any(p.grad is not None for p in own.values()):
            self._fed.add(id(optimizer))
        self._trained |= own.keys()
        self._copies |= own.keys().isdisjoint(self._leaves)
        for key in self._leaves.keys() - self._trained:  # now: at the end those of a function are gone
            leaf = self._leaves[key]()
            if isinstance(leaf, nn.Parameter) and leaf.grad is not None:
                storage = storage_of(leaf.grad)
                self._idle[key] = 0 if storage is None else storage.nbytes, str(leaf.device)

    def observations(self, namespace: Mapping[str, Any]) -> list[Observation]:
        """The orphans among the optimizers that stepped."""
        found: list[Observation] = []
        earlier = {id(p) for parameters in earlier_models(namespace).values() for p in parameters}
        for ref in self._optimizers.values():
            optimizer = ref()
            if optimizer is None or not self._leaves:
                continue
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            own = {id(p) for p in parameters}
            if own and own.isdisjoint(self._leaves) and (id(optimizer) not in self._fed or own <= earlier):
                found.append(_observation(optimizer, parameters, namespace))
        return found or self._untrained(namespace)

    def _untrained(self, namespace: Mapping[str, Any]) -> list[Observation]:
        """Gradients that were made for nobody. Nothing where an optimizer has copies of the parameters: whose, nobody knows."""
        held = [value for value in list(namespace.values()) if isinstance(value, torch.optim.Optimizer)]
        trained = self._trained.union(id(p) for o in held for group in o.param_groups for p in group["params"])
        idle = [found for key, found in self._idle.items() if key not in trained]
        if not idle or self._copies:
            return []
        models = ((n, v) for n, v in list(namespace.items()) if isinstance(v, nn.Module) and not n.startswith("_"))
        untrained = self._idle.keys() - trained
        name = next((n for n, model in models if any(id(p) in untrained for p in model.parameters())), "")
        return [Observation("untrained", sum(size for size, _ in idle), name, count=len(idle), device=idle[0][1])]


def _observation(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], namespace: Mapping[str, Any]
) -> Observation:
    held = [*parameters, *(t for state in optimizer.state.values() for t in tensors_in(state))]
    storages = {s for s in map(storage_of, held) if s is not None}
    name = next((n for n, v in list(namespace.items()) if v is optimizer), type(optimizer).__name__)
    count = sum(s.nbytes for s in storages)
    return Observation("orphan_optimizer", count, name, count=len(parameters), device=str(parameters[0].device))

"""Optimizers that train nothing, and gradients that no optimizer uses: steps and the leaves of every backward come in, `Observation`s
go out."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes.reach import storage_of
from ipyvram.probes.tensors import tensors_in
from ipyvram.recording import Observation


class Orphans:
    """An optimizer is an orphan when it stepped, backwards ran, none of them reached one of its parameters, and none had a gradient.

    The last is for those that own copies (32-bit weights, shards) whose gradients the program or a wrapper brings along.

    A parameter is untrained when it has a gradient at the end, and no optimizer that stepped or that a variable holds has it.
    """

    def __init__(self) -> None:
        self._leaves: dict[int, weakref.ref[Tensor]] = {}  # by id; the optimizers below keep theirs alive
        self._fed: set[int] = set()  # ids of optimizers
        self._optimizers: dict[int, weakref.ref[torch.optim.Optimizer]] = {}

    def backward(self, leaves: Iterable[Tensor]) -> None:
        """A backward is about to reach these leaves."""
        self._leaves.update((id(leaf), weakref.ref(leaf)) for leaf in leaves)

    def stepped(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer makes a step."""
        self._optimizers.setdefault(id(optimizer), weakref.ref(optimizer))
        if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            self._fed.add(id(optimizer))

    def observations(self, namespace: Mapping[str, Any]) -> list[Observation]:
        """The orphans among the optimizers that stepped."""
        found: list[Observation] = []
        for ref in self._optimizers.values():
            optimizer = ref()
            if optimizer is None or not self._leaves or id(optimizer) in self._fed:
                continue
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if parameters and not any(id(p) in self._leaves for p in parameters):
                found.append(_observation(optimizer, parameters, namespace))
        return found or self._untrained(namespace)

    def _untrained(self, namespace: Mapping[str, Any]) -> list[Observation]:
        """Gradients that were made for nobody. Nothing where an optimizer has copies of the parameters: whose, nobody knows."""
        stepped = [optimizer for ref in self._optimizers.values() if (optimizer := ref()) is not None]
        trained = [{id(p) for group in o.param_groups for p in group["params"]} for o in stepped]
        if not trained or any(own.isdisjoint(self._leaves) for own in trained):
            return []
        held = [value for value in list(namespace.values()) if isinstance(value, torch.optim.Optimizer)]
        trained += [{id(p) for group in o.param_groups for p in group["params"]} for o in held]
        leaves = [leaf for ref in self._leaves.values() if (leaf := ref()) is not None]
        idle = [leaf for leaf in leaves if isinstance(leaf, nn.Parameter) and leaf.grad is not None]
        idle = [leaf for leaf in idle if not any(id(leaf) in own for own in trained)]
        if not idle:
            return []
        models = ((n, v) for n, v in list(namespace.items()) if isinstance(v, nn.Module) and not n.startswith("_"))
        name = next((n for n, model in models if any(p is idle[0] for p in model.parameters())), "")
        count = sum(
            s.nbytes for s in {storage_of(leaf.grad) for leaf in idle if leaf.grad is not None} if s is not None
        )
        return [Observation("untrained", count, name, count=len(idle), device=str(idle[0].device))]


def _observation(
    optimizer: torch.optim.Optimizer, parameters: list[Tensor], namespace: Mapping[str, Any]
) -> Observation:
    held = [*parameters, *(t for state in optimizer.state.values() for t in tensors_in(state))]
    storages = {s for s in map(storage_of, held) if s is not None}
    name = next((n for n, v in list(namespace.items()) if v is optimizer), type(optimizer).__name__)
    count = sum(s.nbytes for s in storages)
    return Observation("orphan_optimizer", count, name, count=len(parameters), device=str(parameters[0].device))

"""Models and optimizers come in; claims on what they own go out: parameters, buffers, gradients, state."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ipyvram.probes.claiming import Claiming
from ipyvram.probes.models import Models
from ipyvram.probes.tensors import (
    attributes_of,
    frozen_in,
    gradient_of,
    shape_of,
    storage_key,
    storage_of,
    tensors_in,
)

#: A plain attribute of a module: what it keeps beside parameters and buffers (keys and values, a queue).
ATTRIBUTE = "attribute"

_NOWHERE = -1  # no storage's key
_NUMBERS = frozenset({int, float, bool, str, type(None)})


class MemberClaims:
    """Claims members of models and optimizers once, and again where they lie elsewhere. Keeps nothing alive.

    Parameters
    ----------
    claiming : Claiming
    use : callable
        Told of storages that compiled code uses; whether they count from now on, and did not before.

    Attributes
    ----------
    models : Models
        Which module is a part of which model.
    seen : WeakKeyDictionary of Module or Optimizer to str
        The label of each model, an empty text for an optimizer; of any trace: in a function only this knows of those that do not
        run in the next.
    """

    def __init__(self, claiming: Claiming, use: Callable[[torch.UntypedStorage], bool]) -> None:
        self._claiming, self._use = claiming, use
        self.models = Models()
        self.seen: weakref.WeakKeyDictionary[nn.Module | torch.optim.Optimizer, str] = weakref.WeakKeyDictionary()
        self._paths: dict[str, tuple[int, ...]] = {}  # path of a parameter or buffer → its shape
        self._modules: weakref.WeakKeyDictionary[nn.Module, int | None] = weakref.WeakKeyDictionary()
        self._optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Another trace begins: all of them are to be claimed anew."""
        self._modules.clear()
        self._optimizers.clear()

    def module(self, root: nn.Module, label: str, before: bool = False, again: bool = False) -> None:
        """Parameters, buffers and existing gradients of a model, by their paths; those of a known one only ``again``."""
        if not again and self._knows(root):
            return  # its members are known; new ones show up through the optimizer and the graph
        lazy, weight = False, self.models.add(root, label)
        for path, parameter in root.named_parameters():
            if is_lazy(parameter):
                lazy = True
                continue
            self._member(parameter, "parameters", path, label, weight, before)
        for path, buffer in root.named_buffers():
            if not is_lazy(buffer):
                self._member(buffer, "buffers", path, label, weight, before)
        for path, tensor in frozen_in(root):
            self._member(tensor, "parameters", path, label, weight, before)
        for path, tensor in attributes_of(root):
            # Met after its forwards, it may be a result of them as well.
            self._claiming.claim_once(tensor, "" if again and not before else ATTRIBUTE, path, label, before)
        if not lazy:
            self._modules[root] = _first_storage(root)
            self.seen[root] = label

    def _member(self, tensor: Tensor, category: str, path: str, label: str, weight: int, before: bool) -> None:
        """A parameter with its gradient, or a buffer, named after the largest model seen so far."""
        self._paths[path] = tuple(shape_of(tensor))
        known = self._claiming.name_of(tensor)
        name = self._claiming.give_name(tensor, path, label, weight)
        model, gradient = self._claiming.model_of(tensor, label), gradient_of(tensor)
        self._claiming.claim_once(tensor, category, name, model, before)
        if gradient is not None:
            self._claiming.claim_once(gradient, "gradients", name + ".grad", model, before)
        if name != known:
            self._claiming.rename(tensor, category, name, model)
            if gradient is not None:
                self._claiming.rename(gradient, "gradients", name + ".grad", model)

    def _knows(self, root: nn.Module) -> bool:
        """Whether its members were claimed where they are now: `to`, `half` and the like give them other storages."""
        return self._modules.get(root, _NOWHERE) == _first_storage(root)

    def optimizer(self, optimizer: torch.optim.Optimizer, before: bool = False) -> None:
        """The parameters an optimizer updates, and the state it keeps for each."""
        self._optimizers[optimizer] = len(optimizer.state)
        self.seen[optimizer] = ""
        kind = type(optimizer).__name__
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                if not self._claiming.is_claimed(parameter, "parameters") and not is_lazy(parameter):
                    name = self._claiming.give_name(parameter, f"parameter {i}", weight=0)
                    self._claiming.claim_once(
                        parameter, "parameters", name, self._claiming.model_of(parameter, kind), before
                    )
        for parameter, state in list(optimizer.state.items()):
            new = self._new_state(state) if isinstance(state, dict) else ()
            if not new:
                continue
            tensor_key = isinstance(parameter, Tensor)  # some keep state under names
            name = self._claiming.name_of(parameter) if tensor_key else str(parameter)
            model = self._claiming.model_of(parameter, kind) if tensor_key else kind
            for key, value in new:
                for tensor in tensors_in(value):
                    self._claiming.claim_once(tensor, "optimizer_state", f"{name}.{key}".lstrip("."), model, before)

    def compiled(self, optimizer: torch.optim.Optimizer) -> None:
        """As `optimizer`, after a step of it in compiled code: nothing else tells that its state was used."""
        for parameter, state in list(optimizer.state.items()):
            for key, tensor in ((key, tensor) for key, value in state.items() for tensor in tensors_in(value)):
                storage = storage_of(tensor)
                if storage is not None and self._use(storage):  # earlier claims were of what did not count yet
                    name = f"{self._claiming.name_of(parameter)}.{key}"
                    self._claiming.claim(tensor, "optimizer_state", name, self._claiming.model_of(parameter))
        self.optimizer(optimizer)

    def follows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer was seen in this trace, with as much state as now: what else changes is seen after its step."""
        return self._optimizers.get(optimizer) == len(optimizer.state)

    def _new_state(self, state: dict[Any, Any]) -> list[tuple[Any, Any]]:
        """What of a parameter's state may have to be claimed: at most steps, nothing."""
        return [
            (key, value)
            for key, value in state.items()
            if type(value) not in _NUMBERS
            and not (isinstance(value, Tensor) and self._claiming.is_claimed(value, "optimizer_state"))
        ]

    def gradients(self, parameters: Iterable[Tensor]) -> None:
        """``.grad`` of leaves, after the engine or an optimizer touched them."""
        for parameter in parameters:
            gradient = gradient_of(parameter)
            if gradient is not None and not self._claiming.is_claimed(gradient, "gradients"):
                name = (self._claiming.name_of(parameter) or "parameter") + ".grad"
                self._claiming.claim_once(gradient, "gradients", name, self._claiming.model_of(parameter))

    def claimed(self, root: nn.Module) -> bool:
        """Whether the members of a model were claimed in this trace, wherever they are now."""
        return root in self._modules

    def has_member(self, path: str, tensor: Tensor) -> bool:
        """Whether a parameter or buffer of this path, of whatever model, has the shape of ``tensor``."""
        return self._paths.get(path) == tuple(shape_of(tensor))


def _first_storage(root: nn.Module) -> int | None:
    first = next(itertools.chain(root.parameters(), root.buffers()), None)
    return None if first is None else storage_key(first)

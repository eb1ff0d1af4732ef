"""Who holds which storage: claims, written down while the storage is certainly live.

Nothing here keeps a tensor alive, unpacks a saved one or bumps a version counter.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ipyvram.probes import results
from ipyvram.probes.claiming import LASTING, Claiming, Identify
from ipyvram.probes.clock import Clock
from ipyvram.probes.collection import without_collection
from ipyvram.probes.copies import COPY, STATE, Container, copies_in
from ipyvram.probes.graph_claims import DATA, GraphClaims
from ipyvram.probes.leftovers import Left, left_by, leftovers
from ipyvram.probes.models import Models, Place, whole_first
from ipyvram.probes.namespace import CONTAINERS, DEEP, RESULT, SHALLOW, begins_with_tensor, holdings
from ipyvram.probes.tensors import (
    attributes_of,
    frozen_in,
    gradient_of,
    is_parameter,
    shape_of,
    storage_key,
    storage_of,
    tensors_in,
)
from ipyvram.probes.variables import Variables
from ipyvram.recording import Claim

#: A plain attribute of a module: what it keeps beside parameters and buffers (keys and values, a queue).
ATTRIBUTE = "attribute"
#: Returned by a model in an earlier cell, and held by a variable since.
RESULT_BEFORE = "result"
#: Saved for backward by a graph that was there before the cell.
KEPT = "kept"

#: What a graph keeps from before the cell.
_OF_GRAPHS = {"activations": KEPT, "data": DATA}

_NUMBERS = frozenset({int, float, bool, str, type(None)})


class Owners:
    """Writes `claims`. Methods are called by `phases` and `run` at the moments they are named after.

    Parameters
    ----------
    clock, identify
        See `Claiming`.
    namespace : mapping
        The notebook's variables; read, never changed.
    use : callable
        Told of storages that compiled code uses; whether they count from now on, and did not before.
    """

    def __init__(
        self,
        clock: Clock,
        identify: Identify,
        namespace: Mapping[str, Any],
        use: Callable[[torch.UntypedStorage], bool] = lambda storage: False,
    ) -> None:
        self._claiming, self._namespace, self._use = Claiming(clock, identify), namespace, use
        self.claims: list[Claim] = self._claiming.made
        self.notes: list[str] = []
        self.graphs = GraphClaims(self._claiming, namespace, self.variable_of)
        self._paths: dict[str, tuple[int, ...]] = {}  # path of a parameter or buffer → its shape
        self._models = Models()
        self._modules: weakref.WeakKeyDictionary[nn.Module, tuple[str, int | None]] = weakref.WeakKeyDictionary()
        self._optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._given: set[int] = set()  # keys of the storages that the last root module was called with
        self._signatures: dict[type, tuple[str, ...]] = {}
        # Of any trace: in a function only this knows of those that do not run in the next.
        self._seen: weakref.WeakKeyDictionary[nn.Module | torch.optim.Optimizer, str] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """Another trace begins: it gives storages addresses of its own, so everything is claimed anew."""
        self._claiming.forget()
        self.graphs.new_trace()
        self._modules.clear()
        self._optimizers.clear()

    # -- modules and optimizers ----------------------------------------------------------------------------------------

    def module(self, root: nn.Module, label: str, before: bool = False, again: bool = False) -> None:
        """Parameters, buffers and existing gradients of a model, by their paths; those of a known one only ``again``."""
        if not again and self._knows(root):
            return  # its members are known; new ones show up through the optimizer and the graph
        lazy, weight = False, self._models.add(root, label)
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
            self._modules[root] = label, _first_storage(root)
            self._seen[root] = label

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
        known = self._modules.get(root)
        return known is not None and known[1] == _first_storage(root)

    def optimizer(self, optimizer: torch.optim.Optimizer, before: bool = False) -> None:
        """The parameters an optimizer updates, and the state it keeps for each."""
        self._optimizers[optimizer] = len(optimizer.state)
        self._seen[optimizer] = ""
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

    # -- a step ------------------------------------------------------------------------------------------------------

    def inputs(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What a root module is called with: data has no history."""
        names = self._argument_names(root) if args else ()
        for i, value in enumerate(args):
            self._data(value, names[i] if i < len(names) else f"argument {i}")
        for name, value in kwargs.items():
            self._data(value, name)

    def _data(self, value: Any, name: str) -> None:
        for tensor in tensors_in(value):
            if tensor.grad_fn is None and not is_parameter(tensor):
                self._claiming.claim(tensor, "inputs", name)
                self._given.add(storage_key(tensor) or 0)
                if tensor.requires_grad:
                    self._claiming.give_name(tensor, self.variable_of(tensor) or name)

    def outputs(self, value: Any, name: str) -> None:
        """What a root module or the user keeps as a result; objects are looked into, too (a cache of keys and values)."""
        named = set[int]()
        for path, found in ((name, value),) if isinstance(value, Tensor) else holdings({name: value}, *RESULT):
            if isinstance(found, Tensor):
                named.add(id(found))
                results.remember(found, self._given)
                self._claiming.claim(found, "outputs", path)
        for tensor in tensors_in(value):
            if id(tensor) not in named:
                results.remember(tensor, self._given)
                self._claiming.claim(tensor, "outputs", name)
        self._given.clear()

    def gradients(self, parameters: Iterable[Tensor]) -> None:
        """``.grad`` of leaves, after the engine or an optimizer touched them."""
        for parameter in parameters:
            gradient = gradient_of(parameter)
            if gradient is not None and not self._claiming.is_claimed(gradient, "gradients"):
                name = (self._claiming.name_of(parameter) or "parameter") + ".grad"
                self._claiming.claim_once(gradient, "gradients", name, self._claiming.model_of(parameter))

    # -- the namespace -----------------------------------------------------------------------------------------------

    def namespace(self, before: bool = False, deep: bool = True, left: bool = False) -> None:
        """What the notebook's variables hold: models, optimizers, scalers, and names for tensors.

        Parameters
        ----------
        before : bool
            True at the start of the cell: what is found was there before it.
        deep : bool
            Look into objects too (a loader's data set), not only into variables and containers.
        left : bool
            Look for what earlier cells left beside the variables also though a trace begins in the middle of the cell.
        """
        with without_collection():
            self._claim_all(before, deep, left)

    def _claim_all(self, before: bool, deep: bool, left: bool) -> None:
        cut = self._not_all_seen if deep else None
        containers: list[Container] = []
        found = list(holdings(self._namespace, *(DEEP if deep else SHALLOW), cut, containers))
        modules = [
            (name, value)
            for name, value in found
            if isinstance(value, nn.Module) and (deep or value not in self._modules)
        ]
        for name, module in whole_first(modules):
            _tolerate(self.module, module, name, before, deep)
        _tolerate(self._copies, found, containers, before)
        for name, value in found:
            if not isinstance(value, nn.Module):
                _tolerate(self._variable, value, name, before, deep)
        if left and not before:
            self._of_earlier_traces(deep)
        if before or left:
            self._left_behind(found)

    def containers_in_functions(self) -> None:
        """Containers with a tensor for each parameter, among the variables of the functions that are running."""
        variables = Variables().all()
        held = {name: value for (_, name), value in variables.items() if issubclass(type(value), CONTAINERS)}
        if any(begins_with_tensor(value) and self._namespace.get(name) is not value for name, value in held.items()):
            containers: list[Container] = []
            found = list(holdings(held, *SHALLOW, containers=containers))
            _tolerate(self._copies, found, containers, False)

    def _copies(self, found: list[tuple[str, Any]], containers: list[Container], before: bool) -> None:
        """Containers with a tensor for each parameter of a model."""
        if containers:
            for name, tensor, kind in copies_in([*(value for _, value in found), *self._seen], containers):
                self._claiming.claim_once(tensor, kind, name, "", before)

    def _of_earlier_traces(self, deep: bool) -> None:
        """What is there in the middle of the cell beside the notebook's variables: models and optimizers of earlier traces, the
        last batch of a loop."""
        for owner, name in list(self._seen.items()):
            if isinstance(owner, nn.Module):
                _tolerate(self.module, owner, name)
            else:
                _tolerate(self._variable, owner, name, False, deep)
        variables = {name: value for (_, name), value in Variables().all().items()}
        for name, value in holdings(variables, *SHALLOW):
            if isinstance(value, Tensor):
                _tolerate(self._variable, value, name, False, deep)

    def _not_all_seen(self) -> None:
        note = f"the variables hold more than {DEEP[1]:,} objects: tensors that were not looked at are counted as other"
        self.notes = [note]

    def _left_behind(self, found: list[tuple[str, Any]]) -> None:
        """What earlier cells left in graphs, in ``Out`` and in the last error."""
        for left in leftovers(self._namespace, found):
            _tolerate(self._left, left, True)

    def held_by(self, error: BaseException) -> None:
        """What the frames of the error that ended the cell hold."""
        for left in left_by(error, self._namespace):
            _tolerate(self._left, left, False)

    def _left(self, left: Left, before: bool) -> None:
        if left.category in LASTING:
            self._claiming.claim_once(left.tensor, left.category, left.name, "", before)
        elif before or not left.category:  # more is known of this cell's graphs and of what has a history
            category = _OF_GRAPHS.get(left.category, left.category)
            self._claiming.claim(left.tensor, category, left.name, "", before, (left.graph_of, left.in_error))

    def _variable(self, value: Any, name: str, before: bool, deep: bool) -> None:
        if isinstance(value, torch.optim.Optimizer):
            if deep or not self.follows(value):
                self.optimizer(value, before)
                # Of a model that is gone, say.
                self.gradients(p for group in value.param_groups for p in group["params"])
        elif not isinstance(value, Tensor):
            self._state_of(value, name, before)
        elif value.requires_grad and value.is_leaf:
            self._leaf(value, name, before)
        elif not any(self._claiming.is_claimed(value, kind) for kind in (COPY, STATE)):
            path = name.partition("['")[2].removesuffix("']")
            result = value.grad_fn is not None
            # What autograd computed from the parameters (fast weights of an inner loop) is a result of the program.
            copied = bool(path) and not result and self._paths.get(path) == tuple(shape_of(value))
            if result:
                self._claiming.claim_once(value, "outputs", name, "", before)
                if (gradient := gradient_of(value)) is not None:  # retained
                    self._claiming.claim_once(gradient, "gradients", name + ".grad", "", before)
            if before and not result and results.is_result(value):
                self._claiming.claim_once(value, RESULT_BEFORE, name, "", before)
            self._claiming.claim_once(value, COPY if copied else "", name, "", before)

    def _state_of(self, value: Any, name: str, before: bool) -> None:
        """What a gradient scaler, or an optimizer of the user's own, keeps."""
        for key, part in list(vars(value).items()):
            for tensor in tensors_in(part):
                if tensor.requires_grad and tensor.is_leaf:
                    self._leaf(tensor, f"{name}.{key}", before)
                else:
                    self._claiming.claim_once(tensor, "optimizer_state", f"{name}.{key}", type(value).__name__, before)

    def _leaf(self, value: Tensor, name: str, before: bool) -> None:
        name = self._claiming.give_name(value, name)
        self._claiming.claim_once(value, "parameters", name, "", before)
        if value.grad is not None:
            self._claiming.claim_once(value.grad, "gradients", name + ".grad", "", before)

    def root(self, module: nn.Module) -> Place:
        """Claim a root module's members; where it is."""
        place = self.place_of(module)
        self.module(module, type(module).__name__ if place.path else place.model)
        return place

    def place_of(self, root: nn.Module) -> Place:
        """The model that a root module is, or is a part of."""
        known = self._models.place(root)
        if known is None and next(root.parameters(), None) is not None:
            _tolerate(self._meet_models)
            known = self._models.place(root)
        return known or Place(self.variable_of(root) or type(root).__name__, "", 0)

    def _meet_models(self) -> None:
        """Models that the cell has made and variables hold: before the first of their parts runs, whose paths say less."""
        found = [(name, value) for name, value in holdings(self._namespace, *SHALLOW) if isinstance(value, nn.Module)]
        for name, module in whole_first([m for m in found if self._models.place(m[1]) is None]):
            _tolerate(self.module, module, name)

    def variable_of(self, value: object) -> str:
        """The variable that holds an object, else an empty string."""
        return next((n for n, v in list(self._namespace.items()) if v is value and not n.startswith("_")), "")

    def _argument_names(self, root: nn.Module) -> tuple[str, ...]:
        kind = type(root)
        if kind not in self._signatures:
            self._signatures[kind] = _names_of(getattr(kind, "forward", None))[1:]
        return self._signatures[kind]


def _names_of(function: Any) -> tuple[str, ...]:
    """What a function calls its arguments."""
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):
        code = function.__code__  # at once: a signature takes a tenth of a millisecond
        if not code.co_flags & inspect.CO_VARARGS:
            return code.co_varnames[: code.co_argcount]
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a scripted module has no forward of Python
        return ()


def _first_storage(root: nn.Module) -> int | None:
    first = next(itertools.chain(root.parameters(), root.buffers()), None)
    return None if first is None else storage_key(first)


def _tolerate(action: Callable[..., None], *args: Any) -> None:
    """A user's object may raise from anything; then only its name is lost."""
    try:
        action(*args)
    except Exception:
        return

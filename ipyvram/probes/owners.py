"""Who holds which storage: claims, written down while the storage is certainly live.

Nothing here keeps a tensor alive, unpacks a saved one or bumps a version counter.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ipyvram.probes.clock import Clock
from ipyvram.probes.graph import kept_by_context, leaf_of, node_of, nodes_below, saved_by
from ipyvram.probes.leftovers import leftovers
from ipyvram.probes.namespace import holdings
from ipyvram.probes.tensors import (
    NO_STORAGE,
    dtype_name,
    is_parameter,
    plain_tensors,
    shape_of,
    storage_key,
    storage_of,
    tensors_in,
)
from ipyvram.probes.variables import Variables
from ipyvram.recording import Claim

#: storage → (device id, address in the trace of that device), None for a storage that no trace follows
Identify = Callable[[torch.UntypedStorage, bool], tuple[str, int] | None]
Where = tuple[str, int]

#: Private categories of claims. The graph let go of the storage: ends earlier claims of `activations`.
RELEASED = "released"
#: Saved for backward, but handed in: nothing in the graph made it.
DATA = "data"
#: Held under the name of a parameter of a model and of its shape: an average, a best state, or gradients by name.
COPY = "copy"
#: Saved for backward by a graph that was there before the cell.
KEPT = "kept"

#: Whoever holds these does so for long: not seen so far, they were there before the cell.
_PLAIN = frozenset({Tensor, nn.Parameter})
_NUMBERS = frozenset({int, float, bool, str, type(None)})
_LASTING = frozenset({"parameters", "buffers", "optimizer_state", "gradients"})
_DEEP = 6, 20_000  # depth into objects and containers, and how many of them: at the start and the end
_SHALLOW = 1, 2_000  # at each backward


class Owners:
    """Writes `claims`. Methods are called by `phases` and `run` at the moments they are named after.

    Parameters
    ----------
    clock : Clock
    identify : callable
        See `Identify`; its second argument says that the storage was there before the cell.
    namespace : mapping
        The notebook's variables; read, never changed.
    """

    def __init__(self, clock: Clock, identify: Identify, namespace: Mapping[str, Any]) -> None:
        self._clock, self._identify, self._namespace = clock, identify, namespace
        self.claims: list[Claim] = []
        self._claimed: dict[str, dict[int, tuple[Any, int]]] = defaultdict(dict)  # category, id(tensor) → its storage
        # What graphs that the engine has not run yet saved: a node by itself, and all below one that is a module's only result.
        # By number, which is unique on one thread: the engine has others for other devices.
        self._saved: dict[tuple[int, type], tuple[list[Where], list[Claim]]] = {}
        self._whole: dict[int, tuple[list[Where], list[Claim], list[weakref.ref[Tensor]]]] = {}
        self._thread, self._one_thread = threading.get_ident(), True
        self._names: dict[int, tuple[Any, str, str]] = {}  # by id(parameter): reference, name, model
        self._paths: dict[str, tuple[int, ...]] = {}  # path of a parameter or buffer → its shape
        self._modules: weakref.WeakKeyDictionary[nn.Module, tuple[str, int | None]] = weakref.WeakKeyDictionary()
        self._optimizers: weakref.WeakKeyDictionary[torch.optim.Optimizer, int] = weakref.WeakKeyDictionary()
        self._signatures: dict[type, tuple[str, ...]] = {}
        self._backward: list[tuple[Any, list[Where]]] = []  # graphs in the engine now, innermost last

    def forget(self) -> None:
        """A new trace begins: it gives storages new addresses, so everything is claimed anew."""
        self._forget_graphs()
        self._claimed.clear()
        self._modules.clear()
        self._optimizers.clear()
        self._backward.clear()

    # -- one claim ---------------------------------------------------------------------------------------------------

    def claim(self, tensor: Tensor, category: str, name: str, module: str = "", before: bool = False) -> Where | None:
        """Claim the storages below ``tensor``; those that no trace follows are passed over."""
        before = before or category in _LASTING
        # Nearly all are plain: one with a storage is, unless its class says that it is made of others.
        if type(tensor) in _PLAIN and (storage := storage_of(tensor)) is not None:
            return self._claim_storage(tensor, storage, category, name, module, before)
        found = None
        for part in plain_tensors(tensor):
            if (storage := storage_of(part)) is not None:
                found = self._claim_storage(part, storage, category, name, module, before) or found
        return found

    def _claim_storage(
        self, tensor: Tensor, storage: torch.UntypedStorage, category: str, name: str, module: str, before: bool
    ) -> Where | None:
        where = self._identify(storage, before)
        if where is not None:
            device, address = where
            shape, dtype = tuple(shape_of(tensor)), dtype_name(tensor.dtype)
            self.claims.append(
                Claim(self._clock(), device, address, storage.nbytes(), category, name, module, shape, dtype)
            )
        return where

    def _claim_once(self, tensor: Tensor, category: str, name: str, module: str = "", before: bool = False) -> None:
        """Claim it unless the same tensor with the same storage was claimed so."""
        if self._is_claimed(tensor, category):
            return
        key = storage_key(tensor)
        if key is not None and self.claim(tensor, category, name, module, before) is not None:
            self._claimed[category][id(tensor)] = (weakref.ref(tensor), key)

    def _is_claimed(self, tensor: Tensor, category: str) -> bool:
        """Whether this tensor, with the storage that it has now, was claimed so: asked at every step for all of them."""
        known = self._claimed[category].get(id(tensor))
        if known is None or known[0]() is not tensor:
            return False
        try:
            return bool(tensor.untyped_storage()._cdata == known[1])
        except NO_STORAGE:
            return storage_key(tensor) == known[1]

    def _name_of(self, parameter: Tensor) -> str:
        known = self._names.get(id(parameter))
        return known[1] if known is not None and known[0]() is parameter else ""

    def _model_of(self, parameter: Tensor, otherwise: str = "") -> str:
        known = self._names.get(id(parameter))
        return (known[2] if known is not None and known[0]() is parameter else "") or otherwise

    def _give_name(self, parameter: Tensor, name: str, model: str = "") -> str:
        """The name a parameter has; ``name`` if it had none."""
        known = self._name_of(parameter)
        if not known and name:
            self._names[id(parameter)] = (weakref.ref(parameter), name, model)
        return known or name

    # -- modules and optimizers ----------------------------------------------------------------------------------------

    def module(self, root: nn.Module, label: str, before: bool = False, again: bool = False) -> None:
        """Parameters, buffers and existing gradients of a model, by their paths; those of a known one only ``again``."""
        if not again and self._knows(root):
            return  # its members are known; new ones show up through the optimizer and the graph
        lazy = False
        for path, parameter in root.named_parameters():
            if is_lazy(parameter):
                lazy = True
                continue
            self._paths[path] = tuple(shape_of(parameter))
            name = self._give_name(parameter, path, label)
            self._claim_once(parameter, "parameters", name, label, before)
            if parameter.grad is not None:
                self._claim_once(parameter.grad, "gradients", name + ".grad", label, before)
        for path, buffer in root.named_buffers():
            if not is_lazy(buffer):
                self._paths[path] = tuple(shape_of(buffer))
                self._claim_once(buffer, "buffers", path, label, before)
        if not lazy:
            self._modules[root] = label, _first_storage(root)

    def _knows(self, root: nn.Module) -> bool:
        """Whether its members were claimed where they are now: `to`, `half` and the like give them other storages."""
        known = self._modules.get(root)
        return known is not None and known[1] == _first_storage(root)

    def optimizer(self, optimizer: torch.optim.Optimizer, before: bool = False) -> None:
        """The parameters an optimizer updates, and the state it keeps for each."""
        self._optimizers[optimizer] = len(optimizer.state)
        kind = type(optimizer).__name__
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                if not self._is_claimed(parameter, "parameters") and not is_lazy(parameter):
                    name = self._give_name(parameter, f"parameter {i}")
                    self._claim_once(parameter, "parameters", name, self._model_of(parameter, kind), before)
        for parameter, state in list(optimizer.state.items()):
            new = self._new_state(state) if isinstance(state, dict) else ()
            if not new:
                continue
            tensor_key = isinstance(parameter, Tensor)  # some keep state under names
            name = self._name_of(parameter) if tensor_key else str(parameter)
            model = self._model_of(parameter, kind) if tensor_key else kind
            for key, value in new:
                for tensor in tensors_in(value):
                    self._claim_once(tensor, "optimizer_state", f"{name}.{key}".lstrip("."), model, before)

    def follows(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer was seen in this trace, with as much state as now: what else changes is seen after its step."""
        return self._optimizers.get(optimizer) == len(optimizer.state)

    def _new_state(self, state: dict[Any, Any]) -> list[tuple[Any, Any]]:
        """What of a parameter's state may have to be claimed: at most steps, nothing."""
        return [
            (key, value)
            for key, value in state.items()
            if type(value) not in _NUMBERS
            and not (isinstance(value, Tensor) and self._is_claimed(value, "optimizer_state"))
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
                self.claim(tensor, "inputs", name)
                if tensor.requires_grad:
                    self._give_name(tensor, self.variable_of(tensor) or name)

    def outputs(self, value: Any, name: str) -> None:
        """What a root module or the user keeps as a result."""
        for tensor in tensors_in(value):
            self.claim(tensor, "outputs", name)

    def graph(self, roots: Iterable[Any], since: int = 0, backward: bool = False) -> list[Tensor]:
        """Everything the autograd graph below ``roots`` saved for backward; leaves that want gradients are parameters.

        Parameters
        ----------
        roots : iterable of Tensor or GradientEdge
        since : int
            Leave out what nodes with a lower sequence number saved.
        backward : bool
            The engine is about to run this graph; `released` will be called when it is done.

        Returns
        -------
        list of Tensor
            The leaves that the engine accumulates gradients into.
        """
        saved, made, leaves, sample = list[Where](), list[Claim](), list[Tensor](), None
        roots, seen = list(roots), set[Any]()
        self._one_thread &= threading.get_ident() == self._thread
        again = self._one_thread and all(getattr(root, "is_cpu", False) for root in roots)
        whole = self._whole if again else {}
        for node in nodes_below(roots, since, seen, whole):
            leaf = leaf_of(node)
            if leaf is not None:
                if self._leaf(leaf):
                    leaves.append(leaf)
                continue
            number = node._sequence_nr()
            if number in whole:
                below, claims, references = whole[number]
                leaves += [leaf for leaf in (reference() for reference in references) if leaf is not None]
                self._claim_again(claims)
            elif again and (known := self._saved.get((number, type(node)))) is not None:
                below, claims = known
                self._claim_again(claims)
            else:
                below, claims = self._claim_saved(node)
                if not backward:
                    self._saved[number, type(node)] = below, claims
            made += claims
            if below:
                saved += below
                sample = node
        if backward:
            # The node is held only while the engine runs, when the caller holds the graph's root as well.
            self._backward.append((sample, saved))
            self._forget_graphs()
        elif None not in seen and len(tops := {node_of(root) for root in roots}) == 1:
            top = tops.pop()
            if self._saved.get((top._sequence_nr(), type(top)), ((), ()))[
                0
            ]:  # it tells later whether the graph was freed
                self._whole[top._sequence_nr()] = saved, made, [weakref.ref(leaf) for leaf in leaves]
        return leaves

    def _forget_graphs(self) -> None:
        self._saved.clear()
        self._whole.clear()

    def _leaf(self, leaf: Tensor) -> bool:
        """Claim a leaf as parameter; False for what a reentrant checkpoint detached."""
        name = self._name_of(leaf)
        if name and self._is_claimed(leaf, "parameters"):
            return True
        name = name or self.variable_of(leaf)
        if not name and not is_parameter(leaf) and self._backward:
            return False
        self._give_name(leaf, name)
        self._claim_once(leaf, "parameters", name, self._model_of(leaf))
        return True

    def _claim_again(self, claims: list[Claim]) -> None:
        """What a forward saved is used now, by a backward."""
        now = self._clock()
        self.claims += [Claim(now, *claim[1:]) for claim in claims]

    def _claim_saved(self, node: Any) -> tuple[list[Where], list[Claim]]:
        """Claim what a node keeps for backward: where that lies, and the claims."""
        found, begin = list[Where](), len(self.claims)
        for _, field, tensor, data in saved_by(node):
            where = self.claim(tensor, DATA if data else "activations", f"{node.name()}.{field}")
            if where is not None:
                found.append(where)
        for _, field, tensor, _ in kept_by_context(node):
            self.claim(tensor, "activations", f"{node.name()}.{field}")
        return found, self.claims[begin:]

    def kept_graphs(self, read: Sequence[tuple[int, int]]) -> None:
        """What graphs saved that variables keep and no backward ran through: of a loss that was only looked at.

        Parameters
        ----------
        read : sequence of (int, int)
            Between which sequence numbers graphs were read before, ascending: these parts are passed over. Empty: nothing is
            looked for.
        """
        if not read:
            return
        # Without a notebook the block stands in a function, which still runs.
        variables = self._namespace or {name: value for (_, name), value in Variables().all().items()}
        begins, roots = [begin for begin, _ in read], dict[int, list[Tensor]]()
        for name, value in holdings(variables, *_SHALLOW):
            node = value.grad_fn if isinstance(value, Tensor) else None
            if node is not None:
                since = read[bisect_right(begins, node._sequence_nr()) - 1][1]
                if node._sequence_nr() >= since:
                    self._claim_once(value, "", name)
                    roots.setdefault(since, []).append(value)
        for since, tensors in roots.items():
            self.graph(tensors, since)

    def released(self) -> None:
        """The engine returned: claims on a graph that it freed end here; a kept graph (``retain_graph``) keeps them."""
        if not self._backward:
            return
        node, saved = self._backward.pop()
        if node is not None and any(True for _ in saved_by(node)):
            return
        now = self._clock()
        self.claims.extend(Claim(now, device, address, 0, RELEASED, "") for device, address in dict.fromkeys(saved))

    def gradients(self, parameters: Iterable[Tensor]) -> None:
        """``.grad`` of leaves, after the engine or an optimizer touched them."""
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and not self._is_claimed(gradient, "gradients"):
                name = (self._name_of(parameter) or "parameter") + ".grad"
                self._claim_once(gradient, "gradients", name, self._model_of(parameter))

    # -- the namespace -----------------------------------------------------------------------------------------------

    def namespace(self, before: bool = False, deep: bool = True) -> None:
        """What the notebook's variables hold: models, optimizers, scalers, and names for tensors.

        Parameters
        ----------
        before : bool
            True at the start of the cell: what is found was there before it.
        deep : bool
            Look into objects too (a loader's data set), not only into variables and containers.
        """
        found = list(holdings(self._namespace, *(_DEEP if deep else _SHALLOW)))
        modules = [
            (name, value)
            for name, value in found
            if isinstance(value, nn.Module) and (deep or value not in self._modules)
        ]
        # The whole before its parts: the path within the model says more than the one within a part of it.
        for name, module in sorted(modules, key=lambda m: -sum(1 for _ in m[1].modules())):
            _tolerate(self.module, module, name, before, deep)
        for name, value in found:
            if not isinstance(value, nn.Module):
                _tolerate(self._variable, value, name, before, deep)
        if before:
            self._left_behind(found)

    def _left_behind(self, found: list[tuple[str, Any]]) -> None:
        """What earlier cells left in graphs, in ``Out`` and in the last error."""
        for left in leftovers(self._namespace, found):
            category = (
                DATA if left.data else KEPT if left.saved else "outputs" if left.tensor.grad_fn is not None else ""
            )
            self.claim(left.tensor, category, left.name, before=True)

    def _variable(self, value: Any, name: str, before: bool, deep: bool) -> None:
        if isinstance(value, torch.optim.Optimizer):
            if deep or not self.follows(value):
                self.optimizer(value, before)
                self.gradients(
                    p for group in value.param_groups for p in group["params"]
                )  # of a model that is gone, say
        elif not isinstance(value, Tensor):
            for tensor in tensors_in(list(vars(value).values())):
                self._claim_once(tensor, "optimizer_state", name, type(value).__name__, before)
        elif value.requires_grad and value.is_leaf:
            name = self._give_name(value, name)
            self._claim_once(value, "parameters", name, "", before)
            if value.grad is not None:
                self._claim_once(value.grad, "gradients", name + ".grad", "", before)
        else:
            path = name.partition("['")[2].removesuffix("']")
            # What autograd computed from the parameters (fast weights of an inner loop) is a result of the program.
            copied = bool(path) and value.grad_fn is None and self._paths.get(path) == tuple(shape_of(value))
            result = before and value.grad_fn is not None  # of an earlier cell
            self._claim_once(value, COPY if copied else "outputs" if result else "", name, "", before)

    def label_of(self, root: nn.Module) -> str:
        """The variable that holds a root module, else its class."""
        return self._modules.get(root, ("", None))[0] or self.variable_of(root) or type(root).__name__

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

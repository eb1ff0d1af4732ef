"""Who holds which storage: claims, written down while the storage is certainly live.

Nothing here keeps a tensor alive, unpacks a saved one or bumps a version counter. The graph is read through
`node._raw_saved_*`: reading `node._saved_*` instead would re-run checkpointed forwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes.clock import Clock
from ipyvram.recording import Claim

#: storage → (device id, address in the trace of that device), None for a storage that no trace follows
Identify = Callable[[torch.UntypedStorage, bool], tuple[str, int] | None]

#: A claim's category that ends earlier claims of `activations`: the graph let go of the storage.
RELEASED = "released"

_MAX_NAMESPACE_ITEMS = 20_000  # tensors looked at in containers of the namespace; more is data, not names
_DTYPES: dict[torch.dtype, str] = {}


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
        self._lasting: set[tuple[str, int, str]] = set()  # parameters and the like: claimed once
        self._parameter_names: dict[int, str] = {}  # id(parameter) → path
        self._modules: dict[int, str] = {}  # id(root module) → label
        self._signatures: dict[type, tuple[str, ...]] = {}
        self._raw_fields: dict[type, tuple[str, ...]] = {}
        self._backward: list[tuple[Any, str, list[tuple[str, int]]]] = []  # graphs in the engine now, innermost last

    # -- one claim ---------------------------------------------------------------------------------------------------

    def claim(
        self, tensor: Tensor, category: str, name: str, module: str = "", before: bool = False
    ) -> tuple[str, int] | None:
        """Claim the storage of ``tensor``; storages that no trace follows, and tensors without one, are passed over."""
        found = None
        for part in _plain_tensors(tensor):
            storage = _storage(part)
            where = None if storage is None else self._identify(storage, before)
            if storage is None or where is None:
                continue
            found = where
            shape, dtype = tuple(part.shape), _DTYPES.get(part.dtype) or _dtype_name(part.dtype)
            self.claims.append(Claim(self._clock(), *where, storage.nbytes(), category, name, module, shape, dtype))
        return found

    def _claim_once(self, tensor: Tensor, category: str, name: str, module: str = "", before: bool = False) -> None:
        storage = _storage(tensor)
        where = None if storage is None else self._identify(storage, before)
        if where is not None and (*where, category) not in self._lasting:
            self._lasting.add((*where, category))
            self.claim(tensor, category, name, module, before)

    # -- modules and optimizers ----------------------------------------------------------------------------------------

    def module(self, root: nn.Module, label: str, before: bool = False) -> None:
        """Parameters, buffers and existing gradients of a model, by their paths."""
        if id(root) in self._modules and not before:
            return  # its members are known; new ones show up through the optimizer and the graph
        self._modules[id(root)] = label
        for path, parameter in root.named_parameters():
            self._parameter_names.setdefault(id(parameter), path)
            self._claim_once(parameter, "parameters", path, label, before)
            if parameter.grad is not None:
                self.claim(parameter.grad, "gradients", path + ".grad", label, before)
        for path, buffer in root.named_buffers():
            self._claim_once(buffer, "buffers", path, label, before)

    def optimizer(self, optimizer: torch.optim.Optimizer, before: bool = False) -> None:
        """The parameters an optimizer updates, and the state it keeps for each."""
        kind = type(optimizer).__name__
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                name = self._parameter_names.setdefault(id(parameter), f"parameter {i}")
                self._claim_once(parameter, "parameters", name, kind, before)
        for parameter, state in list(optimizer.state.items()):
            if isinstance(state, dict):
                name = self._parameter_names.get(id(parameter), "")
                for key, value in state.items():
                    for tensor in tensors_in(value):
                        self._claim_once(tensor, "optimizer_state", f"{name}.{key}".lstrip("."), kind, before)

    # -- a step ------------------------------------------------------------------------------------------------------

    def inputs(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What a root module is called with: data has no history and wants no gradient."""
        names = self._argument_names(root)
        for i, value in enumerate(args):
            self._data(value, names[i] if i < len(names) else f"argument {i}")
        for name, value in kwargs.items():
            self._data(value, name)

    def _data(self, value: Any, name: str) -> None:
        for tensor in tensors_in(value):
            if tensor.grad_fn is None and not isinstance(tensor, nn.Parameter):
                self.claim(tensor, "inputs", name)

    def outputs(self, value: Any, name: str) -> None:
        """What a root module or the user keeps as a result."""
        for tensor in tensors_in(value):
            self.claim(tensor, "outputs", name)

    def graph(self, roots: Iterable[Any], backward: bool = False) -> list[Tensor]:
        """Everything the autograd graph below ``roots`` saved for backward; leaves that want gradients are parameters.

        Parameters
        ----------
        roots : iterable of Tensor or GradientEdge
        backward : bool
            The engine is about to run this graph; `released` will be called when it is done.

        Returns
        -------
        list of Tensor
            The leaves that the engine accumulates gradients into.
        """
        nodes = [getattr(root, "grad_fn", None) or getattr(root, "node", None) for root in roots]
        seen: set[Any] = set()
        saved: list[tuple[str, int]] = []
        leaves: list[Tensor] = []
        sample: tuple[Any, str] = (None, "")
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes.extend(parent for parent, _ in node.next_functions)
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                leaves.append(leaf)
                self._claim_once(leaf, "parameters", self._parameter_names.get(id(leaf)) or self.variable_of(leaf), "")
                continue
            for field, tensor in self._saved(node):
                where = self.claim(tensor, "activations", f"{node.name()}.{field}")
                if where is not None:
                    saved.append(where)
                    sample = (node, field)
        if backward:
            # The node is held only while the engine runs, when the caller holds the graph's root as well.
            self._backward.append((*sample, saved))
        return leaves

    def _saved(self, node: Any) -> Iterator[tuple[str, Tensor]]:
        kind = type(node)
        fields = self._raw_fields.get(kind)
        if fields is None:
            fields = self._raw_fields[kind] = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
        for name in fields:
            try:
                raws = getattr(node, name)
            except RuntimeError:
                continue  # the graph was freed
            for raw in raws if isinstance(raws, (tuple, list)) else (raws,):
                tensor = getattr(raw, "data", None)
                if isinstance(tensor, Tensor):  # None when freed or absent; a hook may have packed something else
                    yield name.removeprefix("_raw_saved_"), tensor
        if "_raw_saved_tensors" in fields:  # a Python Function may keep tensors on its context as well
            for key, value in list(getattr(node, "__dict__", {}).items()):
                for tensor in tensors_in(value):
                    yield key, tensor

    def released(self) -> None:
        """The engine returned: claims on a graph that it freed end here; a kept graph (``retain_graph``) keeps them."""
        if not self._backward:
            return
        node, field, saved = self._backward.pop()
        if node is not None and any(name == field for name, _ in self._saved(node)):
            return
        now = self._clock()
        self.claims.extend(Claim(now, device, address, 0, RELEASED, "") for device, address in saved)

    def gradients(self, parameters: Iterable[Tensor]) -> None:
        """``.grad`` of leaves, after the engine or an optimizer touched them."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.claim(parameter.grad, "gradients", self._parameter_names.get(id(parameter), "parameter") + ".grad")

    # -- the namespace -----------------------------------------------------------------------------------------------

    def namespace(self, before: bool = False) -> None:
        """What the notebook's variables hold: models, optimizers, scalers, and names for tensors.

        Parameters
        ----------
        before : bool
            True at the start of the cell: what is found was there before it.
        """
        budget = _MAX_NAMESPACE_ITEMS
        for name, value in list(self._namespace.items()):
            if name.startswith("_"):
                continue
            try:
                if isinstance(value, nn.Module):
                    self.module(value, name, before)
                elif isinstance(value, torch.optim.Optimizer):
                    self.optimizer(value, before)
                elif isinstance(value, Tensor):
                    self._variable(value, name, before)
                elif type(value).__name__ == "GradScaler":
                    for tensor in tensors_in(list(vars(value).values())):
                        self._claim_once(tensor, "optimizer_state", name, "GradScaler", before)
                elif isinstance(value, (list, tuple, dict)) and budget > 0:
                    for tensor in tensors_in(value, budget):
                        budget -= 1
                        self._variable(tensor, name + "[…]", before)
            except Exception:  # a user's object may raise from anything; only its name is lost
                continue

    def _variable(self, tensor: Tensor, name: str, before: bool) -> None:
        if tensor.requires_grad and tensor.is_leaf:
            self._parameter_names.setdefault(id(tensor), name)
            self._claim_once(tensor, "parameters", name, "", before)
            if tensor.grad is not None:
                self.claim(tensor.grad, "gradients", name + ".grad", "", before)
        else:
            self.claim(tensor, "", name, "", before)

    def label_of(self, root: nn.Module) -> str:
        """The variable that holds a root module, else its class."""
        known = self._modules.get(id(root))
        if known:
            return known
        return next(
            (n for n, v in list(self._namespace.items()) if v is root and not n.startswith("_")), type(root).__name__
        )

    def variable_of(self, tensor: Tensor) -> str:
        """The variable that holds a tensor, else an empty string."""
        return next((n for n, v in list(self._namespace.items()) if v is tensor and not n.startswith("_")), "")

    def _argument_names(self, root: nn.Module) -> tuple[str, ...]:
        kind = type(root)
        if kind not in self._signatures:
            try:
                self._signatures[kind] = tuple(inspect.signature(kind.forward).parameters)[1:]
            except (TypeError, ValueError):
                self._signatures[kind] = ()
        return self._signatures[kind]


def tensors_in(value: Any, limit: int = 1000) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples, dicts and simple objects (dataclasses, model outputs), at most ``limit``."""
    stack, seen = [value], 0
    while stack and seen < limit:
        item = stack.pop()
        if isinstance(item, Tensor):
            seen += 1
            yield item
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            if len(item) > 64 and not isinstance(item[0], (Tensor, list, tuple, Mapping)):
                continue  # a long list of plain data
            stack.extend(reversed(item))
        elif hasattr(item, "__dataclass_fields__"):
            stack.extend(vars(item).values() if hasattr(item, "__dict__") else ())


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor itself, or the ones a wrapper subclass (quantised, distributed) is made of."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None  # sparse, or not materialised (lazy modules)


def _dtype_name(dtype: torch.dtype) -> str:
    return _DTYPES.setdefault(dtype, str(dtype).removeprefix("torch."))

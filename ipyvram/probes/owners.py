"""Who holds which storage: claims, written down while the storage is certainly live.

Nothing here keeps a tensor alive, unpacks a saved one or bumps a version counter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes import results
from ipyvram.probes.claiming import Claiming, Identify
from ipyvram.probes.clock import Clock
from ipyvram.probes.graph_claims import GraphClaims
from ipyvram.probes.member_claims import MemberClaims
from ipyvram.probes.models import Place
from ipyvram.probes.namespace import RESULT, holdings
from ipyvram.probes.tensors import is_parameter, storage_key, tensors_in
from ipyvram.probes.variable_claims import VariableClaims
from ipyvram.recording import Claim


class Owners:
    """Writes `claims`. Methods, and those of its three parts, are called by `phases` and `arming` at the moments they are named after.

    Parameters
    ----------
    clock, identify
        See `Claiming`.
    namespace : mapping
        The notebook's variables; read, never changed.
    use : callable
        See `MemberClaims`.

    Attributes
    ----------
    members, variables, graphs
        Claim what models and optimizers own, what variables hold and what graphs saved.
    """

    def __init__(
        self,
        clock: Clock,
        identify: Identify,
        namespace: Mapping[str, Any],
        use: Callable[[torch.UntypedStorage], bool] = lambda storage: False,
    ) -> None:
        self._claiming, self._namespace = Claiming(clock, identify), namespace
        self.claims: list[Claim] = self._claiming.made
        self.members = MemberClaims(self._claiming, use)
        self.variables = VariableClaims(self._claiming, self.members, namespace)
        self.graphs = GraphClaims(self._claiming, namespace, self.variable_of)
        self._given: set[int] = set()  # keys of the storages that the last root module was called with
        self._signatures: dict[type, tuple[str, ...]] = {}

    def forget(self) -> None:
        """Another trace begins: it gives storages addresses of its own, so everything is claimed anew."""
        self._claiming.forget()
        self.members.forget()
        self.graphs.new_trace()

    # -- a step ------------------------------------------------------------------------------------------------------

    def inputs(self, root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """What a root module is called with: data has no history. One without parameters is told: it is no model (a transform, a loss)."""
        names = self._argument_names(root) if args else ()
        helper = type(root).__name__ if next(root.parameters(), None) is None else ""
        for i, value in enumerate(args):
            self._data(value, names[i] if i < len(names) else f"argument {i}", helper)
        for name, value in kwargs.items():
            self._data(value, name, helper)

    def _data(self, value: Any, name: str, helper: str) -> None:
        for tensor in tensors_in(value):
            if tensor.grad_fn is None and not is_parameter(tensor):
                self._claiming.claim(tensor, "inputs", name, helper)
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

    # -- models ------------------------------------------------------------------------------------------------------

    def root(self, module: nn.Module) -> Place:
        """Claim a root module's members; where it is."""
        place = self.place_of(module)
        self.members.module(module, type(module).__name__ if place.path else place.model)
        return place

    def place_of(self, root: nn.Module) -> Place:
        """The model that a root module is, or is a part of."""
        known = self.members.models.place(root)
        if known is None and next(root.parameters(), None) is not None:
            self.variables.meet_models()
            known = self.members.models.place(root)
        return known or Place(self.variable_of(root) or type(root).__name__, "", 0)

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

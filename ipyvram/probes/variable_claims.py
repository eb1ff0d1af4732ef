"""What variables hold comes in, and what earlier cells left beside them; claims and names for tensors go out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes import library_states, results
from ipyvram.probes.claiming import LASTING, Claiming
from ipyvram.probes.collection import without_collection
from ipyvram.probes.copies import COPY, STATE, Container, copies_in
from ipyvram.probes.leftovers import Left, left_by, leftovers
from ipyvram.probes.member_claims import MemberClaims
from ipyvram.probes.models import whole_first
from ipyvram.probes.namespace import CONTAINERS, DEEP, SHALLOW, begins_with_tensor, holdings
from ipyvram.probes.tensors import gradient_of, tensors_in
from ipyvram.probes.variables import Variables

#: Returned by a model in an earlier cell, and held by a variable since.
RESULT_BEFORE = "result"
#: Saved for backward by a graph that was there before the cell.
KEPT = "kept"


class VariableClaims:
    """Looks through the notebook's variables, and those of functions that are running.

    Parameters
    ----------
    claiming : Claiming
    members : MemberClaims
        Told of the models and optimizers among them.
    namespace : mapping
        The notebook's variables; read, never changed.

    Attributes
    ----------
    notes : list of str
        What was not looked at.
    """

    def __init__(self, claiming: Claiming, members: MemberClaims, namespace: Mapping[str, Any]) -> None:
        self._claiming, self._members, self._namespace = claiming, members, namespace
        self.notes: list[str] = []

    def claim(self, before: bool = False, deep: bool = True, left: bool = False) -> None:
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
            if isinstance(value, nn.Module) and (deep or not self._members.claimed(value))
        ]
        for name, module in whole_first(modules):
            _tolerate(self._members.module, module, name, before, deep)
        _tolerate(self._copies, found, containers, before)
        for name, value in found:
            if not isinstance(value, nn.Module):
                _tolerate(self._variable, value, name, before, deep)
        if left and not before:
            self._of_earlier_traces(deep)
        if before or left:
            self._left_behind(found)
            for state in library_states.remembered():
                self._claiming.claim(state, "workspaces", library_states.NAME, before=True)

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
            for name, tensor, kind in copies_in([*(value for _, value in found), *self._members.seen], containers):
                self._claiming.claim_once(tensor, kind, name, "", before)

    def _of_earlier_traces(self, deep: bool) -> None:
        """What is there in the middle of the cell beside the notebook's variables: models and optimizers of earlier traces, the
        last batch of a loop."""
        for owner, name in list(self._members.seen.items()):
            if isinstance(owner, nn.Module):
                _tolerate(self._members.module, owner, name)
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
            category = KEPT if left.category == "activations" else left.category
            self._claiming.claim(left.tensor, category, left.name, "", before, (left.graph_of, left.in_error))

    def _variable(self, value: Any, name: str, before: bool, deep: bool) -> None:
        if isinstance(value, torch.optim.Optimizer):
            if deep or not self._members.follows(value):
                self._members.optimizer(value, before)
                # Of a model that is gone, say.
                self._members.gradients(p for group in value.param_groups for p in group["params"])
        elif not isinstance(value, Tensor):
            self._state_of(value, name, before)
        elif value.requires_grad and value.is_leaf:
            self._leaf(value, name, before)
        elif not any(self._claiming.is_claimed(value, kind) for kind in (COPY, STATE)):
            path = name.partition("['")[2].removesuffix("']")
            result = value.grad_fn is not None
            # What autograd computed from the parameters (fast weights of an inner loop) is a result of the program.
            copied = bool(path) and not result and self._members.has_member(path, value)
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

    def meet_models(self) -> None:
        """Have the models claimed that variables hold and nothing has run of."""
        _tolerate(self._meet_models)

    def _meet_models(self) -> None:
        """Models that the cell has made and variables hold: before the first of their parts runs, whose paths say less."""
        found = [(name, value) for name, value in holdings(self._namespace, *SHALLOW) if isinstance(value, nn.Module)]
        for name, module in whole_first([m for m in found if self._members.models.place(m[1]) is None]):
            _tolerate(self._members.module, module, name)


def _tolerate(action: Callable[..., None], *args: Any) -> None:
    """A user's object may raise from anything; then only its name is lost."""
    try:
        action(*args)
    except Exception:
        return

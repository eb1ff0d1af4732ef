"""What autograd graphs keep for backward: roots come in, claims on what their nodes saved go out.

Nothing here keeps a tensor alive, unpacks a saved one or bumps a version counter.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ipyvram.probes import library_states
from ipyvram.probes.claiming import Claiming, Where
from ipyvram.probes.graph import kept_by_context, leaf_of, node_of, nodes_below, saved_by
from ipyvram.probes.namespace import SHALLOW, holdings
from ipyvram.probes.tensors import is_parameter
from ipyvram.probes.variables import Variables
from ipyvram.recording import Claim

#: Private categories of claims. The graph let go of the storage: ends earlier claims of `activations`.
RELEASED = "released"
#: Saved for backward, but handed in: nothing in the graph made it.
DATA = "data"


class GraphClaims:
    """Claims what graphs saved when a forward is through, before the engine runs and at the end.

    Parameters
    ----------
    claiming : Claiming
    namespace : mapping
        The notebook's variables; read, never changed.
    variable_of : callable
        The variable that holds an object, else an empty string.
    """

    def __init__(self, claiming: Claiming, namespace: Mapping[str, Any], variable_of: Callable[[object], str]) -> None:
        self._claiming, self._namespace, self._variable_of = claiming, namespace, variable_of
        # What graphs that the engine has not run yet saved: a node by itself, and all below one that is a module's only result.
        # By number, which is unique on one thread: see `_numbered_once`.
        self._saved: dict[tuple[int, type], tuple[list[Where], list[Claim]]] = {}
        self._whole: dict[int, tuple[list[Where], list[Claim], list[weakref.ref[Tensor]]]] = {}
        self._thread, self._one_thread = threading.get_ident(), True
        self._engine_kept = False
        self._backward: list[tuple[Any, list[Where]]] = []  # graphs in the engine now, innermost last

    def forget(self) -> None:
        """Read every graph anew: storages have new addresses, or the engine frees what was read."""
        self._saved.clear()
        self._whole.clear()

    def new_trace(self) -> None:
        """As `forget`; nor is anything in the engine known."""
        self.forget()
        self._backward.clear()

    def read(self, roots: Iterable[Any], since: int = 0, backward: bool = False) -> list[Tensor]:
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
        again = self._numbered_once(roots)
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
            self.forget()
        elif None not in seen and len(tops := {node_of(root) for root in roots}) == 1:
            top = tops.pop()
            known = self._saved.get((top._sequence_nr(), type(top)))
            if known and known[0]:  # it tells later whether the graph was freed
                self._whole[top._sequence_nr()] = saved, made, [weakref.ref(leaf) for leaf in leaves]
        return leaves

    def _numbered_once(self, roots: Sequence[Any]) -> bool:
        """Whether the number and kind of a node tell it from all others: numbers are those of a thread.

        For devices other than the CPU the engine has threads of its own; what it kept may lead to nodes made there
        (``create_graph``).
        """
        self._one_thread &= threading.get_ident() == self._thread
        return self._one_thread and (not self._engine_kept or all(getattr(root, "is_cpu", False) for root in roots))

    def _leaf(self, leaf: Tensor) -> bool:
        """Claim a leaf as parameter; False for what a reentrant checkpoint detached."""
        name = self._claiming.name_of(leaf)
        if name and self._claiming.is_claimed(leaf, "parameters"):
            return True
        name = name or self._variable_of(leaf)
        if not name and not is_parameter(leaf) and self._backward:
            return False
        self._claiming.give_name(leaf, name)
        self._claiming.claim_once(leaf, "parameters", name, self._claiming.model_of(leaf))
        return True

    def _claim_again(self, claims: list[Claim]) -> None:
        """What a forward saved is used now, by a backward."""
        now = self._claiming.clock()
        self._claiming.made += [Claim(now, *claim[1:]) for claim in claims]

    def _claim_saved(self, node: Any) -> tuple[list[Where], list[Claim]]:
        """Claim what a node keeps for backward: where that lies, and the claims."""
        found, begin = list[Where](), len(self._claiming.made)
        for _, field, tensor, data in saved_by(node):
            if field == library_states.FIELD:
                library_states.remember(tensor)
                self._claiming.claim(tensor, "workspaces", library_states.NAME)
                continue
            where = self._claiming.claim(tensor, DATA if data else "activations", f"{node.name()}.{field}")
            if where is not None:
                found.append(where)
        for _, field, tensor, _ in kept_by_context(node):
            self._claiming.claim(tensor, "activations", f"{node.name()}.{field}")
        return found, self._claiming.made[begin:]

    def kept(self, read: Sequence[tuple[int, int]]) -> None:
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
        for name, value in holdings(variables, *SHALLOW):
            node = value.grad_fn if isinstance(value, Tensor) else None
            if node is not None:
                since = read[bisect_right(begins, node._sequence_nr()) - 1][1]
                if node._sequence_nr() >= since:
                    self._claiming.claim_once(value, "", name)
                    roots.setdefault(since, []).append(value)
        for since, tensors in roots.items():
            self.read(tensors, since)

    def released(self) -> None:
        """The engine returned: claims on a graph that it freed end here; a kept graph (``retain_graph``) keeps them."""
        if not self._backward:
            return
        node, saved = self._backward.pop()
        if node is not None and any(True for _ in saved_by(node)):
            self._engine_kept = True
            return
        now = self._claiming.clock()
        self._claiming.made.extend(
            Claim(now, device, address, 0, RELEASED, "") for device, address in dict.fromkeys(saved)
        )

"""What the program lets go of, though the estimate keeps it to put it back: a model, an optimizer, a batch of an earlier run whose
variable gets another value. On the card it would be gone.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ipyvram.probes.graph import leaf_of, nodes_below
from ipyvram.probes.reach import Storage, Walk
from ipyvram.probes.tensors import storage_of
from ipyvram.probes.variables import Variables
from ipyvram.simulated.memory import DeviceMemory

_GONE = object()
_NOT_DATA = frozenset({types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, str, int, float, bool})


class Graph(NamedTuple):
    """A result of an earlier cell, and the leaves that its history holds: parameters of a model that may be gone."""

    result: Tensor
    leaves: tuple[Tensor, ...]


def graphs_of(tensors: Iterable[Tensor]) -> list[Graph]:
    """What the histories of these tensors hold."""
    results = [tensor for tensor in tensors if tensor.grad_fn is not None]
    read = ((result, (leaf_of(node) for node in nodes_below([result]))) for result in results)
    return [Graph(result, tuple(leaf for leaf in leaves if leaf is not None)) for result, leaves in read]


class Replaced:
    """Frees what only values that variables had before lead to.

    Parameters
    ----------
    namespace : mapping
        The notebook's variables; read, never changed.
    memory : DeviceMemory
        With what was there before the cell.
    graphs : sequence of Graph
        What results of earlier cells hold: read before they are exchanged, which takes their history away for a while.
    """

    def __init__(self, namespace: Mapping[str, Any], memory: DeviceMemory, graphs: Sequence[Graph] = ()) -> None:
        self._namespace, self._memory, self._graphs = namespace, memory, list(graphs)
        values = list(namespace.items()) if memory.resident() else ()
        self._before = {name: value for name, value in values if type(value) not in _NOT_DATA}
        self._gone: list[Any] = []

    def forget(self) -> None:
        """The program has ended: nothing is kept here."""
        self._before.clear()
        self._gone.clear()
        self._graphs.clear()

    def look(self) -> None:
        """Memory is about to be asked for: free what has been let go of since the last time."""
        changed = [n for n, value in self._before.items() if self._namespace.get(n, _GONE) is not value]
        if not changed:
            return
        self._gone += [self._before.pop(name) for name in changed]
        left = self._walk(self._gone)
        if {storage.key for storage in left.storages}.isdisjoint(self._memory.resident()):
            return
        held = self._walk([*self._namespace.values(), *Variables().all().values()])
        if held.complete:
            for storage in left.storages.keys() - held.storages.keys():
                self._memory.release(storage.key)

    def _walk(self, values: Iterable[Any]) -> Walk:
        walk = Walk((self._namespace,), storage=_on_card)
        for value in values:
            walk.root(value, "")
        for graph in self._graphs:
            if walk.reached(graph.result):
                for leaf in graph.leaves:
                    walk.root(leaf, "")
        return walk


def _on_card(tensor: Tensor) -> Storage | None:
    storage = storage_of(tensor)
    return None if storage is None else Storage(storage._cdata, str(storage.device), storage.nbytes())

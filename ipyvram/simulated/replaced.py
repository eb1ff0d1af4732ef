"""What the program lets go of, though the estimate keeps it to put it back: a model, an optimizer, a batch of an earlier run whose
variable gets another value. On the card it would be gone.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ipyvram.probes.reach import Storage, Walk
from ipyvram.probes.tensors import storage_of
from ipyvram.probes.variables import Variables
from ipyvram.simulated.memory import DeviceMemory

_GONE = object()
_NOT_DATA = frozenset({types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, str, int, float, bool})


class Replaced:
    """Frees what only values that variables had before lead to.

    Parameters
    ----------
    namespace : mapping
        The notebook's variables; read, never changed.
    memory : DeviceMemory
        With what was there before the cell.
    """

    def __init__(self, namespace: Mapping[str, Any], memory: DeviceMemory) -> None:
        self._namespace, self._memory = namespace, memory
        values = list(namespace.items()) if memory.resident() else ()
        self._before = {name: value for name, value in values if type(value) not in _NOT_DATA}
        self._gone: list[Any] = []

    def forget(self) -> None:
        """The program has ended: nothing is kept here."""
        self._before.clear()
        self._gone.clear()

    def look(self) -> None:
        """Memory is about to be asked for: free what has been let go of since the last time."""
        changed = [n for n, value in self._before.items() if self._namespace.get(n, _GONE) is not value]
        if not changed:
            return
        self._gone += [self._before.pop(name) for name in changed]
        resident = self._memory.resident()
        left = Walk((self._namespace,), storage=_on_card)
        for value in self._gone:
            left.root(value, "")
        if {s.key for s in left.storages}.isdisjoint(resident):
            return
        held = Walk((self._namespace,), storage=_on_card)
        for value in (*list(self._namespace.values()), *Variables().all().values()):
            held.root(value, "")
        if held.complete:
            for storage in left.storages.keys() - held.storages.keys():
                self._memory.release(storage.key)


def _on_card(tensor: Tensor) -> Storage | None:
    storage = storage_of(tensor)
    return None if storage is None else Storage(storage._cdata, str(storage.device), storage.nbytes())

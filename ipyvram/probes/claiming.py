"""One claim after the other: who holds which storage, written down while the storage is certainly live.

Nothing here keeps a tensor alive, unpacks a saved one or bumps a version counter.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes.clock import Clock
from ipyvram.probes.models import FOR_GOOD
from ipyvram.probes.tensors import NO_STORAGE, dtype_name, plain_tensors, shape_of, storage_key, storage_of
from ipyvram.recording import Claim

#: storage → (device id, address in the trace of that device), None for a storage that no trace follows
Identify = Callable[[torch.UntypedStorage, bool], tuple[str, int] | None]
Where = tuple[str, int]
LeftIn = tuple[str, bool]

_PLAIN = frozenset({Tensor, nn.Parameter})
#: Whoever holds these does so for long: not seen so far, they were there before the cell.
LASTING = frozenset({"parameters", "buffers", "optimizer_state", "gradients"})


class Claiming:
    """Writes `made`, and knows what was claimed so before and what leaves are called.

    Parameters
    ----------
    clock : Clock
    identify : callable
        See `Identify`; its second argument says that the storage was there before the cell.
    """

    def __init__(self, clock: Clock, identify: Identify) -> None:
        self.clock, self._identify = clock, identify
        self.made: list[Claim] = []
        # category, id(tensor) → reference, its storage, which of the claims made are of it
        self._claimed: dict[str, dict[int, tuple[Any, int, range]]] = defaultdict(dict)
        self._names: dict[int, tuple[Any, str, str, int]] = {}  # by id(parameter): reference, name, model, weight

    def forget(self) -> None:
        """Another trace begins: it gives storages addresses of its own, so everything is claimed anew."""
        self._claimed.clear()

    def claim(
        self,
        tensor: Tensor,
        category: str,
        name: str,
        module: str = "",
        before: bool = False,
        left: LeftIn = ("", False),
    ) -> Where | None:
        """Claim the storages below ``tensor``; those that no trace follows are passed over. ``left`` is ``graph_of, in_error``."""
        before = before or category in LASTING
        # Nearly all are plain: one with a storage is, unless its class says that it is made of others.
        if type(tensor) in _PLAIN and (storage := storage_of(tensor)) is not None:
            return self._claim_storage(tensor, storage, category, name, module, before, left)
        found = None
        for part in plain_tensors(tensor):
            if (storage := storage_of(part)) is not None:
                found = self._claim_storage(part, storage, category, name, module, before, left) or found
        return found

    def _claim_storage(
        self,
        tensor: Tensor,
        storage: torch.UntypedStorage,
        category: str,
        name: str,
        module: str,
        before: bool,
        left: LeftIn,
    ) -> Where | None:
        where = self._identify(storage, before)
        if where is not None:
            device, address = where
            shape, dtype = tuple(shape_of(tensor)), dtype_name(tensor.dtype)
            self.made.append(
                Claim(self.clock(), device, address, storage.nbytes(), category, name, module, shape, dtype, *left)
            )
        return where

    def claim_once(self, tensor: Tensor, category: str, name: str, module: str = "", before: bool = False) -> None:
        """Claim it unless the same tensor with the same storage was claimed so, or no trace follows that."""
        if self.is_claimed(tensor, category):
            return
        key, begin = storage_key(tensor), len(self.made)
        if key is not None and (
            self.claim(tensor, category, name, module, before) is not None or _takes_memory(tensor)
        ):
            self._claimed[category][id(tensor)] = (weakref.ref(tensor), key, range(begin, len(self.made)))

    def rename(self, tensor: Tensor, category: str, name: str, module: str) -> None:
        """Put right what it was claimed as before more was known of it."""
        if self.is_claimed(tensor, category):
            for i in self._claimed[category][id(tensor)][2]:
                self.made[i] = self.made[i]._replace(name=name, module=module)

    def is_claimed(self, tensor: Tensor, category: str) -> bool:
        """Whether this tensor, with the storage that it has now, was claimed so: asked at every step for all of them."""
        known = self._claimed[category].get(id(tensor))
        if known is None or known[0]() is not tensor:
            return False
        try:
            return tensor.untyped_storage()._cdata == known[1]  # type: ignore[no-any-return]
        except NO_STORAGE:
            return storage_key(tensor) == known[1]

    def name_of(self, parameter: Tensor) -> str:
        known = self._names.get(id(parameter))
        return known[1] if known is not None and known[0]() is parameter else ""

    def model_of(self, parameter: Tensor, otherwise: str = "") -> str:
        known = self._names.get(id(parameter))
        return (known[2] if known is not None and known[0]() is parameter else "") or otherwise

    def give_name(self, parameter: Tensor, name: str, model: str = "", weight: int = FOR_GOOD) -> str:
        """The name a parameter has; ``name`` if it had none, or one of less weight."""
        known = self._names.get(id(parameter))
        if known is not None and known[0]() is parameter and (known[3] >= weight or not name or known[1] == name):
            return known[1]
        if name:
            self._names[id(parameter)] = (weakref.ref(parameter), name, model, weight)
        return name


def _takes_memory(tensor: Tensor) -> bool:
    """False for a storage that is empty now: it may be filled later (sharded parameters)."""
    storage = storage_of(tensor)
    return storage is not None and storage.nbytes() > 0

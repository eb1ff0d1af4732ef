"""Host tensors that were there before the cell: their bytes are set aside before the cell first writes into them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor


class HostTensors:
    """Copies of host storages, made at the first write, put back by `restore`.

    Attributes
    ----------
    left : dict of tuple of int to str
        Shapes of what the cell left on the host, → the operator that met it with what is on the card.
    """

    def __init__(self) -> None:
        self.left: dict[tuple[int, ...], str] = {}
        self._existing: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # another may come to lie where one has ended
        self._saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def exists(self, storage: torch.UntypedStorage) -> None:
        """This storage was there before the cell."""
        self._existing[storage._cdata] = weakref.ref(storage)

    def existed(self, tensor: Tensor) -> bool:
        """Whether it was there before the cell, and is on the host."""
        try:
            return self._was_there(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError, ValueError):  # the last: a lazy parameter has none yet
            return False

    def _was_there(self, storage: torch.UntypedStorage) -> bool:
        known = self._existing.get(storage._cdata)
        return known is not None and known() is storage

    def before_write(self, tensors: Iterable[Tensor]) -> None:
        """An operator is about to write into ``tensors``."""
        for tensor in tensors:
            try:
                storage = tensor.untyped_storage()
            except (NotImplementedError, RuntimeError):
                continue
            key = storage._cdata
            if self._was_there(storage) and key not in self._saved and storage.device.type == "cpu":
                self._saved[key] = (storage, storage.clone())

    def restore(self) -> None:
        """Put every byte back."""
        for storage, copy in self._saved.values():
            if storage.nbytes() != copy.nbytes():
                storage.resize_(copy.nbytes())
            storage.copy_(copy)
        self._saved.clear()

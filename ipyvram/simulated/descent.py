"""What operators on the host made of tensors of before the cell: their operands come in, the storages a tensor descends from go out.

A tensor that meets the card without having been moved must have been there, and so must all that it was made of.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from ipyvram.probes.tensors import storage_of
from ipyvram.simulated.host import HostTensors

_NONE: frozenset[int] = frozenset()


class Descent:
    """Follows results from operator to operator, until one is moved by the program.

    Parameters
    ----------
    host : HostTensors
        Knows what was there before the cell.
    """

    def __init__(self, host: HostTensors) -> None:
        self._host = host
        self._of: dict[int, tuple[weakref.ref[torch.UntypedStorage], frozenset[int]]] = {}  # by the storage's address

    def made(self, operands: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """An operator has made, or written into, ``results``."""
        sources = _NONE
        for operand in operands:
            sources |= self._sources(operand)
        for result in results if sources else ():
            if result.device.type == "cpu" and not self._host.existed(result):
                storage = result.untyped_storage()
                address = storage._cdata
                self._of[address] = weakref.ref(storage, functools.partial(self._ended, address)), sources

    def of(self, tensor: Tensor) -> frozenset[int]:
        """Addresses of the storages of before the cell that a tensor which was not there then descends from."""
        storage = storage_of(tensor) if self._of else None
        if storage is None:
            return _NONE
        ref, sources = self._of.get(storage._cdata, (None, _NONE))
        return sources if ref is not None and ref() is storage else _NONE

    def moved(self, tensor: Tensor) -> None:
        """The program has put a tensor where it wants it."""
        if self.of(tensor):
            del self._of[tensor.untyped_storage()._cdata]

    def _ended(self, address: int, ref: weakref.ref[torch.UntypedStorage]) -> None:
        if self._of.get(address, (None,))[0] is ref:
            del self._of[address]

    def _sources(self, tensor: Tensor) -> frozenset[int]:
        if not self._host.existed(tensor):
            return self.of(tensor)
        storage = tensor.untyped_storage()
        if storage.nbytes() <= tensor.element_size():
            return _NONE  # a number goes to the card by itself
        return frozenset((storage._cdata,))

"""Storages of what models returned in measured cells, known while they live: what a variable holds later is then no data."""

from __future__ import annotations

import weakref
from collections.abc import Collection

import torch
from torch import Tensor

from ipyvram.probes.tensors import storage_of

_known: dict[int, weakref.ref[torch.UntypedStorage]] = {}


def remember(tensor: Tensor, given: Collection[int] = ()) -> None:
    """A model returned this; ``given`` are the keys of the storages that it was called with, which it may hand back."""
    storage = storage_of(tensor)
    if storage is None or storage._cdata in given or is_result(tensor):
        return
    key = storage._cdata

    def gone(reference: weakref.ref[torch.UntypedStorage]) -> None:
        if _known.get(key) is reference:
            del _known[key]

    _known[key] = weakref.ref(storage, gone)


def is_result(tensor: Tensor) -> bool:
    """Whether a model has returned it, or what it is a view of."""
    storage = storage_of(tensor)
    reference = None if storage is None else _known.get(storage._cdata)
    return reference is not None and reference() is storage

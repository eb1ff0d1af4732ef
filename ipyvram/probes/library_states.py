"""Memory that a library keeps for the whole process: known once a graph has shown it, and in later cells.

It is cuDNN's state of dropout's random numbers in recurrent layers, which is made in the first forward that needs it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

#: Of what a node saved, the field that is one; what it is called.
FIELD, NAME = "dropout_state", "cuDNN dropout state"

#: Device → the newest one there; a new seed makes another.
_states: dict[str, weakref.ref[torch.UntypedStorage]] = {}


def remember(state: Tensor) -> None:
    """A graph saved it."""
    _states[str(state.device)] = weakref.ref(state.untyped_storage())


def remembered() -> Iterator[Tensor]:
    """Those that are still there."""
    for reference in list(_states.values()):
        storage = reference()
        if storage is not None:
            yield torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

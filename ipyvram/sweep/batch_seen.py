"""The shape of the batches that models are given in a trial, from hooks on their forwards; no tensor is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from ipyvram.batches import CHANNELS
from ipyvram.probes.tensors import tensors_in


class BatchSeen:
    """Hooks of one trial.

    Parameters
    ----------
    on_samples : callable, optional
        Called with the samples (dim 0) of each batch of the first root module.

    Attributes
    ----------
    shape : tuple of int
        Of the largest batch (by dim 0) that a root module was given, in training if there is any; empty where none was.
    """

    def __init__(self, on_samples: Callable[[int], object] | None = None) -> None:
        self._on_samples = on_samples
        self.shape: tuple[int, ...] = ()
        self._rank = 0
        self._depth = 0
        self._root: nn.Module | None = None
        self._unseen = False  # inside a root module that was not given a tensor by position
        self._leader: int | None = None
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def start(self) -> None:
        """Register the hooks."""
        self._handles = [
            global_hooks.register_module_forward_pre_hook(self._before_forward),
            global_hooks.register_module_forward_hook(self._after_forward, always_call=True),
        ]

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._root = [], None  # a model that is held here would count as left over

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._thread:
            return
        if self._depth == 0:
            self._unseen = not self._look(module, args)
            self._root = module
        elif self._unseen:  # called with keywords only, which these hooks are not shown: its first part tells
            self._unseen = not self._look(self._root, args)
        self._depth += 1

    def _look(self, root: nn.Module | None, args: tuple[Any, ...]) -> bool:
        shape, rank = _first_batch(args), _nearness(root)
        if not shape:
            return False
        if not self.shape or (rank, shape[0]) > (self._rank, self.shape[0]):
            self.shape, self._rank = shape, rank
        if self._leader is None:
            self._leader = id(root)
        if id(root) == self._leader and self._on_samples is not None:
            self._on_samples(shape[0])
        return True

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if threading.get_ident() == self._thread:
            self._depth = max(0, self._depth - 1)


def _first_batch(args: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of the first argument with tensors, empty where there is none.

    Of a dict, that of most dimensions: images, beside the boxes of all of them in a row. Of a list of images, as detectors take
    it, how many there are comes first.
    """
    for value in args:
        found = [t for t in tensors_in(value) if isinstance(t, Tensor) and t.dim() > 0]
        if found and isinstance(value, list) and all(t.dim() == 3 and t.shape[0] in CHANNELS for t in found):
            return len(found), *found[0].shape
        if found:
            return tuple((max(found, key=Tensor.dim) if isinstance(value, Mapping) else found[0]).shape)
    return ()


def _nearness(root: nn.Module | None) -> int:
    """How near a root module's call is to training.

    A loss may be given the words of all samples in a row, and a validation has a batch of its own.
    """
    if root is None or next(root.parameters(), None) is None:
        return 0
    return 1 + 2 * torch.is_grad_enabled() + root.training

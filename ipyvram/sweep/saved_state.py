"""The variables a trial may change come in; `restore` makes them what they were, bit for bit and in place.

In place, because the notebook holds the same objects elsewhere: an optimizer its parameters, a scheduler its optimizer.
Contents of tensors are kept on the CPU by storage, so views and tied weights stay what they are.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from ipyvram import saved_values
from ipyvram.saved_values import Restore, slots
from ipyvram.sweep.reachable import CannotRestore, Found, walk
from ipyvram.units import format_bytes

#: The copy may take this share of the host memory that is free.
MAX_HOST_SHARE = 0.5


class SavedState:
    """What variables held when it was made.

    Parameters
    ----------
    namespace : dict
        The notebook's variables; names that appear later are taken out by `restore`.
    read : iterable of str
        Names that the code reads: what they lead to is kept, with its contents.
    replaced : iterable of str
        Names that the code binds before it reads them. What only they lead to will not be touched, and may be parked.
    roots : iterable of Found
        More objects that the code reads (a function's own).
    park : container of str
        Device types whose memory is lent to the trials by `park`.

    Raises
    ------
    CannotRestore
        Something that the code reads could not be put back, or there is no room for the copy.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        read: Iterable[str],
        replaced: Iterable[str] = (),
        roots: Iterable[Found] = (),
        park: frozenset[str] = frozenset({"cuda"}),
    ) -> None:
        self._storages: dict[int, _Storage] = {}
        self._parked: list[_Storage] = []
        self._restores: list[Restore] = [saved_values.mapping(namespace)]
        read = list(read)
        used = walk(read, namespace, roots)
        self._check_room(used)
        for found in used:
            self._save(found.value)
        self._set_aside(set(replaced) - set(read), namespace, {id(found.value) for found in used}, park)

    def restore(self) -> None:
        """Make everything what it was. It may be called again; a failure of one part leaves no other part out.

        Raises
        ------
        RuntimeError
            Some part could not be restored (the device is in a state of error); the first failure is its cause.
        """
        failures: list[Exception] = []
        for action in (*(s.restore for s in self._storages.values()), *self._restores):
            try:
                action()
            except Exception as error:
                failures.append(error)
        if failures:
            raise RuntimeError(f"{len(failures)} parts of the notebook's state could not be restored") from failures[0]

    def park(self) -> None:
        """Lend the device memory of what the code is going to replace anyway: `restore` brings it back."""
        for storage in self._parked:
            storage.storage.resize_(0)

    @property
    def bytes(self) -> int:
        """What the copies take, in host memory."""
        return sum(s.nbytes for s in self._storages.values())

    # -- one object --------------------------------------------------------------------------------------------------

    def _save(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._restores.append(self._tensor(value))
        elif isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
            self._restores.append(saved_values.generator(value))
        elif isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._restores.append(saved_values.array(value))
        elif (make := saved_values.container(value)) is not None:
            self._restores.append(make)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._restores.append(saved_values.mapping(attributes))
        elif isinstance(value, type):
            self._restores.append(saved_values.class_attributes(value))
        if isinstance(value, nn.Module):
            self._restores.append(saved_values.own_class(value))
        if any(True for _ in slots(type(value))):
            self._restores.append(saved_values.slot_values(value))

    def _tensor(self, tensor: Tensor) -> Restore:
        if tensor.layout is not torch.strided:
            return _value_of(tensor)
        self._keep(tensor)
        alias, requires, version = tensor.detach(), tensor.requires_grad, _version_of(tensor)
        restore_grad = self._grad(tensor) if tensor.is_leaf else lambda: None
        hooks = {name: getattr(tensor, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks")}
        inner = [saved_values.mapping(h) for h in hooks.values() if isinstance(h, dict)]

        def restore() -> None:
            if not _same_place(tensor, alias):
                tensor.data = alias
            if tensor.is_leaf and tensor.requires_grad != requires:
                tensor.requires_grad_(requires)
            for name, value in hooks.items():
                if getattr(tensor, name, None) is not value:
                    setattr(tensor, name, value)
            for undo in inner:
                undo()
            restore_grad()
            _put_version(tensor, version)

        return restore

    def _grad(self, tensor: Tensor) -> Restore:
        """A gradient is kept as bytes only: the first ``zero_grad`` of a trial frees its memory, as it would for the user."""
        grad = tensor.grad
        if grad is None:
            return lambda: setattr(tensor, "grad", None)
        if grad.layout is not torch.strided or grad.untyped_storage().nbytes() != grad.numel() * grad.itemsize:
            return self._same_grad(tensor, grad)  # a view of a flat buffer must stay one
        return _grad_by_content(tensor, weakref.ref(grad), _to_host(grad), grad.device)

    def _same_grad(self, tensor: Tensor, grad: Tensor) -> Restore:
        restore_content = self._tensor(grad)

        def restore() -> None:
            tensor.grad = grad
            restore_content()

        return restore

    def _keep(self, tensor: Tensor) -> _Storage | None:
        storage = tensor.untyped_storage()
        if storage.device.type == "meta":
            return None
        known = self._storages.get(storage._cdata)
        if known is None:
            known = self._storages[storage._cdata] = _Storage(storage)
        return known

    # -- all of them -------------------------------------------------------------------------------------------------

    def _check_room(self, used: list[Found]) -> None:
        sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _dense(used)}
        arrays = sum(f.value.nbytes for f in used if isinstance(f.value, np.ndarray) and f.value.flags.writeable)
        needed, free = sum(sizes.values()) + arrays, psutil.virtual_memory().available
        if needed > MAX_HOST_SHARE * free:
            raise CannotRestore(
                f"the cell uses {format_bytes(needed)} of tensors made before it, which would have to be copied to put them"
                f" back, and {format_bytes(free)} of host memory are free: make them in the cell"
            )

    def _set_aside(self, names: set[str], namespace: Mapping[str, Any], used: set[int], park: frozenset[str]) -> None:
        """Keep what only replaced names lead to, as far as its memory is to be lent."""
        if not park:
            return
        try:
            stale = [found for found in walk(names, namespace) if id(found.value) not in used]
        except CannotRestore:
            return  # it is not touched, so nothing need be put back; its memory stays where it is
        mine = set(self._storages)
        for tensor in _dense(stale):
            for part in (tensor, tensor.grad) if tensor.is_leaf else (tensor,):
                if part is None or part.layout is not torch.strided or part.device.type not in park:
                    continue
                if part.untyped_storage()._cdata not in mine and part.untyped_storage().resizable():
                    storage = self._keep(part)
                    if storage is not None and storage not in self._parked:
                        self._parked.append(storage)


class _Storage:
    """A storage and a copy of its bytes on the CPU."""

    __slots__ = ("content", "nbytes", "storage")

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage, self.nbytes = storage, storage.nbytes()
        self.content = _bytes_of(storage).to("cpu", copy=True)

    def restore(self) -> None:
        if self.storage.nbytes() != self.nbytes:
            self.storage.resize_(self.nbytes)
        now = _bytes_of(self.storage)
        # Compared first: what did not change may be memory that must not be written (a file mapped for reading).
        if not torch.equal(now.cpu(), self.content):
            now.copy_(self.content)


def _version_of(tensor: Tensor) -> int | None:
    """How often it was written to in place; None for a tensor of inference mode, which is not counted."""
    return None if tensor.is_inference() else tensor._version


def _put_version(tensor: Tensor, version: int | None) -> None:
    """A graph of an earlier cell would refuse its backward, though the tensor it saved has its bytes again."""
    put = getattr(torch._C._autograd, "_unsafe_set_version_counter", None)
    if version is None or put is None or tensor._version == version:
        return
    try:
        put((tensor,), (version,))
    except TypeError:  # until torch 2.6: one at a time
        put(tensor, version)


def _grad_by_content(
    tensor: Tensor, alive: Callable[[], Tensor | None], content: Tensor, device: torch.device
) -> Restore:
    def restore() -> None:
        held = alive()  # somebody else has it: then it is to be the same tensor
        target = held if held is not None else tensor.grad
        if target is None or not _same_meta(target, content):
            target = torch.empty_strided(content.shape, content.stride(), dtype=content.dtype, device=device)
        target.data.copy_(content)
        if tensor.grad is not target:
            tensor.grad = target

    return restore


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _dense(found: Iterable[Found]) -> list[Tensor]:
    return [
        f.value
        for f in found
        if isinstance(f.value, Tensor) and f.value.layout is torch.strided and f.value.device.type != "meta"
    ]


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return host.copy_(tensor.detach())


def _same_place(a: Tensor, b: Tensor) -> bool:
    same_storage = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return bool(same_storage and _same_meta(a, b) and a.storage_offset() == b.storage_offset())


def _same_meta(a: Tensor, b: Tensor) -> bool:
    return bool(a.layout is b.layout and a.shape == b.shape and a.stride() == b.stride() and a.dtype is b.dtype)


def _value_of(tensor: Tensor) -> Restore:
    """A sparse tensor: its parts are replaced, not written."""
    copy, grad = tensor.detach().clone(), tensor.grad if tensor.is_leaf else None

    def restore() -> None:
        tensor.data = copy.clone()
        if tensor.is_leaf:
            tensor.grad = grad

    return restore

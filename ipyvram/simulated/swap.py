"""The notebook's own tensors, on the card for a while: every tensor object that belongs there shows a ``meta`` tensor.

A tensor object keeps its identity and its place in models, optimizers, closures and lists; only what it refers to is
exchanged (`torch._C._swap_tensor_impl`) and exchanged back, so a restored tensor is the very one that was there before:
its values, its ``.grad``, its history. Storages that were shared are shared on the card.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes.dispatch import WITHOUT_MEMORY
from ipyvram.probes.reach import Walk
from ipyvram.simulated import values
from ipyvram.simulated.host import HostTensors
from ipyvram.simulated.refusal import CannotEstimate

_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class Found:
    """Every live tensor, module, optimizer and the like, from one pass over the garbage collector's objects."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.modules: list[nn.Module] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        self.scalers: list[Any] = []
        kinds = {
            Tensor: self.tensors,
            nn.Module: self.modules,
            torch.optim.Optimizer: self.optimizers,
            torch.amp.GradScaler: self.scalers,
        }
        lists: dict[type, Any] = {}
        for item in gc.get_objects():
            kind = type(item)
            if kind not in lists:
                real = not str(kind.__module__).startswith(WITHOUT_MEMORY)
                lists[kind] = next((found for base, found in kinds.items() if real and issubclass(kind, base)), None)
            if lists[kind] is not None:
                lists[kind].append(item)
        self.tensors = list(filter(_is_defined, self.tensors))


class Swap:
    """Puts tensors on the card and takes them back.

    Parameters
    ----------
    expect : callable
        Told each storage on the card, and whether it was on a GPU all along.
    note : callable
        Takes one line for the report.
    """

    def __init__(self, expect: Callable[[torch.UntypedStorage, bool], None], note: Callable[[str], None]) -> None:
        self._expect, self._note = expect, note
        self._swapped: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
        self._storages: dict[int, torch.UntypedStorage] = {}

    def to_card(self, found: Found, host: HostTensors, namespace: Mapping[str, Any]) -> None:
        """Exchange what belongs on the card; tell ``host`` what stays.

        Parameters
        ----------
        namespace : mapping
            The notebook's variables.

        Raises
        ------
        CannotEstimate
            A tensor cannot be exchanged; everything is as before then.
        """
        chosen = {id(t): t for t in _belongs(found) if _plain(t)}
        storages = {t.untyped_storage()._cdata for t in chosen.values()}
        for tensor in found.tensors:
            if id(tensor) not in chosen and _plain(tensor):
                if tensor.device.type != "cpu" or tensor.untyped_storage()._cdata in storages:
                    chosen[id(tensor)] = tensor  # a view or an alias goes where its memory goes
                else:
                    host.exists(tensor.untyped_storage())
        for gradient in _only_gradients(chosen.values(), namespace):
            del chosen[id(gradient)]  # it comes with its tensor, and goes when that gets another
        for tensor in chosen.values():
            self._exchange(tensor)
        self._storages.clear()  # what the program lets go of is gone
        for tensor in found.tensors:
            if nn.parameter.is_lazy(tensor) and tensor.data.device.type != "meta":
                self._exchange(tensor)  # it takes its shape where the model runs

    def follow(self, tensor: Tensor, everywhere: Iterable[Tensor], made: bool = False) -> bool:
        """Exchange one more while the code runs, with all that share its memory; False, and nothing done, where that fails.

        Parameters
        ----------
        made : bool
            The cell itself made it: it begins here, and goes when the cell lets go of it.
        """
        storage, before = tensor.untyped_storage()._cdata, len(self._swapped)
        aliases = [t for t in everywhere if _plain(t) and t.untyped_storage()._cdata == storage]
        try:
            for alias in aliases:
                self._swapped.append(self._exchanged(alias, made))
        except RuntimeError:
            self.back(before)
            return False
        finally:
            self._storages.clear()
        if made:
            del self._swapped[before:]
        return True

    def _exchange(self, tensor: Tensor) -> None:
        try:
            self._swapped.append(self._exchanged(tensor))
        except RuntimeError as error:
            self.back()
            shape = "×".join(map(str, tensor.shape))
            raise CannotEstimate(
                f"a tensor ({shape}) is held in a way that keeps it from being put on the simulated card ({error}); "
                "delete what holds it, or build the model in the cell that is estimated"
            ) from error

    def _exchanged(self, tensor: Tensor, made: bool = False) -> tuple[Tensor, Tensor, dict[str, Any]]:
        # The collector also shows objects that only C++ holds (the base of a view); exchanged as such, they would dangle.
        # An operator that gives back its argument hands them to Python first.
        if nn.parameter.is_lazy(tensor):
            shadow = torch.empty(0, dtype=tensor.data.dtype, device="meta").requires_grad_(tensor.requires_grad)
        else:
            tensor.resolve_conj()
            shadow = self._shadow(tensor, made)
            own = tensor.is_leaf or tensor.retains_grad  # torch warns of asking any other
            if own and tensor.grad is not None and _plain(tensor.grad):
                shadow.grad = self._shadow(tensor.grad)
        before = {name: getattr(tensor, name, None) for name in _HOOKS} | {"__dict__": dict(vars(tensor))}
        before["__class__"] = type(tensor)
        torch._C._swap_tensor_impl(tensor, shadow)
        return tensor, shadow, before

    def _shadow(self, tensor: Tensor, made: bool = False) -> Tensor:
        storage = tensor.untyped_storage()
        there = self._storages.get(storage._cdata)
        if there is None:
            there = self._storages[storage._cdata] = torch.UntypedStorage(storage.nbytes(), device="meta")
            if not made:
                self._expect(there, tensor.device.type != "cpu")
        shadow = torch.empty(0, dtype=tensor.dtype, device="meta")
        shadow.set_(there, tensor.storage_offset(), tensor.shape, tensor.stride())
        values.moved(there, tensor)  # now: while the code runs, `set_` is taken for something unknown that is written
        return shadow.requires_grad_() if tensor.requires_grad and tensor.is_leaf else shadow

    def back(self, first: int = 0) -> None:
        """Everything as it was, or what was exchanged from ``first`` on: exchanged again in reverse order."""
        while len(self._swapped) > first:
            tensor, shadow, before = self._swapped[-1]
            torch._C._swap_tensor_impl(tensor, shadow)
            self._swapped.pop()
            if type(tensor) is not before["__class__"]:  # a lazy one has its shape
                tensor.__class__ = before["__class__"]
            vars(tensor).clear()
            vars(tensor).update(before["__dict__"])
            for name in _HOOKS:
                if getattr(tensor, name, None) is not before[name]:
                    setattr(tensor, name, before[name])


def _is_defined(tensor: Tensor) -> bool:
    """Whether there is anything behind a tensor: torch 2.6 leaves an empty one in the traceback of some errors."""
    try:
        _ = tensor.is_leaf
    except RuntimeError:
        return False
    return True


def _only_gradients(tensors: Collection[Tensor], namespace: Mapping[str, Any]) -> list[Tensor]:
    """Those that are another's gradient, and no variable leads to them in a shorter way."""
    gradients = [t.grad for t in tensors if t.is_leaf and t.grad is not None and _plain(t.grad)]
    there = {id(tensor) for tensor in tensors}
    gradients = [gradient for gradient in gradients if id(gradient) in there]
    walk = Walk((namespace,))
    for name, value in list(namespace.items()) if gradients else ():
        walk.root(value, name)
    paths = {storage.key: path for storage, path in walk.storages.items()}
    return [g for g in gradients if paths.get(g.untyped_storage()._cdata, "").endswith(".grad")]


def _plain(tensor: Tensor) -> bool:
    """Strided, with memory, and not a wrapper of others."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not hasattr(tensor, "__tensor_flatten__")
        and not nn.parameter.is_lazy(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _belongs(found: Found) -> Iterator[Tensor]:
    """Tensors that a training program keeps on the card: of models and optimizers, what wants gradients, and what these made."""
    for module in found.modules:
        yield from _set(module._parameters.values())
        yield from _set(module._buffers.values())
    for optimizer in found.optimizers:
        for group in optimizer.param_groups:
            yield from _set(group["params"])
        for state in optimizer.state.values():
            for key, value in state.items() if isinstance(state, dict) else ():
                if isinstance(value, Tensor) and not (key == "step" and value.device.type == "cpu"):
                    yield value
    for scaler in found.scalers:
        # A disabled one has none.
        yield from _set(getattr(scaler, name, None) for name in ("_scale", "_growth_tracker"))
    for tensor in found.tensors:
        if tensor.requires_grad:  # a leaf, or a state that a model returned in an earlier cell
            yield tensor


def _set(values: Iterable[Any]) -> Iterator[Tensor]:
    return (v for v in values if isinstance(v, Tensor))

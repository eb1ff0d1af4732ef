"""Tensors that an earlier cell made on the host and that the code uses together with the card's: they go to the card.

Without a GPU the cells before this one could make them nowhere else (``x = torch.randn(512, 8, device=device)``). On the card
such a call would fail if they were left behind, so that is where they were meant to be; those that the code moves itself stay.
The same goes for what the cell has made of them on the way (``x[i : i + 8]`` stacked, ``x / x.norm()``), if the notebook chooses devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.simulated.descent import Descent
from ipyvram.simulated.host import HostTensors
from ipyvram.simulated.swap import Found, Swap

#: Functions that take tensors from both sides, or only ask one for its shape or type.
_APART = frozenset({"copy_", "to", "type", "type_as", "expand_as", "view_as", "reshape_as", "__set__", "__setitem__"})
#: Those that want whole numbers (lengths, places) on the host.
_COUNTING = frozenset({
    "_pack_padded_sequence", "_pad_packed_sequence", "ctc_loss", "tensor_split", "lstm", "gru", "rnn_tanh", "rnn_relu",
})  # fmt: skip


_NAMED = 4  # shapes in the note


class Meeting:
    """Called with each function of torch before it runs.

    Parameters
    ----------
    host : HostTensors
        Knows what was there before the cell.
    swap : Swap
    descent : Descent or None
        Knows what the cell has made of that; None where the notebook chooses no devices.
    """

    def __init__(self, host: HostTensors, swap: Swap, descent: Descent | None = None) -> None:
        self._host, self._swap, self._descent = host, swap, descent
        self._cannot: set[int] = set()  # tensors
        self._went: set[int] = set()  # addresses of storages: what lay there is still found, in the shadows
        self._shapes: list[tuple[int, ...]] = []  # of what was exchanged

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Exchange those among the arguments that belong on the card."""
        hosts, on_card = list[Tensor](), False
        for tensor in _tensors((*args, *kwargs.values())):
            if tensor.device.type == "meta":
                on_card = True
            elif self._may_go(tensor):
                hosts.append(tensor)
        if self._descent is not None and func is Tensor.to and hosts and _names_a_device(args[1:], kwargs):
            self._descent.moved(args[0])
        name = getattr(func, "__name__", "") if on_card and hosts else ""
        if not name or name in _APART:
            return
        if name == "__getitem__":  # what is on the card may be indexed from the host, and not the other way round
            hosts = [tensor for tensor in hosts if tensor is args[0]]
        elif name in _COUNTING:
            hosts = [tensor for tensor in hosts if tensor.is_floating_point()]
        self._exchange(hosts)

    def before_a_transform(self, tensors: Iterable[Tensor]) -> None:
        """Exchange those that a transform of functions is about to wrap, if it uses anything on the card."""
        with torch._C.DisableTorchFunction():  # else a tensor says what the cell is told of it
            found = list(tensors)
            if any(tensor.device.type == "meta" for tensor in found):
                self._exchange(filter(self._may_go, found))

    @property
    def note(self) -> str:
        """What was exchanged, in words; empty where nothing was."""
        shapes = list(dict.fromkeys("×".join(map(str, shape)) for shape in self._shapes))
        number = f"{len(self._shapes)} tensors" if len(self._shapes) > 1 else "a tensor"
        named = ", ".join(shapes[:_NAMED]) + (", …" if len(shapes) > _NAMED else "")
        return (
            f"made on the CPU by earlier cells and used on the card, so counted there: {number} ({named})"
            if shapes
            else ""
        )

    def _may_go(self, tensor: Tensor) -> bool:
        """Whether it was there before the cell, or was made of what was, and is on the host."""
        if id(tensor) in self._cannot or nn.parameter.is_lazy(tensor) or not tensor.dim():
            return False
        return self._host.existed(tensor) or bool(self._made_of(tensor))

    def _made_of(self, tensor: Tensor) -> frozenset[int]:
        return frozenset() if self._descent is None else self._descent.of(tensor)

    def _exchange(self, hosts: Iterable[Tensor]) -> None:
        everywhere: list[Tensor] | None = None
        for tensor in hosts:
            if tensor.device.type == "meta":  # it shares the memory of one before it
                continue
            everywhere = everywhere or Found().tensors
            for source in self._made_of(tensor) - self._went:
                self._went.add(source)
                first = next((t for t in everywhere if self._host.existed(t) and _lies_at(t, source)), None)
                if first is not None:
                    self._follow(first, everywhere, made=False)
            self._follow(tensor, everywhere, made=not self._host.existed(tensor))

    def _follow(self, tensor: Tensor, everywhere: list[Tensor], made: bool) -> None:
        """``made``: by this cell."""
        shape = tuple(tensor.shape)
        if not self._swap.follow(tensor, everywhere, made):
            self._cannot.add(id(tensor))
        elif not made:
            self._shapes.append(shape)


def _lies_at(tensor: Tensor, address: int) -> bool:
    return bool(tensor.untyped_storage()._cdata == address)


def _names_a_device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether `Tensor.to` moves, and does not only cast."""
    first = args[0] if args else None
    return kwargs.get("device") is not None or isinstance(first, (str, int, torch.device, Tensor))


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (tuple, list):
            yield from (item for item in value if isinstance(item, Tensor))

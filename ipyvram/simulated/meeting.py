"""Tensors that an earlier cell made on the host and that the code uses together with the card's: they go to the card.

Without a GPU the cells before this one could make them nowhere else (``x = torch.randn(512, 8, device=device)``). On the card
such a call would fail if they were left behind, so that is where they were meant to be; those that the code moves itself stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ipyvram.simulated.host import HostTensors
from ipyvram.simulated.swap import Found, Swap

#: Functions that take tensors from both sides, or only ask one for its shape or type.
_APART = frozenset({"copy_", "to", "type", "type_as", "expand_as", "view_as", "reshape_as", "__set__", "__setitem__"})
#: Those that want whole numbers (lengths, places) on the host.
_COUNTING = frozenset({
    "_pack_padded_sequence", "_pad_packed_sequence", "ctc_loss", "tensor_split", "lstm", "gru", "rnn_tanh", "rnn_relu",
})  # fmt: skip


class Meeting:
    """Called with each function of torch before it runs.

    Parameters
    ----------
    host : HostTensors
        Knows what was there before the cell.
    swap : Swap
    note : callable
        Takes one line for the report.
    """

    def __init__(self, host: HostTensors, swap: Swap, note: Callable[[str], None]) -> None:
        self._host, self._swap, self._note = host, swap, note
        self._cannot: set[int] = set()  # tensors

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Exchange those among the arguments that belong on the card."""
        hosts, on_card = list[Tensor](), False
        for tensor in _tensors((*args, *kwargs.values())):
            if tensor.device.type == "meta":
                on_card = True
            elif id(tensor) not in self._cannot and self._host.existed(tensor) and tensor.dim():
                hosts.append(tensor)
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
                self._exchange([t for t in found if id(t) not in self._cannot and self._host.existed(t) and t.dim()])

    def _exchange(self, hosts: Iterable[Tensor]) -> None:
        for tensor in hosts:
            if not self._host.existed(tensor):  # it shares the memory of one before it
                continue
            if not self._swap.follow(tensor, Found().tensors):
                self._cannot.add(id(tensor))
            else:
                shape = "×".join(map(str, tensor.shape))
                self._note(
                    f"a tensor ({shape}) that an earlier cell made on the CPU is used on the card: counted there"
                )


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (tuple, list):
            yield from (item for item in value if isinstance(item, Tensor))

"""`torch.cuda.FloatTensor` and its like, the old names of tensors on the card: stand-ins that make them on the simulated one.

The types of torch's own would allocate on a real card, or need one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipyvram.patches import Patches

_META = torch.device("meta")

_DTYPES = {
    "FloatTensor": torch.float32, "DoubleTensor": torch.float64, "HalfTensor": torch.float16, "BFloat16Tensor": torch.bfloat16,
    "ByteTensor": torch.uint8, "CharTensor": torch.int8, "ShortTensor": torch.int16, "IntTensor": torch.int32,
    "LongTensor": torch.int64, "BoolTensor": torch.bool,
}  # fmt: skip


class _OnCard(type):
    """The type of the stand-ins: calling one makes a tensor, and tensors on the card are its instances."""

    dtype: torch.dtype
    is_cuda = True

    def __call__(cls, *args: Any, **kwargs: Any) -> Tensor:
        first = args[0] if args else 0
        if isinstance(first, Tensor):
            return first.detach().to(_META, cls.dtype)
        if isinstance(first, (int, torch.Size)):
            return torch.empty(args if isinstance(first, int) and args else first, dtype=cls.dtype, device=_META)
        return torch.tensor(first, dtype=cls.dtype).to(_META)

    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, Tensor) and value.is_cuda and value.dtype == cls.dtype


def install(patches: Patches, namespace: dict[str, Any]) -> None:
    """Put the stand-ins in their place, also where a variable of an earlier cell holds one: ``Tensor = torch.cuda.FloatTensor``."""
    stand_ins = {}
    for name, dtype in _DTYPES.items():
        original = vars(torch.cuda).get(name)
        stand_in = _OnCard(name, (), {"__module__": "torch.cuda", "dtype": dtype})
        stand_ins[id(original)] = stand_in
        patches.set(torch.cuda, name, stand_in)
    for variable, value in list(namespace.items()):
        if id(value) in stand_ins and value is not None:
            patches.set(namespace, variable, stand_ins[id(value)])
    _default_type(patches)


def _default_type(patches: Patches) -> None:
    """``torch.set_default_tensor_type(torch.cuda.FloatTensor)`` makes the card the default device."""
    set_type, on_card = torch.set_default_tensor_type, False

    def set_default_tensor_type(kind: Any) -> None:
        nonlocal on_card
        dtype = card_dtype(kind)
        if dtype is not None:
            torch.set_default_dtype(dtype)
        else:
            set_type(kind)
        if on_card != (dtype is not None):
            on_card = not on_card
            torch.set_default_device("cuda" if on_card else None)

    patches.set(torch, "set_default_tensor_type", set_default_tensor_type)


def card_dtype(kind: Any) -> torch.dtype | None:
    """What is in a tensor of this type, named by itself or in words, if that is one on the card; else None."""
    if isinstance(kind, str):
        name = kind.rpartition(".cuda.")[2]
        return _DTYPES.get(name) if ".cuda." in kind else None
    return kind.dtype if getattr(kind, "is_cuda", False) is True else None

"""Operators whose result depends on values: the card has none, so a placeholder or the largest result stands in.

`TABLE` maps operators to functions of ``(card, func, args, kwargs)``; NotImplemented means: run it as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.simulated import attention, normalization, recurrent, shapes, sparse, values
from ipyvram.simulated.arguments import argument, aten, entries_of, is_mask
from ipyvram.simulated.refusal import CannotEstimate

Handler = Callable[[Any, Any, Any, dict[str, Any]], Any]
TABLE: dict[Any, Handler] = {}

LARGEST = "a result whose size depends on values was taken to be as large as it can be"


_for = entries_of(TABLE)


def value(dtype: torch.dtype) -> Any:
    """What stands for a number: a finite positive float (its logarithm and its inverse exist), 0, or False."""
    if dtype is torch.bool:
        return False
    if dtype.is_complex:
        return complex(1.0)
    return 1.0 if dtype.is_floating_point else 0


def host_copy(tensor: Tensor) -> Tensor:
    """A host tensor of the same shape: what is known, else filled with the placeholder; zero pages cost nothing until written."""
    known = values.of(tensor)
    if known is not None:
        return known.tensor.clone()
    shape = tuple(tensor.shape)
    if tensor.dim() == 0:
        return torch.full((), value(tensor.dtype), dtype=tensor.dtype)
    return torch.zeros(shape, dtype=tensor.dtype)


@_for("_local_scalar_dense")
def _item(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    known = card.known(args[0])
    if known is not None:
        return known.item()
    card.note("numbers read from the card (`.item()`, `print`, `if`) are placeholders: nothing was computed there")
    return value(args[0].dtype)


@_for("equal")
def _equal(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    one, other = card.known(args[0]), card.known(args[1])
    return one is not None and other is not None and torch.equal(one, other)


@_for("allclose")
def _allclose(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """What a program checks to be close, such as the columns of an orthogonal matrix, is."""
    return True


@_for("_to_copy")
def _to_copy(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    device = kwargs.get("device")
    if args[0].device.type == "meta" and device is not None and torch.device(device).type != "meta":
        card.see(func, args[0])
        card.known(args[0])
        copy = host_copy(args[0])
        return copy if kwargs.get("dtype") is None else copy.to(kwargs["dtype"])
    return NotImplemented


@_for("copy_")
def _copy(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    if target.device.type == "meta":
        card.see(func, target)
        if source.device.type == "meta":
            card.see(func, source)
        return target
    card.host.before_write([target])
    card.known(source)
    target.copy_(host_copy(source).expand(source.shape))
    return target


@_for("nonzero")
def _nonzero(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    count = _selected(card, args[0], "nonzero")
    return torch.empty((args[0].dim(), count), dtype=torch.int64, device="meta").t()


def _selected(card: Any, mask: Tensor, name: str) -> int:
    """Places that a mask selects, or on the card could select."""
    known = card.known(mask)
    if known is not None:
        return int(known.count_nonzero())
    if mask.device.type != "meta":
        return int(mask.count_nonzero())
    card.note(f"{LARGEST} ({name})")
    few = values.most(mask)
    return mask.numel() if few is None else few


@_for("masked_select")
def _masked_select(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
    count = _selected(card, args[1].expand(shape), "masked_select")
    return torch.empty(count, dtype=args[0].dtype, device="meta")


def _from_known(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Results whose sizes follow from a known first argument; NotImplemented where it is not known."""
    known = card.known(args[0])
    if known is None:
        return NotImplemented
    made = func(known, *args[1:], **kwargs)
    return tuple(torch.empty_like(t, device="meta") for t in made)


@_for("_unique2", "_unique", "unique_consecutive")
def _unique(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    made = _from_known(card, func, args, kwargs)
    if made is not NotImplemented:
        return made
    card.note(LARGEST + " (unique)")
    n, dim = args[0].numel(), kwargs.get("dim", args[3] if "consecutive" in str(func) and len(args) > 3 else None)
    values = torch.empty(n, dtype=args[0].dtype, device="meta") if dim is None else torch.empty_like(args[0])
    inverse = torch.empty(args[0].shape, dtype=torch.int64, device="meta")
    return (values, inverse, torch.empty(n, dtype=torch.int64, device="meta"))[: len(func._schema.returns)]


@_for("unique_dim")
def _unique_dim(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    made = _from_known(card, func, args, kwargs)
    if made is not NotImplemented:
        return made
    card.note(LARGEST + " (unique)")
    counts = torch.empty(args[0].shape[args[1]], dtype=torch.int64, device="meta")
    return torch.empty_like(args[0]), counts, torch.empty_like(counts)


@_for("bincount")
def _bincount(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    count = argument(args, kwargs, 2, "minlength", 0)
    known = card.known(args[0])
    if known is not None:
        count = max(count, int(known.max()) + 1 if known.numel() else 0)
    else:
        count = max(count, 1)
        card.note(f"bincount was taken to return {count} counts: their number depends on values")
    weighted = len(args) > 1 and args[1] is not None
    return torch.empty(count, dtype=torch.float64 if weighted else torch.int64, device="meta")


@_for("index.Tensor", "index_put.default", "index_put_.default", "_index_put_impl_.default", "_unsafe_index.Tensor")
def _boolean_index(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Boolean masks become index lists of every place they select, or on the card could select."""
    indices: list[Any] = []
    found = False
    for index in args[1]:
        if is_mask(index):
            found = True
            count = _selected(card, index, "a boolean index")
            indices += [torch.empty(count, dtype=torch.int64, device="meta") for _ in range(index.dim())]
        else:
            indices.append(index)
    if not found:
        return NotImplemented
    if func._schema.name != "aten::index":
        return args[0] if func._schema.name.endswith("_") else torch.empty_like(args[0])
    made = [i for i in indices if isinstance(i, Tensor)]
    for index in made:
        card.see(aten.nonzero.default, index)
    return func(args[0], indices)


def _nms(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """Every box is kept."""
    card.note(LARGEST + " (nms)")
    return torch.empty(args[0].shape[0], dtype=torch.int64, device="meta")


#: Operators of others than torch, by name: they are there only where these are loaded. Asked where one cannot run without values.
OF_OTHERS: dict[str, Handler] = {"torchvision::nms": _nms}


@_for("repeat_interleave.Tensor")
def _repeat_interleave(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if kwargs.get("output_size") is not None:
        return torch.empty(kwargs["output_size"], dtype=torch.int64, device="meta")
    known = card.known(args[0])
    if known is not None:
        return torch.empty(int(known.sum()), dtype=torch.int64, device="meta")
    raise CannotEstimate(
        "repeat_interleave with repeats on the card has a size that depends on values and no largest size, so this cell "
        "has no estimate; give it output_size="
    )


@_for("_amp_foreach_non_finite_check_and_unscale_")
def _unscale(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Gradients and the flag are written in place."""


_KERNELS: dict[str, Handler] = {
    **shapes.TABLE,
    "_scaled_dot_product_cudnn_attention": attention.cudnn,
    "native_batch_norm": normalization.forward,
    "native_batch_norm_backward": normalization.backward,
    "native_group_norm": normalization.grouped,
    "native_group_norm_backward": normalization.grouped_backward,
    "_cudnn_rnn": recurrent.forward,
    "_cudnn_rnn_backward": recurrent.backward,
    "_thnn_fused_gru_cell": recurrent.fused_gru,
    "_thnn_fused_gru_cell_backward": recurrent.fused_gru_backward,
}
#: Stand for kernels that take no tensor of the host; the others find it as it is.
ALL_ON_CARD = frozenset(_KERNELS.values())

for _name, _handler in (_KERNELS | sparse.TABLE).items():
    _for(_name)(_handler)
_for(*shapes.IN_PLACE)(shapes.in_place)
_for("_ctc_loss")(shapes.ctc_loss)
_for("_ctc_loss_backward")(shapes.ctc_loss_backward)


@_for("_amp_update_scale_")
def _update_scale(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return args[0]


@_for("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_", "record_stream")
def _nothing_made(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Writes in place and asks for no memory."""

"""What can be said of operators whose operands nobody knows: which entries they choose, and how many of a mask they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.simulated.arguments import argument, is_mask

#: Results, arguments and keyword arguments of an operator → indices among the results, and the values that they are taken to have.
Choosing = Callable[[list[Tensor], Any, dict[str, Any]], tuple[Tensor, Tensor] | None]
#: How many elements of a tensor are not zero at most, None where that may be all.
Most = Callable[[Tensor], int | None]
#: Arguments of an operator → the same of its result, or of what it wrote into.
Counting = Callable[[Any, Most], int | None]

# -- each entry is chosen equally often --------------------------------------------------------------------------------------


def _balanced(indices: Tensor, entries: int, dim: int) -> tuple[Tensor, Tensor] | None:
    """Indices along ``dim`` that choose each of ``entries`` equally often, as near as whole numbers come.

    Row ``r`` takes ``r, r + s, r + 2s, …`` modulo the entries, so each place of a row is as balanced as all of them, and no row
    takes one twice. With fewer indices than entries nothing is known.
    """
    if not indices.dim() or entries < 2 or indices.numel() < entries:
        return None
    moved = indices.movedim(dim, -1)
    wide = moved.shape[-1]
    rows = torch.arange(moved.numel() // wide).view(-1, 1)
    value = (rows + torch.arange(wide) * max(1, entries // wide)) % entries
    return indices, value.view(moved.shape).movedim(-1, dim).to(indices.dtype)


def _topk(made: list[Tensor], args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    dim = argument(args, kwargs, 2, "dim", -1)
    return _balanced(made[1], args[0].shape[dim], dim)


def _sort(made: list[Tensor], args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    dim = argument(args, kwargs, 1, "dim", -1)
    return _balanced(made[1], args[0].shape[dim], dim)


def _argmax(made: list[Tensor], args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Also ``max`` along a dimension, which gives the indices after the values."""
    dim, indices = argument(args, kwargs, 1, "dim"), made[-1]
    if not isinstance(dim, int) or not args[0].dim():
        return None
    return _balanced(indices if indices.dim() == args[0].dim() else indices.unsqueeze(dim), args[0].shape[dim], dim)


def _multinomial(made: list[Tensor], args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    return _balanced(made[0], args[0].shape[-1], -1)


CHOOSING: dict[str, Choosing] = {
    "topk": _topk,
    "sort": _sort,
    "argmax": _argmax,
    "argmin": _argmax,
    "max": _argmax,
    "min": _argmax,
    "multinomial": _multinomial,
}

# -- how many of a mask are chosen, at most ----------------------------------------------------------------------------------


def _put(args: Any, most: Most) -> int | None:
    """``mask[places] = 1``: as many more as there are places. Since 2.15 torch fills, where what it puts is a number."""
    target = args[0]
    places = args[2] if isinstance(args[1], int) else args[1][0] if len(args[1]) == 1 else None
    before = most(target)
    if before is None or places is None or target.dim() != 1 or is_mask(places):
        return None
    return min(before + int(places.numel()), int(target.numel()))


def _of_both(args: Any, most: Most) -> list[int | None]:
    one, other = args[:2]
    return [most(one), most(other)] if isinstance(other, Tensor) and one.shape == other.shape else [None, None]


def _either(args: Any, most: Most) -> int | None:
    one, other = _of_both(args, most)
    return None if one is None or other is None else min(one + other, int(args[0].numel()))


def _both(args: Any, most: Most) -> int | None:
    return min((n for n in _of_both(args, most) if n is not None), default=None)


def _same(args: Any, most: Most) -> int | None:
    return most(args[0])


COUNTING: dict[str, Counting] = {
    "index_put_": _put,
    "index_fill_": _put,
    "bitwise_or": _either,
    "logical_or": _either,
    "bitwise_and": _both,
    "logical_and": _both,
    "_to_copy": _same,
    "clone": _same,
}

"""Sparse gradients on the card: operators that ``meta`` lacks come in, or forgets the parts of; tensors of the right parts go out.

How many rows survive when equal indices are added up depends on values: all of them, at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.sparse_coo


def _made_of(indices: Tensor, values: Tensor, like: Tensor, coalesced: bool) -> Tensor:
    made: Tensor = aten._sparse_coo_tensor_unsafe(indices, values, like.shape, is_coalesced=coalesced)
    return made


def clone(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`clone`, which on meta gives a tensor without rows. The engine copies a gradient only because a mode is on."""
    source = args[0]
    if not _is_sparse(source):
        return NotImplemented
    indices, values = source._indices(), source._values()
    if torch._C._current_graph_task_id() == -1:
        indices, values = torch.empty_like(indices), torch.empty_like(values)
    return _made_of(indices, values, source, source.is_coalesced())


def coalesce(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`_coalesce`: as many rows as there were."""
    card.note("rows of a sparse tensor were taken to be all different (coalesce)")
    source = args[0]
    return _made_of(torch.empty_like(source._indices()), torch.empty_like(source._values()), source, True)


def mask(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`sparse_mask`: the mask's indices, copied, and values of the dense tensor."""
    dense, shape = args
    values = torch.empty(shape._values().shape, dtype=dense.dtype, device="meta")
    return _made_of(torch.empty_like(shape._indices()), values, shape, shape.is_coalesced())


def add_to_dense(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`add_` of sparse rows to a dense tensor writes in place."""
    return args[0] if _is_sparse(args[1]) and not _is_sparse(args[0]) else NotImplemented


TABLE = {"clone.default": clone, "_coalesce": coalesce, "sparse_mask": mask, "add_.Tensor": add_to_dense}

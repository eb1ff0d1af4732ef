"""Sparse gradients and matrices on the card: operators that ``meta`` lacks come in, or forgets the parts of; tensors of the right parts go out.

How many rows survive when equal indices are added up depends on values: all of them, at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipyvram.simulated.arguments import aten


def _is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.sparse_coo


def _made_of(indices: Tensor, values: Tensor, like: Tensor, coalesced: bool) -> Tensor:
    made: Tensor = aten._sparse_coo_tensor_unsafe(indices, values, like.shape, is_coalesced=coalesced)
    return made


def like(matrix: Tensor) -> Tensor:
    """One on the card with parts as those of ``matrix``."""
    indices, values = (torch.empty_like(part, device="meta") for part in (matrix._indices(), matrix._values()))
    return _made_of(indices, values, matrix, matrix.is_coalesced())


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


def product(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`mm`, `addmm`, `_sparse_addmm` of a sparse matrix and a dense one: SparseCUDABlasTensor `s_addmm_out_sparse_dense_cuda`.

    What cuSPARSE itself works in is not known, and not counted.
    """
    added = args[0] if func._schema.name.endswith("addmm") else None
    matrix, dense = args[-2:] if added is None else args[1:3]
    if not _is_sparse(matrix) or _is_sparse(dense):
        return NotImplemented
    card.note("what cuSPARSE works in is not known, and not in the estimate")
    matrix = card.sparse(func, matrix)
    entries, rows = matrix._values().shape[0], matrix.shape[0]
    ways, itemsize = card.ways, dense.element_size()
    result = torch.empty(rows, dense.shape[1], dtype=dense.dtype, device="meta")
    held = ways.take(result.nbytes, op="sparse product") if added is None else []  # `_sparse_mm` adds to zeros
    card.see(func, result)
    if not matrix.is_coalesced():  # a transposed one, in a backward: sorted anew
        ways.use(*[8 * entries] * 3, op="coalesce scratch")
        held += ways.take(16 * entries, itemsize * entries, op="coalesced")
    held += ways.take(4 * (rows + 1), op="sparse product")
    ways.use(4 * entries, op="sparse product")  # the rows, until they are compressed
    held += ways.take(4 * entries, op="sparse product")
    held += ways.take(result.nbytes, op="sparse product")  # in the order of columns
    ways.use(0 if dense.is_contiguous() or dense.t().is_contiguous() else dense.nbytes, op="sparse product")
    ways.give(held)
    return result


TABLE = {"clone.default": clone, "_coalesce": coalesce, "sparse_mask": mask, "add_.Tensor": add_to_dense,
         "mm.default": product, "addmm.default": product, "_sparse_addmm.default": product}  # fmt: skip

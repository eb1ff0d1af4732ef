"""What products and reductions work in besides their results, and how any kernel asks for what it works in: of `DeviceMemory`.

What cannot be known without running (cuDNN's choice of algorithm) is a bound, stated in the report and not part of the account.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.devices import keeps_workspaces
from ipyvram.simulated.arguments import HALVES, argument, dims_of, overloads
from ipyvram.simulated.memory import DeviceMemory
from ipyvram.simulated.reduction import reduction_scratch
from ipyvram.units import MIB

WORKSPACE = "cuBLAS workspace"
CUBLASLT_WORKSPACE = MIB  #: `parseCUDABlasLtWorkspaceSize` (CublasHandlePool.cpp)


_GEMMS = overloads(
    "mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "addbmm", "mv", "addmv", "addmv_", "dot", "vdot", "_addmm_activation"
)  # fmt: skip
_WITH_BIAS, _ACTIVATED = overloads("addmm"), overloads("_addmm_activation")
_REDUCTIONS = overloads(
    "sum", "mean", "prod", "amax", "amin", "aminmax", "max", "min", "argmax", "argmin", "any", "all", "norm", "linalg_vector_norm",
    "var", "std", "var_mean", "std_mean", "nansum",
)  # fmt: skip
_SUMS = ("sum", "mean", "prod", "nansum")


class Ways:
    """What kernels ask for, with what is to be remembered of one run.

    Parameters
    ----------
    card : Card
    memory : DeviceMemory
    """

    def __init__(self, card: Card, memory: DeviceMemory) -> None:
        self.card, self.memory = card, memory
        self.keeps_workspaces = keeps_workspaces()
        self.convolution_bound = 0
        self.recurrent_bound = 0
        self.attention_by_cudnn = False
        self._handles: set[int] = set()  # threads that have a cuBLAS handle, 0 for the engine's

    def after(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """An operator has run and its results are counted."""
        if func in _GEMMS:
            self._gemm(func, args, kwargs, result)
        elif func in _REDUCTIONS:
            self._reduce(func, args, kwargs, result)

    def take(self, *sizes: int, op: str) -> list[tuple[int, int]]:
        """Memory that a kernel works in; `give` it back."""
        return [(self.memory.scratch(size, op), size) for size in sizes if size]

    def give(self, held: list[tuple[int, int]]) -> None:
        """The end of what `take` took."""
        for serial, size in reversed(held):
            self.memory.free(serial, size)

    def use(self, *sizes: int, op: str) -> None:
        """Memory that lives for the length of one kernel: all of it at once."""
        self.give(self.take(*sizes, op=op))

    def _gemm(self, func: Any, args: Any, kwargs: dict[str, Any], result: Tensor) -> None:
        """Copies of operands that cuBLAS cannot read in place (`prepare_batch_matrix_for_cublas`, Blas.cpp), and a workspace."""
        factors = [a for a in args if isinstance(a, Tensor)][-2:]
        if any(factor.layout is not torch.strided for factor in factors):
            return  # cuSPARSE's: see `sparse.product`
        copies = self.take(*map(_copied_bytes, factors), op="gemm copy")
        if result.numel() and (factors[0].numel() or factors[0].dim() == 1):  # else nothing is multiplied
            self.cublas(by_cublaslt=_by_cublaslt(func, args, kwargs, result))
        self.give(copies)

    def keeps(self, handles: int) -> None:
        """So many threads have made products before the cell: its own, and the engine's."""
        for thread in (threading.get_ident(), 0)[:handles]:
            self._handles.add(thread)
            self.memory.scratch(self.card.cublas_workspace_bytes, WORKSPACE)

    def cublas(self, by_cublaslt: bool = False) -> None:
        """The workspace of a product that is made on this thread, see `devices.keeps_workspaces`.

        A thread has its own handle (CublasHandlePool.cpp). Where they are kept, cuBLASLt shares the handle's.
        """
        thread = 0 if torch._C._current_graph_task_id() != -1 else threading.get_ident()
        if not self.keeps_workspaces:
            self.use(CUBLASLT_WORKSPACE if by_cublaslt else self.card.cublas_workspace_bytes, op=WORKSPACE)
        elif thread not in self._handles:
            self._handles.add(thread)
            self.memory.scratch(self.card.cublas_workspace_bytes, WORKSPACE)

    def _reduce(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        source = args[0]
        if (
            not isinstance(source, Tensor)
            or not source.numel()
            or isinstance(args[1] if len(args) > 1 else None, Tensor)
        ):
            return
        name = func._schema.name.removeprefix("aten::")
        out = result[0] if isinstance(result, (tuple, list)) else result
        if isinstance(out, Tensor) and out.numel():
            op, held = f"{name} scratch", list[tuple[int, int]]()
            if name in _SUMS and out.dtype is not source.dtype and source.dtype not in HALVES:
                # `make_reduction` (ReduceOpsUtils.h): only half precision is summed in another type without a cast
                source = torch.empty_like(source, dtype=out.dtype, device="meta")
                held = self.take(source.nbytes, op=op)
            operator = func.name().removeprefix("aten::")
            self.use(*reduction_scratch(operator, source, out, _dims(func, args, kwargs), self.card), op=op)
            self.give(held)


def _by_cublaslt(func: Any, args: Any, kwargs: dict[str, Any], result: Tensor) -> bool:
    """Whether cuBLASLt makes a product, which adds something at once: `isInputCompliesAddmmCudaLt` (Blas.cpp).

    That is a bias, or in half precision a matrix that is not the result (pytorch pull request 191706).
    """
    activated = func in _ACTIVATED
    if func not in _WITH_BIAS and not activated:
        return False
    added, right, beta = args[0], args[2], kwargs.get("beta", 1)
    if not result.is_contiguous() or result.dtype.is_complex or 1 in right.shape:
        return False
    if added.shape == result.shape and not activated and added.dtype in HALVES and beta:
        apart = added.untyped_storage()._cdata != result.untyped_storage()._cdata
        return bool(apart and added.stride(1) == 1 and added.stride(0) >= added.shape[1])
    row = added.is_contiguous() and added.squeeze().dim() == 1 and added.shape[-1] == right.shape[1]
    return bool(beta == 1 and (row or (activated and added.dim() == 2)))


def _copied_bytes(matrix: Tensor) -> int:
    """Bytes of a dense copy where neither rows nor columns are contiguous, as in a tensor that was expanded."""
    if matrix.dim() < 2 or not matrix.numel():
        return 0
    rows, columns = matrix.shape[-2:]
    row, column = matrix.stride()[-2:]
    if (column == 1 and row >= max(1, columns)) or (row == 1 and column >= max(1, rows)) or rows == columns == 1:
        return 0
    return matrix.nbytes


def _dims(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[int, ...]:
    """The dimensions that an operator reduces."""
    for position, known in enumerate(func._schema.arguments):
        if known.name in ("dim", "dims"):
            return dims_of(args[0], argument(args, kwargs, position, known.name))
    return dims_of(args[0], None)

"""What CUDA kernels allocate besides their results: called after every operator on the card, writes to `DeviceMemory`.

Each rule names the code of PyTorch it follows. What cannot be known without running (cuDNN's choice of algorithm) is a
bound, stated in the report and not part of the account.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.devices import keeps_workspaces
from ipyvram.simulated.arguments import HALVES, argument, dims_of, entries_of, overloads
from ipyvram.simulated.memory import DeviceMemory
from ipyvram.simulated.reduction import reduction_scratch
from ipyvram.units import MIB

Rule = Callable[["Ways", Any, Any, Any], None]

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
    """The rules, with what they remember of one run.

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
        else:
            rule = _RULES.get(func)
            if rule is not None:
                rule(self, args, kwargs, result)

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


# -- rules ---------------------------------------------------------------------------------------------------------------

_RULES: dict[Any, Rule] = {}


_rule = entries_of(_RULES)


@_rule("multinomial")
def _multinomial(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    """`multinomial_out` (Distributions.cpp): without replacement, or for one sample, weights are divided by random numbers."""
    if not argument(args, kwargs, 2, "replacement", False) or args[1] == 1:
        ways.use(args[0].nbytes, op="multinomial")


@_rule("linalg_solve_triangular")
def _solve_triangular(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    """`triangular_solve_kernel` (BatchLinearAlgebra.cpp): a few large systems one by one, else through addresses of all."""
    triangle, op = args[0], "triangular systems"
    batches, size = math.prod(result.shape[:-2]), math.prod(triangle.shape[-2:]) * triangle.element_size()
    held = ways.take(batches * size if triangle.shape[:-2] != result.shape[:-2] else 0, op=op)
    if batches > 8 or triangle.shape[-1] < 64:
        held += ways.take(8 * batches, 8 * batches, op=op)
    ways.cublas()
    ways.give(held)


@_rule("masked_scatter", "masked_scatter_")
def _masked_scatter(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    """`launch_masked_scatter_kernel` (IndexKernel.cu): for each element, how many were set before it."""
    ways.use(8 * args[0].numel(), op="masked_scatter prefix sums")


@_rule("_grouped_mm")
def _grouped_mm(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    """`_grouped_mm_cuda` (GroupedBlas.cpp): bfloat16 in one kernel on Hopper and Blackwell, else group by group."""
    if args[0].dtype is not torch.bfloat16 or ways.card.capability not in ((9, 0), (10, 0)):
        ways.cublas()


@_rule("_foreach_norm")
def _foreach_norm(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    """ForeachReduceOp.cu: one partial result for each chunk of 65536 elements of each tensor."""
    tensors = args[0]
    chunks = max((math.ceil(t.numel() / 65536) for t in tensors), default=0)
    ways.use(len(tensors) * chunks * 4, op="_foreach_norm partial sums")


@_rule("convolution")
def _convolution(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    ways.convolution_bound = max(ways.convolution_bound, _lowered_bytes(args[0], args[1], result))


@_rule("convolution_backward")
def _convolution_backward(ways: Ways, args: Any, kwargs: Any, result: Any) -> None:
    ways.convolution_bound = max(ways.convolution_bound, _lowered_bytes(args[1], args[2], args[0]))


def _lowered_bytes(source: Tensor, weight: Tensor, out: Tensor) -> int:
    """Bytes of the input unfolded for a matrix product: more than cuDNN's default choices are known to need."""
    kernel = math.prod(weight.shape[2:])
    if kernel == 1:
        return 0
    return out.shape[0] * math.prod(out.shape[2:]) * weight.shape[1] * kernel * source.element_size()

"""In which order a CUDA kernel asks for its results and for what it works in: an operator and its results come in, requests go out.

A rule is called before the results are counted; ``made(*results)`` counts those that are tensors. What a rule does not count comes
after it, in the order of the results. Each names the code of PyTorch it follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.devices import since
from ipyvram.simulated.arguments import argument, dims_of, entries_of
from ipyvram.simulated.reduction import reduction_scratch
from ipyvram.simulated.ways import Ways

Made = Callable[..., None]
Rule = Callable[[Ways, Any, Any, Any, Made], None]
RULES: dict[Any, Rule] = {}
_PARTIAL_SUMS = since(2, 7)


rule = entries_of(RULES)


def copied(tensor: Tensor | None, order: torch.memory_format = torch.contiguous_format) -> int:
    """Bytes of ``tensor.contiguous()``: none where it is so already."""
    if tensor is None or tensor.device.type != "meta" or tensor.is_contiguous(memory_format=order):
        return 0
    return tensor.nbytes


# -- elementwise and normalisation -------------------------------------------------------------------------------------------


@rule("native_dropout")
def _dropout(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Dropout.cu `dropout_cuda`: the mask first."""
    made(result[1])


@rule("native_layer_norm")
def _layer_norm(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """layer_norm_kernel.cu `layer_norm_cuda`: the input in order."""
    held = ways.take(copied(args[0]), op="layer_norm copy")
    made(*result)
    ways.give(held)


@rule("native_layer_norm_backward")
def _layer_norm_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """layer_norm_kernel.cu `LaunchGammaBetaBackwardCUDAKernel`: for many rows partial sums, of at most 2²⁰ values (since 2.7)."""
    held = ways.take(copied(args[1]), op="layer_norm copy")
    made(*result)
    held += ways.take(copied(args[0]), op="layer_norm copy")
    width = math.prod(args[2])
    rows = args[1].numel() // max(1, width)
    if (
        rows > 64 * 1024
        and width // 32 < ways.card.multiprocessors // 2
        and isinstance(result[1], Tensor)
        and _PARTIAL_SUMS
    ):
        weight = result[1]
        blocks = torch.empty(min(-(-rows // 32), (1 << 20) // width), width, dtype=weight.dtype, device="meta")
        op = "layer_norm partial sums"
        partial = ways.take(blocks.nbytes, blocks.nbytes, op=op)
        for _ in range(2):
            ways.use(weight.nbytes, *reduction_scratch("sum", blocks, weight.view(-1), (0,), ways.card), op=op)
        ways.give(partial)
    ways.give(held)


@rule("roll")
def _roll(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """TensorTransformations.cu `roll_cuda`: the input in order, then one dimension after the other, all kept until the last."""
    source, dims = args[0], argument(args, kwargs, 2, "dims", ())
    copy, held = ways.take(copied(source), op="roll copy"), list[tuple[int, int]]()
    for _ in dims[1:]:
        held += ways.take(source.nbytes, op="roll")
        ways.give(copy)
        copy = []
    made(result)
    ways.give(held + copy)


@rule("_softmax_backward_data")
def _softmax_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """SoftMax.cu `softmax_backward_cuda_out`: the product of gradient and output, and what of them is in no plain order."""
    made(result)
    held = ways.take(args[0].nbytes, op="softmax product")
    held += ways.take(copied(args[0]), copied(args[1]), op="copy in order")
    ways.give(held)


@rule("log_sigmoid_forward")
def _log_sigmoid(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Activation.cpp `log_sigmoid_forward_out_cuda`: no buffer on CUDA."""
    made(result[0])
    ways.memory.ignore(result[1].untyped_storage())


@rule("count_nonzero")
def _count_nonzero(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """TensorAdvancedIndexing.cpp `count_nonzero_cuda`: ``(x != 0).sum()``, with booleans as eight bytes each."""
    held = ways.take(args[0].numel(), op="count_nonzero")
    made(result)
    counted = torch.empty_like(args[0], dtype=torch.int64)
    ones = ways.take(counted.nbytes, op="count_nonzero")
    ways.use(
        *reduction_scratch("sum", counted, result, dims_of(counted, argument(args, kwargs, 1, "dim")), ways.card),
        op="count_nonzero",
    )
    ways.give(ones)
    ways.give(held)


@rule("logsumexp")
def _logsumexp(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """ReduceOps.cpp `logsumexp_out_impl`: the largest, where they are infinite, and the exponentials of what is below them."""
    source, dims, op = args[0], dims_of(args[0], args[1]), "logsumexp"
    item = result.element_size()
    held = ways.take(result.numel() * item, op=op)
    ways.use(*reduction_scratch("amax", source, result, dims, ways.card), op=op)
    ways.use(result.numel() * item, result.numel(), op=op)
    held += ways.take(source.numel() * item, op=op)
    made(result)
    ways.use(*reduction_scratch("sum", source, result, dims, ways.card), op=op)
    ways.give(held)


# -- losses --------------------------------------------------------------------------------------------------------------


@rule("mse_loss", "smooth_l1_loss")
def _stays_large(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """BinaryOps.cpp: the result, as large as the input (see `shapes.reduced_loss`), and the loss of each element."""
    made(result)
    if not result.dim():
        _reduced(ways, args, result, result)


@rule("binary_cross_entropy")
def _cross_entropy(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Loss.cu: the result holds the loss of each element, which is reduced into a number beside."""
    made(result)
    if not result.dim():
        held = ways.take(result.element_size(), op="loss")
        _reduced(ways, args, result, None)
        ways.give(held)


@rule("huber_loss")
def _huber_loss(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """BinaryOps.cpp `huber_loss`: the loss of each element, then a number."""
    if not result.dim():
        item = _each(args, result)
        held = ways.take(item.nbytes, op="loss of each element")
        made(result)
        ways.use(*reduction_scratch("sum", item, result, tuple(range(item.dim())), ways.card), op="loss scratch")
        ways.give(held)


@rule("multi_margin_loss")
def _multi_margin_loss(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """MultiMarginLoss.cu: the loss of each sample beside."""
    made(result)
    if not result.dim() and args[0].dim() == 2:
        ways.use(args[0].shape[0] * result.element_size(), op="loss of each sample")


@rule("multilabel_margin_loss_forward")
def _multilabel_margin_loss(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """MultiLabelMarginCriterion.cu: which classes are meant, the loss of each sample, then the loss."""
    loss, meant = result
    made(meant)
    alone = loss.dim() or args[0].dim() < 2
    held = ways.take(0 if alone else args[0].shape[0] * loss.element_size(), op="loss of each sample")
    made(loss)
    ways.give(held)


def _each(args: Any, result: Tensor) -> Tensor:
    return torch.empty(torch.broadcast_shapes(args[0].shape, args[1].shape), dtype=result.dtype, device="meta")


def _reduced(ways: Ways, args: Any, result: Tensor, beside: Tensor | None) -> None:
    item = _each(args, result)
    held = ways.take(item.nbytes if beside is not None else 0, op="loss of each element")
    ways.use(*reduction_scratch("sum", item, result, tuple(range(item.dim())), ways.card), op="loss scratch")
    ways.give(held)


@rule("_ctc_loss_backward")
def _ctc_loss_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """LossCTC.cu: as many chances from the end as `_ctc_loss` kept from the beginning."""
    held = ways.take(args[6].nbytes, op="ctc_loss chances")
    made(result)
    ways.give(held)


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def _fused_cell(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """RNN.cu: what is kept for backward first."""
    made(result[-1])


# -- what is only asked for when the results are there -----------------------------------------------------------------------


@rule("multinomial")
def _multinomial(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`multinomial_out` (Distributions.cpp): without replacement, or for one sample, weights are divided by random numbers."""
    made(result)
    if not argument(args, kwargs, 2, "replacement", False) or args[1] == 1:
        ways.use(args[0].nbytes, op="multinomial")


@rule("linalg_solve_triangular")
def _solve_triangular(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`triangular_solve_kernel` (BatchLinearAlgebra.cpp): a few large systems one by one, else through addresses of all."""
    made(result)
    triangle, op = args[0], "triangular systems"
    batches, size = math.prod(result.shape[:-2]), math.prod(triangle.shape[-2:]) * triangle.element_size()
    held = ways.take(batches * size if triangle.shape[:-2] != result.shape[:-2] else 0, op=op)
    if batches > 8 or triangle.shape[-1] < 64:
        held += ways.take(8 * batches, 8 * batches, op=op)
    ways.cublas()
    ways.give(held)


@rule("masked_scatter", "masked_scatter_")
def _masked_scatter(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`launch_masked_scatter_kernel` (IndexKernel.cu): for each element, how many were set before it."""
    made(result)
    ways.use(8 * args[0].numel(), op="masked_scatter prefix sums")


@rule("_grouped_mm")
def _grouped_mm(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`_grouped_mm_cuda` (GroupedBlas.cpp): bfloat16 in one kernel on Hopper and Blackwell, else group by group."""
    made(result)
    if args[0].dtype is not torch.bfloat16 or ways.card.capability not in ((9, 0), (10, 0)):
        ways.cublas()


@rule("_foreach_norm")
def _foreach_norm(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """ForeachReduceOp.cu: partial results for each chunk of 65536 elements: as many for each tensor as for the largest.

    Since 2.15 (pull request 190549) no more than there are chunks, and before them where those of each tensor begin.
    """
    chunks = [math.ceil(t.numel() / 65536) for t in args[0] if t.numel() or not since(2, 15)]
    sizes = (8 * (len(chunks) + 1), 4 * sum(chunks)) if since(2, 15) else (4 * len(chunks) * max(chunks, default=0),)
    held = ways.take(*sizes, op="_foreach_norm partial sums")
    made(result)
    ways.give(held)

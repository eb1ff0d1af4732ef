"""Results of frequent operators whose shapes torch works out in Python, slowly: the same shapes, at once, and as CUDA has them.

Their Python definitions take one to three milliseconds each, most of the time of an estimate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipyvram.simulated.arguments import HALVES, argument


def like_first(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Elementwise on the first argument."""
    return torch.empty_like(args[0])


def like_gradient(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Backward of an elementwise operator that TensorIterator is given the gradient first for: its order wins."""
    gradient, source = _tensors(args)
    return torch.add(gradient, source) if gradient.shape == source.shape else NotImplemented


def like_input(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The same of those that look at the input before the gradient."""
    gradient, source = _tensors(args)
    return torch.add(source, gradient) if gradient.shape == source.shape else NotImplemented


def like_second(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Backward of a loss, in plain order."""
    return torch.empty(args[1].shape, dtype=args[1].dtype, device="meta")


def _tensors(args: Any) -> tuple[Tensor, Tensor]:
    """The first two: a gradient and what it is of."""
    first, second = [a for a in args if isinstance(a, Tensor)][:2]
    return first, second


def in_place(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Writes into its arguments and makes nothing, where all of them are on the card."""
    lists = [a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
    return None if all(t.device.type == "meta" for a in lists for t in a) else NotImplemented


def statistics(source: Tensor, shape: Any) -> Tensor:
    """Means and deviations are kept in float32 for half precision (`acc_type`)."""
    half = source.dtype in HALVES
    return torch.empty(shape, dtype=torch.float32 if half else source.dtype, device="meta")


def channels_last_of(*tensors: Tensor) -> torch.memory_format | None:
    """`cudnn_conv_suggest_memory_format` (ConvUtils.h): one operand in channels-last order is enough, if none is of doubles."""
    if any(tensor.dtype is torch.float64 for tensor in tensors):
        return None
    return next(filter(None, map(suggested, tensors)), None)


def suggested(tensor: Tensor) -> torch.memory_format | None:
    """The channels-last order that `suggest_memory_format` reads from strides (c10/core/MemoryFormat.h), None for any other.

    It takes no contiguous tensor, and of one channel it tells the orders apart, as no question about contiguity does.
    """
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    sizes, strides = tensor.shape, tensor.stride()
    if order is None or strides[1] == 0:
        return None
    least = 0
    for d in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return None
        least = strides[d] * sizes[d]
    return order


def _ordered(tensor: Tensor | None, order: torch.memory_format) -> Tensor | None:
    return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta", memory_format=order)


def convolution(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`convolution`: torch's own shape, in cuDNN's order."""
    order = channels_last_of(args[0], args[1])
    return NotImplemented if order is None else _ordered(func(*args, **kwargs), order)


def convolution_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`convolution_backward`: gradients of input, weight and bias."""
    order = channels_last_of(args[1], args[2])
    if order is None:
        return NotImplemented
    of_source, of_weight, of_bias = func(*args, **kwargs)
    return _ordered(of_source, order), _ordered(of_weight, order), of_bias


def layer_norm(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`native_layer_norm`: output, mean and inverse deviation of each row."""
    source, inner = args[0], len(args[1])
    rows = (*source.shape[: source.dim() - inner], *([1] * inner))
    out = torch.empty(source.shape, dtype=source.dtype, device="meta")
    return out, statistics(source, rows), statistics(source, rows)


def layer_norm_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`native_layer_norm_backward`: gradients of input, weight and bias, as far as they are wanted."""
    source, weight, bias, wanted = args[1], args[5], args[6], args[7]
    return (
        torch.empty(source.shape, dtype=source.dtype, device="meta") if wanted[0] else None,
        torch.empty_like(weight) if wanted[1] and weight is not None else None,
        torch.empty_like(bias) if wanted[2] and bias is not None else None,
    )


def reduced_loss(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A loss whose memory was made for each element and then called a number: it stays as large (`maybe_get_output().resize_({})`
    in BinaryOps.cpp for `mse_loss` and `smooth_l1_loss`, `loss.resize_as_` in Loss.cu for `binary_cross_entropy`)."""
    loss = func(*args, **kwargs)
    if loss.dim():
        return loss
    shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
    return torch.empty(shape, dtype=loss.dtype, device="meta").resize_(())


def resized(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A result whose memory was made like the input and then called smaller (`output.resize_` in Im2Col.cu, Col2Im.cu)."""
    result = func(*args, **kwargs)
    if result.numel() >= args[0].numel():
        return result
    return torch.empty(args[0].shape, dtype=result.dtype, device="meta").resize_(result.shape)


def fused_rms_norm(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_fused_rms_norm`: output and inverse deviation of each row."""
    source, inner = args[0], len(args[1])
    rows = (*source.shape[: source.dim() - inner], *([1] * inner))
    return torch.empty(source.shape, dtype=source.dtype, device="meta"), statistics(source, rows)


def fused_rms_norm_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_fused_rms_norm_backward`: gradients of input and weight, as far as they are wanted."""
    source, weight, wanted = args[1], args[4], args[5]
    of_source = torch.empty(source.shape, dtype=source.dtype, device="meta") if wanted[0] else None
    return of_source, torch.empty_like(weight) if wanted[1] and weight is not None else None


def weight_norm_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_weight_norm_interface_backward` (WeightNorm.cu), which torch 2.6 has no shapes for: gradients of direction and length."""
    return torch.empty_like(args[1]), torch.empty_like(args[2])


def ctc_loss(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_ctc_loss` (LossCTC.cu): a loss for each text and the logarithms of its paths' chances."""
    logs, targets, lengths = args[0], args[1], args[3]
    on_card = isinstance(lengths, Tensor) and lengths.device.type == "meta"
    most = targets.shape[-1] if on_card else max((int(n) for n in lengths), default=0)
    steps, batch = logs.shape[:2]
    return logs.new_empty(batch), logs.new_empty((batch, steps, 2 * most + 1))


def ctc_loss_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`_ctc_loss_backward`: the gradient; `within` has what it works in."""
    return torch.empty(args[1].shape, dtype=args[1].dtype, device="meta")


def grouped_mm(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """`_grouped_mm` (GroupedBlas.cpp `create_grouped_gemm_output_tensor`): rows that begin at multiples of 16 bytes. CUDA multiplies
    float32 as well, which torch's own shapes refuse."""
    a, b = args[:2]
    offsets: Any = argument(args, kwargs, 2, "offs")
    rows, columns = a.shape[-2], b.shape[-1]
    groups = () if a.dim() != b.dim() else (offsets.shape[0],) if a.dim() == 2 else (a.shape[0],)
    dtype = argument(args, kwargs, 4, "out_dtype") or a.dtype
    step = 16 // dtype.itemsize
    wide = -(-columns // step) * step
    return torch.empty_strided(
        (*groups, rows, columns), (rows * wide, wide, 1)[-2 - len(groups) :], dtype=dtype, device="meta"
    )


TABLE = {
    "_grouped_mm.default": grouped_mm,
    "_fused_rms_norm.default": fused_rms_norm,
    "_fused_rms_norm_backward.default": fused_rms_norm_backward,
    "mse_loss.default": reduced_loss,
    "smooth_l1_loss.default": reduced_loss,
    "binary_cross_entropy.default": reduced_loss,
    "multi_margin_loss_backward.default": like_second,
    "multilabel_margin_loss_backward.default": like_second,
    "_weight_norm_interface_backward.default": weight_norm_backward,
    "im2col.default": resized,
    "col2im.default": resized,
    "native_layer_norm.default": layer_norm,
    "native_layer_norm_backward.default": layer_norm_backward,
    "convolution.default": convolution,
    "convolution_backward.default": convolution_backward,
    "gelu.default": like_first,
    "hardswish.default": like_first,
    "hardsigmoid.default": like_first,
    "hardtanh.default": like_first,
    "hardtanh_backward.default": like_gradient,
    "elu_backward.default": like_gradient,
    "softplus_backward.default": like_gradient,
    "threshold_backward.default": like_input,
    "gelu_backward.default": like_gradient,
    "hardswish_backward.default": like_gradient,
    "hardsigmoid_backward.default": like_gradient,
    "silu_backward.default": like_gradient,
    "leaky_relu_backward.default": like_input,
}
IN_PLACE = tuple(
    name for name in dir(torch._C._VariableFunctions) if name.startswith("_foreach_") and name.endswith("_")
)

"""Batch and group normalisation on the card: which kernels take it, what they make, and in which order; adds its rules to `within`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ipyvram.devices import since
from ipyvram.simulated.arguments import HALVES, aten
from ipyvram.simulated.reduction import last_power, reduction_scratch
from ipyvram.simulated.shapes import statistics, suggested
from ipyvram.simulated.ways import Ways
from ipyvram.simulated.within import Made, copied, rule

_STRIDED = (torch.channels_last, torch.channels_last_3d)


def batch_norm(
    source: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool,
) -> Tensor:  # fmt: skip
    """`batch_norm` (Normalization.cpp): cuDNN is given the input in order, and that is what backward keeps."""
    for name, tensor in (("running_mean", mean), ("running_var", variance), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.numel() != source.shape[1]:  # `check_dims_match_num_input_features`
            raise RuntimeError(f"{name} should contain {source.shape[1]} elements not {tensor.numel()}")
    if cudnn_enabled and _by_cudnn(source, weight, bias, training):
        source = source.contiguous(memory_format=suggested(source) or torch.contiguous_format)
    result: Tensor = aten.native_batch_norm(source, weight, bias, mean, variance, training, momentum, eps)[0]
    return result


def _by_cudnn(source: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool) -> bool:
    """`_select_batch_norm_backend` (Normalization.cpp)."""
    if weight is None or bias is None or source.dim() < 3 or torch.bfloat16 in (source.dtype, weight.dtype):
        return False
    return torch.backends.cudnn.enabled and source.shape[0] <= (880_801 if training else 65_535)


def _trained_by_cudnn(source: Tensor, weight: Tensor | None, training: bool) -> bool:
    """Whether a backward is cuDNN's: it has no bias to ask about, which is there where the weight is."""
    return training and _by_cudnn(source, weight, weight, training)


def forward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`native_batch_norm`: output, saved mean, saved inverse deviation; cuDNN saves nothing when not training."""
    source, weight, bias, training = args[0], args[1], args[2], args[5]
    channels = source.shape[1] if training or not _by_cudnn(source, weight, bias, training) else 0
    return torch.empty_like(source), statistics(source, channels), statistics(source, channels)


def backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`native_batch_norm_backward`: gradients of input, weight and bias, as far as they are wanted.

    cuDNN makes all, and torch's kernels for channels last (`batch_norm_backward_reduce_cuda_channels_last_template`) the last two.
    """
    gradient, source, weight, training, wanted = args[0], args[1], args[2], args[7], args[-1]
    if _trained_by_cudnn(source, weight, training):
        wanted = (True, True, True)
    elif weight is not None and any(wanted[1:]) and _channels_last(source) and _channels_last(gradient):
        wanted = (wanted[0], True, True)
    order = torch.contiguous_format if _in_one_kernel(source, weight, training, wanted) else torch.preserve_format
    like = weight if weight is not None else statistics(source, source.shape[1])
    of_weight, of_bias = (torch.empty_like(like) if want else None for want in wanted[1:])
    return torch.empty_like(source, memory_format=order) if wanted[0] else None, of_weight, of_bias


def _channels_last(source: Tensor) -> bool:
    """`batch_norm_use_channels_last_kernels` (Normalization.cu)."""
    if source.is_contiguous():
        return source.stride(1) == 1
    return any(source.is_contiguous(memory_format=order) for order in _STRIDED)


def _in_one_kernel(source: Tensor, weight: Tensor | None, training: bool, wanted: Any) -> bool:
    """Whether torch's own kernel makes all gradients at once (`batch_norm_backward_cuda`), in contiguous order."""
    return bool(wanted[0]) and not _trained_by_cudnn(source, weight, training) and not _channels_last(source)


def _one_row(tensor: Tensor) -> bool:
    """Whether all places of a channel are one dimension: else ``reshape`` copies."""
    try:
        tensor.view(*tensor.shape[:2], -1)
    except RuntimeError:
        return False
    return True


def _staging(source: Tensor, values: int) -> tuple[int, ...]:
    """Bytes in which blocks meet to sum each channel: `flexible_launch_configs` of Normalization.cuh."""
    channels = source.shape[1]
    rows = source.numel() // max(1, channels)
    width = min(last_power(channels), 32)
    height = min(last_power(-(-rows // 16)), 512 // width)
    if width * height != 512:
        width = min(last_power(channels), 512 // height)
    blocks = min(-(-rows // (height * 16)), 128)
    return (4 * values * channels * blocks, 4 * -(-channels // width)) if blocks >= 8 else ()


@rule("native_batch_norm")
def _forward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Normalization.cu `batch_norm_cuda_out`: channels last in blocks that meet; any other order as a mean and a variance."""
    source, weight, bias, training = args[0], args[1], args[2], args[5]
    made(*result)
    if not training or _by_cudnn(source, weight, bias, training):
        return
    if _channels_last(source):
        ways.use(*_staging(source, 4), op="batch_norm staging")
    elif not source.is_contiguous():
        narrow = source.dtype is torch.bfloat16  # `make_reduction` knows only half precision
        held = ways.take(2 * source.nbytes if narrow else 0, op="batch_norm input in float32")
        places = tuple(d for d in range(source.dim()) if d != 1)
        ways.use(*reduction_scratch("var_mean", source, result[1], places, ways.card), op="batch_norm scratch")
        ways.give(held)


@rule("native_batch_norm_backward")
def _backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """cuDNN wants the gradient in the input's order; torch's own kernels for channels last make two sums first."""
    gradient, source, weight, training = args[0], args[1], args[2], args[7]
    if _trained_by_cudnn(source, weight, training):
        held = ways.take(copied(gradient, suggested(source) or torch.contiguous_format), op="batch_norm copy")
        made(*result)
        ways.give(held)
    elif not _channels_last(source):
        held = ways.take(*(t.nbytes for t in (source, gradient) if not _one_row(t)), op="batch_norm copy")
        made(*result)
        ways.give(held)
    else:
        sums = statistics(source, source.shape[1])
        held = ways.take(sums.nbytes, sums.nbytes, op="batch_norm sums")
        made(*result[1:])
        if _channels_last(gradient):
            ways.use(*_staging(source, 2), op="batch_norm staging")
        made(result[0])
        ways.give(held)


def grouped(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`native_group_norm`: the output in the order of `_grouped_order`, means, inverse deviations."""
    return _ordered(func(*args, **kwargs), args[0])


def grouped_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`native_group_norm_backward`: the gradients of input, in that order, too, of weight and bias."""
    return _ordered(func(*args, **kwargs), args[1])


def _ordered(results: tuple[Any, ...], source: Tensor) -> tuple[Any, ...]:
    first, *others = results
    if first is not None:
        order = _grouped_order(source)
        first = torch.empty(first.shape, dtype=first.dtype, device="meta", memory_format=order)
    return first, *others


def _grouped_order(source: Tensor) -> torch.memory_format:
    """On CUDA group norms work in plain order, and since 2.15 in the input's where its channels come last (pull request 191945)."""
    return (suggested(source) if since(2, 15) else None) or torch.contiguous_format


def _channels_within(source: Tensor, order: torch.memory_format) -> bool:
    """Whether the kernels for channels that come last take it: those of one pixel, or of one channel, lie in both orders."""
    either = since(2, 15) and source.dim() in (4, 5) and 1 in (source.shape[1], source.shape[2:].numel())
    return either or order != torch.contiguous_format


@rule("native_group_norm")
def _group_norm(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """group_norm_kernel.cu `GroupNormKernelImplInternal`: statistics in float32, a scale and a shift for each image and channel."""
    made(*result)
    source, (n, channels, pixels) = args[0], args[3:6]
    order = _grouped_order(source)
    held = ways.take(copied(source, order), op="group_norm copy")
    half = source.dtype in HALVES
    item = 4 if half else source.element_size()
    rows = result[1].numel() * item if half else 0
    held += ways.take(rows, rows, op="group_norm statistics")
    if _channels_within(source, order) or (pixels > 1 and (args[1] is not None or args[2] is not None)):
        ways.use(n * channels * item, n * channels * item, op="group_norm scale")
    ways.give(held)


@rule("native_group_norm_backward")
def _group_norm_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`GroupNormBackwardKernelImplInternal`: sums for each image and channel, then coefficients of the input's gradient."""
    gradient, source, _, _, weight, n, channels, pixels, groups = args[:9]
    order = _grouped_order(source)
    held = ways.take(copied(source, order), copied(gradient, order), op="group_norm copy")
    made(*result)
    item = 4 if source.dtype in HALVES else source.element_size()
    a, b = n * channels * item, n * groups * item
    last = _channels_within(source, order)
    sums = (a, a) if last or pixels > 1 else ()
    of_input = (b, b, a if weight is not None and pixels > 1 and not last else 0) if result[0] is not None else ()
    ways.use(*sums, *of_input, op="group_norm sums")
    ways.give(held)

"""In which order a convolution on the card asks for its results and for what it works in; adds its rules to `within`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.simulated.reduction import reduction_scratch
from ipyvram.simulated.shapes import channels_last_of, suggested
from ipyvram.simulated.ways import Ways
from ipyvram.simulated.within import Made, copied, rule


@rule("convolution")
def _convolution(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """ConvShared.cpp `cudnn_convolution_forward`: the operands in one memory order, the weight's copy after the output."""
    source, weight = args[:2]
    ways.convolution_bound = max(ways.convolution_bound, _lowered_bytes(source, weight, result))
    if _is_by_products(ways.card, (None, *args)):
        _by_products(ways, args, result, made)
        return
    order = channels_last_of(source, weight) or torch.contiguous_format
    held = ways.take(copied(source, order), op="convolution copy")
    made(result)
    held += ways.take(copied(weight, order), op="convolution copy")
    ways.give(held)


@rule("convolution_backward")
def _convolution_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Convolution.cpp `convolution_backward`: cuDNN's two gradients, and then the bias's, as a sum of the gradient as it came."""
    gradient, source, weight = args[:3]
    of_bias = result[2]
    ways.convolution_bound = max(ways.convolution_bound, _lowered_bytes(source, weight, gradient))
    if _is_by_products(ways.card, args):
        _by_products_backward(ways, args, result, made)
        return
    ordered = []
    if source.dim() == 3:  # a sequence is in plain order all the while
        ordered = ways.take(copied(source), op="convolution copy")
        source = torch.empty(source.shape, dtype=source.dtype, device="meta")
        args = (gradient, source, *args[2:])
    order = channels_last_of(source, weight) or torch.contiguous_format
    if is_native_depthwise(args, order):
        _depthwise_backward(ways, args, result, made)
    else:
        _cudnn_backward(ways, args, result, order, made)
    if of_bias is not None:
        made(of_bias)
        dims = tuple(d for d in range(gradient.dim()) if d != 1)
        ways.use(*reduction_scratch("sum", gradient, of_bias, dims, ways.card), op="convolution bias scratch")
    ways.give(ordered)


def _cudnn_backward(ways: Ways, args: Any, result: Any, order: torch.memory_format, made: Made) -> None:
    """ConvShared.cpp `cudnn_convolution_backward` and `cudnn_convolution_transpose_backward`: the first copies a gradient in an
    order that has no name for each of the two that it makes."""
    gradient, source, weight = args[:3]
    held = ways.take(copied(source, order), op="convolution copy")
    each = copied(gradient, order)
    named = suggested(_as_image(gradient)) or torch.contiguous_format
    if args[7] or named is not order:  # ``contiguous()`` of a transposed one, ``to`` of any other
        held += ways.take(each, op="convolution copy")
        each = 0
    for is_source, out in ((True, result[0]), (False, result[1])):
        if out is not None:
            ordered = ways.take(each, op="convolution copy")
            made(out)
            if is_source and order is not torch.contiguous_format:
                ways.use(copied(weight, order), op="convolution copy")
            ways.give(ordered)
    ways.give(held)


def _depthwise_backward(ways: Ways, args: Any, result: Any, made: Made) -> None:
    """DepthwiseConv2d.cu `conv_depthwise2d_backward`: the weight's first, and only that wants the input."""
    held = ways.take(copied(args[0]), op="convolution copy")
    of_input = ways.take(copied(args[1]) if result[1] is not None else 0, op="convolution copy")
    made(result[1])
    ways.give(of_input)
    made(result[0])
    ways.give(held)


def _lowered_bytes(source: Tensor, weight: Tensor, out: Tensor) -> int:
    """Bytes of the input unfolded for a matrix product: more than cuDNN's default choices are known to need."""
    kernel = math.prod(weight.shape[2:])
    if kernel == 1:
        return 0
    return out.shape[0] * math.prod(out.shape[2:]) * weight.shape[1] * kernel * source.element_size()


def _is_by_products(card: Card, args: Any) -> bool:
    """cuDNN has bfloat16 from compute capability 8 on (`supportsBFloat16ConvolutionWithCuDNNv8`). Below that a convolution is a
    matrix product for each sample (ConvolutionMM2d.cu), of one group after the other; those of one channel a group are not."""
    source = args[1]
    narrow = source.dtype is torch.bfloat16 and card.capability < (8, 0)
    return narrow and not is_native_depthwise(args, torch.contiguous_format)


def _columns(weight: Tensor, places: Tensor) -> int:
    """Bytes of one sample unfolded: all that a filter sees, at each place (`slow_conv2d_forward`, ConvolutionMM2d.cu)."""
    return math.prod(weight.shape[1:]) * math.prod(places.shape[2:]) * weight.element_size()


def _by_products(ways: Ways, args: Any, result: Any, made: Made) -> None:
    """`slow_conv2d_forward`, `slow_conv_dilated2d`: one sample after the other through the same columns."""
    source, weight, _, stride, padding, _, transposed = args[:7]
    held = ways.take(copied(source), op="convolution copy")
    made(result)
    unfolded = transposed or any(n != 1 for n in (*weight.shape[2:], *stride)) or any(padding)
    held += ways.take(_columns(weight, source if transposed else result) if unfolded else 0, op="convolution columns")
    ways.cublas()
    ways.give(held)


def _by_products_backward(ways: Ways, args: Any, result: Any, made: Made) -> None:
    """`slow_conv2d_backward`, which makes the weight's gradient for its product; `slow_conv_dilated2d_backward` has made all before."""
    gradient, source, weight = args[:3]
    of_source, of_weight, of_bias = result
    held = ways.take(copied(gradient), op="convolution copy")
    made(of_source)
    if not args[7] and (source.dim() > 4 or any(n != 1 for n in args[6])):
        made(of_weight)
    held += ways.take(_columns(weight, source if args[7] else gradient), op="convolution columns")
    ways.cublas()
    made(of_bias, of_weight)
    if of_weight is not None:
        ways.cublas()
    ways.give(held)


def _as_image(tensor: Tensor) -> Tensor:
    """`view4d` (Convolution.cpp): a sequence is an image of one row."""
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


def is_native_depthwise(args: Any, order: torch.memory_format) -> bool:
    """`ConvParams::use_cudnn_depthwise` (Convolution.cpp), the other way round: torch's own kernel for one channel a group."""
    _, source, weight, _, stride, _, dilation, transposed, _, groups = args[:10]
    if transposed or source.dim() not in (3, 4) or groups != source.shape[1] or groups == 1:
        return False
    if weight.shape[0] % source.shape[1] or order is not torch.contiguous_format:
        return False
    if source.dtype is not torch.float16 or source.shape[1] < 32 or math.prod(dilation) != 1:
        return True
    image, (height, width), step = _as_image(source), _as_image(weight).shape[2:], stride[-1]
    if image.shape[2] == 1:
        if step == 1:
            return False
    elif len(set(stride)) > 1:
        return True
    if height != width or width not in (1, 3, 5) or image.shape[3] < 7:
        return True
    if step == 1:
        return False
    return step != 2 or not _pays(image, width)


def _pays(source: Tensor, filter_width: int) -> bool:
    """`check_cudnn_depthwise_workload_with_filter`: cuDNN for a stride of two."""
    batch, channels, _, width = source.shape
    if batch == 1:
        return filter_width > 1 or width <= 28
    if filter_width == 1:
        return batch <= 16 and channels >= 128 and width <= 7
    return channels >= 512 or (channels >= 256 and width >= 28)

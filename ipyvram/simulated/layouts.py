"""Kernels that bring what they are given into an order first; adds its rules to `within`.

Each name stands beside the code of PyTorch that says ``contiguous()``: in plain order, or in the one that a tensor has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ipyvram.simulated.shapes import suggested
from ipyvram.simulated.ways import Ways
from ipyvram.simulated.within import Made, copied, rule

Order = Callable[[Any], torch.memory_format]


def _plain(args: Any) -> torch.memory_format:
    return torch.contiguous_format


def _of(position: int) -> Order:
    """``suggest_memory_format()`` of an argument."""
    return lambda args: suggested(args[position]) or torch.contiguous_format


def _channels_last_only(args: Any) -> torch.memory_format:
    """Other orders are read as they lie."""
    return suggested(args[0]) or torch.preserve_format


def _plain_unless(position: int) -> Order:
    """In plain order, and as they lie where an argument is in channels-last order."""
    return lambda args: torch.preserve_format if suggested(args[position]) else torch.contiguous_format


def _register(order: Order, *names: str, operands: tuple[int, ...] = (0,), first: bool = False) -> None:
    """The operands at these positions are copied into an order, before the results are made (``first``) or after."""

    @rule(*names)
    def _copies(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
        wanted = order(args)
        if not first:
            made(result)
        sizes = () if wanted is torch.preserve_format else [copied(args[i], wanted) for i in operands]
        held = ways.take(*sizes, op="copy in order")
        if first:
            made(result)
        ways.give(held)


_register(_of(0), "avg_pool2d", "max_pool2d_with_indices")  # AveragePool2d.cu, DilatedMaxPool2d.cu
_register(_of(1), "avg_pool2d_backward", "max_pool2d_with_indices_backward", operands=(1, 0))
_register(_plain_unless(0), "_adaptive_avg_pool2d", first=True)  # AdaptiveAveragePooling.cu
_register(_plain_unless(1), "_adaptive_avg_pool2d_backward")
_register(_plain, "avg_pool3d")  # AveragePool3d.cu
_register(_plain, "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")  # ReflectionPad.cu
_register(_plain, "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward")
_register(_channels_last_only, "upsample_bilinear2d")  # UpSampleBilinear2d.cu
_register(_of(0), "upsample_bilinear2d_backward")
_register(_plain, "_softmax", "_log_softmax")  # SoftMax.cu `host_softmax`
_register(_plain, "_log_softmax_backward_data", operands=(0, 1))
_register(_plain, "logcumsumexp")  # ScanKernels.cpp
_register(_plain, "_fused_rms_norm", first=True)  # layer_norm_kernel.cu `layer_norm_cuda`


@rule("cumsum", "cumprod")
def _cumulate(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """ReduceOps.cpp `impl_func_cum_ops`: the input in the result's type, as under autocast; ScanKernels.cpp: in plain order."""
    made(result)
    held = ways.take(result.nbytes if args[0].dtype is not result.dtype else 0, op="cast")
    held += ways.take(result.nbytes if copied(args[0]) else 0, op="copy in order")
    ways.give(held)


@rule("_fused_rms_norm_backward")
def _rms_norm_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """layer_norm_kernel.cu `rms_norm_backward_cuda`: the gradient last."""
    held = ways.take(copied(args[1]), op="copy in order")
    made(result)
    held += ways.take(copied(args[0]), op="copy in order")
    ways.give(held)


@rule("adaptive_max_pool2d")
def _adaptive_max_pool(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """AdaptiveMaxPooling2d.cu: input, output and indices in plain order."""
    made(result)
    ways.use(*map(copied, (*result, args[0])), op="copy in order")


@rule("adaptive_max_pool2d_backward")
def _adaptive_max_pool_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    made(result)
    ways.use(*map(copied, (args[0], args[2], result)), op="copy in order")


@rule("im2col", "col2im")
def _unfold(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Im2Col.cu, Col2Im.cu: a result as large as the input, which is made larger where it does not do; see `shapes.resized`."""
    grows = result.nbytes > args[0].nbytes
    held = ways.take(args[0].nbytes if grows else 0, op="result before it grows")
    held += ways.take(copied(args[0]), op="copy in order")
    made(result)
    ways.give(held)


@rule("_cdist_backward")
def _cdist_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """DistanceKernel.cu `cdist_backward_kernel_impl`: the part of every pair, summed afterwards."""
    made(result)
    pairs = args[4].numel() * args[1].shape[-1] * args[1].element_size()
    ways.use(pairs, op="cdist pairs")

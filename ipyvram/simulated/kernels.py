"""Composite operators that take another way on CUDA than elsewhere, as CUDA takes it, for tensors on ``meta``.

Which way CUDA takes is decided inside PyTorch by `is_cuda()`, which a tensor on ``meta`` does not answer; so while
`CudaKernels` is entered, ``meta`` has kernels of its own for these operators.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.patches import Patches
from ipyvram.simulated import attention, attention_choice, encoders, normalization, recurrent
from ipyvram.simulated.arguments import HALVES, aten


class CudaKernels:
    """Context: dropout, attention, softmax and recurrent layers on ``meta`` run as they do on the card.

    Attributes
    ----------
    by_operator : dict
        Operator → its kernel, for inference mode, where no tensor carries autograd's key.
    """

    def __init__(self, card: Card, note: Callable[[str], None]) -> None:
        self._card, self._note = card, note
        self._patches = Patches()
        self.by_operator: dict[Any, Callable[..., Any]] = {}

    def __enter__(self) -> CudaKernels:
        library = torch.library.Library("aten", "IMPL")
        self._patches.later(library._destroy)
        kernels: dict[str, Callable[..., Any]] = {
            "dropout": _dropout,
            "batch_norm": normalization.batch_norm,
            "scaled_dot_product_attention": self._attention,
            "softmax.int": _softmax(aten._softmax.default),
            "log_softmax.int": _softmax(aten._log_softmax.default),
            "linear": _linear,
            "mish_backward": _mish_backward,
            "one_hot": _one_hot,
            "_transformer_encoder_layer_fwd": encoders.layer,
            **recurrent.kernels(),
        }
        if hasattr(aten, "_fused_rms_norm"):
            kernels["rms_norm"] = _rms_norm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kernel in kernels.items():
                library.impl(name, kernel, "AutogradMeta")
            if "rms_norm" in kernels and library.m is not None:  # an operator of its own where its device has a kernel
                library.m.impl("_fused_rms_norm", "Meta", _fused_rms_norm, False)  # `impl` itself would refuse
            for name, kernel in kernels.items():
                packet, _, overload = name.partition(".")
                self.by_operator[getattr(getattr(aten, packet), overload or "default")] = kernel
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.undo()

    # -- attention ---------------------------------------------------------------------------------------------------

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """`scaled_dot_product_attention` (attention.cpp): the first backend of `_fused_sdp_choice` that takes it."""
        with torch._C.DisableTorchFunction():
            chosen = attention_choice.choose(self._card, query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
            attn_mask = _additive(attn_mask, query)
            if chosen == "math":
                return _by_products(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            if query.dim() == 3:
                q, k, v = (t.unsqueeze(0) for t in (query, key, value))
                mask = attn_mask if attn_mask is None or attn_mask.dim() < 3 else attn_mask.unsqueeze(0)
                return self._fused(chosen, q, k, v, mask, dropout_p, is_causal, scale).squeeze(0)
            return self._fused(chosen, query, key, value, attn_mask, dropout_p, is_causal, scale)

    def _fused(
        self,
        chosen: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        if chosen == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale)
        wants = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        if chosen == "cudnn":
            by_cudnn: Tensor = aten._scaled_dot_product_cudnn_attention(
                query, key, value, mask, wants, dropout_p, is_causal, scale=scale
            )[0]
            return by_cudnn
        if mask is not None:
            mask = attention.padded_mask(mask, query, key)
        efficient: Tensor = aten._scaled_dot_product_efficient_attention(
            query,
            key,
            value,
            mask,
            wants or (mask is not None and mask.requires_grad),
            dropout_p,
            is_causal,
            scale=scale,
        )[0]
        return efficient


def _flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    """Head widths that are no multiple of 8 are padded first (`pad_last_dim`)."""
    width = query.shape[-1]
    scale = width**-0.5 if scale is None else scale
    if width % 8:
        query, key, value = (torch.nn.functional.pad(t, [0, 8 - width % 8]) for t in (query, key, value))
    out: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[
        0
    ]
    return out[..., :width] if width % 8 else out


def _additive(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """`convert_boolean_attn_mask` (attention.cpp)."""
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.scalar_tensor(-math.inf, dtype=query.dtype, device=mask.device))


def _by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    grouped: bool,
) -> Tensor:
    """`_scaled_dot_product_attention_math` (attention.cpp): half precision in float32; the mask is added in place, which under a
    dispatch mode it would not be."""
    dtype, factor = query.dtype, math.sqrt(query.shape[-1] ** -0.5 if scale is None else abs(scale))
    if dtype in HALVES and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        query, key, value = query.float(), key.float(), value.float()
    scaled = query * (-factor if scale is not None and scale < 0 else factor)
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = _additive(mask, query)
    keys, values = key, value  # what these were stays until the end
    if grouped:
        keys, values = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    weights = torch.matmul(scaled, keys.transpose(-2, -1) * factor)
    if mask is not None:
        weights.add_(mask)
    weights = aten._safe_softmax(weights, -1)
    if dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, True)
    kept = weights.to(dtype)  # the second result, which nobody takes
    result: Tensor = torch.matmul(weights, values).to(dtype)
    del kept
    return result


def _dropout(source: Tensor, p: float, train: bool) -> Tensor:
    """`dropout` (Dropout.cpp) on CUDA: a fused kernel that keeps a mask of one byte for each element."""
    if p == 0 or not train or not source.numel():
        return source
    if p == 1:
        return source.mul(torch.zeros((), dtype=source.dtype, device=source.device))
    result: Tensor = aten.native_dropout(source, p, train)[0]
    return result


def _softmax(operator: Any) -> Callable[..., Tensor]:
    """`softmax` (SoftMax.cpp): from half to float32 in one kernel on CUDA."""

    def kernel(source: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        fused = dtype is torch.float32 and source.dtype is torch.float16
        result: Tensor = operator(source if fused or dtype is None else source.to(dtype), dim, fused)
        return result

    return kernel


def _mish_backward(gradient: Tensor, source: Tensor) -> Tensor:
    """`mish_backward` (Activation.cpp): one kernel on CUDA, many operators elsewhere."""
    return torch.empty_like(source if source.is_contiguous() else gradient)


def _one_hot(source: Tensor, num_classes: int = -1) -> Tensor:
    """`one_hot` (Onehot.cpp): ones written into zeros, and no mask."""
    if source.dtype is not torch.int64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")
    classes = int(source.max()) + 1 if num_classes == -1 else num_classes
    return torch.zeros((*source.shape, classes), dtype=torch.int64, device=source.device).scatter_(
        -1, source.unsqueeze(-1), 1
    )


def _linear(source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` (Linear.cpp): where it is no single `addmm`, the bias is added in place; under a dispatch mode it would not be."""
    if bias is None:
        return _product(source, weight)
    if source.dim() == 2:
        return torch.addmm(bias, source, weight.t())
    if source.dim() and bias.dim() == 1 and source.is_contiguous():
        flat = torch.addmm(bias, source.reshape(-1, source.shape[-1]), weight.t())
        return flat.view(*source.shape[:-1], flat.shape[-1])
    return _product(source, weight).add_(bias)


def _product(source: Tensor, weight: Tensor) -> Tensor:
    """`matmul` (LinearAlgebra.cpp `should_fold`): one matrix of all rows where the weight wants a gradient, which its transpose
    does not say in inference mode."""
    if source.dim() < 3 or not (weight.requires_grad and torch.is_inference_mode_enabled()):
        return torch.matmul(source, weight.t())
    flat = source.reshape(-1, source.shape[-1]).mm(weight.t())
    return flat.view(*source.shape[:-1], flat.shape[-1])


def _fused_rms_norm(source: Tensor, shape: Any, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    rows = (*source.shape[: source.dim() - len(shape)], *([1] * len(shape)))
    return torch.empty_like(source), source.new_empty(rows)


def _rms_norm(source: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """`rms_norm` (layer_norm.cpp): one kernel since 2.9."""
    result: Tensor = aten._fused_rms_norm(source, shape, weight, eps)[0]
    return result

"""Composite operators that take another way on CUDA than elsewhere, as CUDA takes it, for tensors on ``meta``.

Which way CUDA takes is decided inside PyTorch by `is_cuda()`, which a tensor on ``meta`` does not answer; so while
`CudaKernels` is entered, ``meta`` has kernels of its own for these operators.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.simulated import recurrent
from ipyvram.simulated.patches import Patches

aten = torch.ops.aten


class CudaKernels:
    """Context: dropout, attention, softmax and recurrent layers on ``meta`` run as they do on the card."""

    def __init__(self, card: Card, note: Callable[[str], None]) -> None:
        self._card, self._note = card, note
        self._patches = Patches()

    def __enter__(self) -> CudaKernels:
        library = torch.library.Library("aten", "IMPL")
        self._patches.later(library._destroy)
        kernels = {
            "dropout": _dropout,
            "scaled_dot_product_attention": self._attention,
            "softmax.int": _softmax(aten._softmax.default),
            "log_softmax.int": _softmax(aten._log_softmax.default),
            **recurrent.kernels(),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, kernel in kernels.items():
                library.impl(name, kernel, "AutogradMeta")
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
            chosen = self._choose(query, key, value, attn_mask, enable_gqa)
            if chosen == "math":
                extra = {"enable_gqa": True} if enable_gqa else {}
                result: Tensor = aten._scaled_dot_product_attention_math(
                    query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, **extra
                )[0]
                return result
            if chosen == "flash":
                return _flash(query, key, value, dropout_p, is_causal, scale)
            wants = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
            mask = attn_mask
            if mask is not None and mask.dtype is torch.bool:
                zero = torch.zeros((), dtype=query.dtype, device=query.device)
                mask = torch.where(mask, zero, float("-inf")).to(query.dtype)
            if mask is not None:
                mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            efficient: Tensor = aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, wants, dropout_p, is_causal, scale=scale
            )[0]
            return efficient

    def _choose(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, gqa: bool) -> str:
        """`sdp_utils.cpp`: flash wants sm80, half precision and no mask; the memory-efficient kernel takes more."""
        backends, capability = torch.backends.cuda, self._card.capability
        four = query.dim() == key.dim() == value.dim() == 4 and all(query.shape) and all(key.shape)
        half = query.dtype in (torch.float16, torch.bfloat16)
        width = query.shape[-1]
        if four and half and mask is None and capability >= (8, 0) and width <= 256 and backends.flash_sdp_enabled():
            return "flash"
        dtype = query.dtype is torch.float32 or query.dtype is torch.float16 or (half and capability >= (8, 0))
        aligned = width % (8 if half else 4) == 0 and value.shape[-1] % (8 if half else 4) == 0
        wants_mask_gradient = mask is not None and mask.requires_grad
        if four and dtype and aligned and not gqa and not wants_mask_gradient and backends.mem_efficient_sdp_enabled():
            return "efficient"
        return "math"


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

"""A layer of `nn.TransformerEncoder` in an evaluation: one operator on CUDA, which C++ composes (transformer.cpp, attention.cu).

The module asks whether a function mode listens, as the one of the simulated card does, and then takes the way of a training. It is told
that none does where the operator takes no mask and attention no products; every other way is that of Python here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipyvram.cards import Card
from ipyvram.patches import Patches
from ipyvram.simulated import attention_choice


def install(patches: Patches, card: Card) -> None:
    """`nn.TransformerEncoderLayer` takes the way that it takes on the card."""
    mha, forward, asks = torch.backends.mha, nn.TransformerEncoderLayer.forward, torch.overrides.has_torch_function
    enabled, alone = mha.get_fastpath_enabled(), False
    patches.later(lambda: mha.set_fastpath_enabled(enabled))
    mha.set_fastpath_enabled(False)

    def fast_forward(self: nn.TransformerEncoderLayer, src: Tensor, *masks: Any, **named: Any) -> Tensor:
        nonlocal alone
        masked = any(isinstance(mask, Tensor) for mask in (*masks, *named.values()))
        alone = enabled and not masked and not torch.is_grad_enabled() and _fuses(card, self, src)
        mha.set_fastpath_enabled(alone)
        try:
            return forward(self, src, *masks, **named)
        finally:
            alone = False
            mha.set_fastpath_enabled(False)

    patches.set(torch.overrides, "has_torch_function", lambda arguments: not alone and asks(arguments))
    patches.set(nn.TransformerEncoderLayer, "forward", fast_forward)


def _fuses(card: Card, layer: nn.TransformerEncoderLayer, src: Any) -> bool:
    """Whether attention takes a fused kernel (`native_multi_head_attention_cuda`)."""
    with torch._C.DisableTorchFunction():
        if not isinstance(src, Tensor) or src.device.type != "meta" or src.dim() != 3 or not src.is_contiguous():
            return False
        width = src.shape[-1] // layer.self_attn.num_heads
        query = src.view(*src.shape[:2], -1, width).transpose(1, 2)
        chosen = attention_choice.choose(card, query, query, query, None, 0.0, False, False)
        return width % 8 == 0 and chosen != "math"


def layer(
    src: Tensor, embed_dim: int, num_heads: int, qkv_weight: Tensor, qkv_bias: Tensor, proj_weight: Tensor, proj_bias: Tensor,
    use_gelu: bool, norm_first: bool, eps: float, norm_weight_1: Tensor, norm_bias_1: Tensor, norm_weight_2: Tensor,
    norm_bias_2: Tensor, ffn_weight_1: Tensor, ffn_bias_1: Tensor, ffn_weight_2: Tensor, ffn_bias_2: Tensor, mask: Any = None,
    mask_type: Any = None,
) -> Tensor:  # fmt: skip
    """`transformer_encoder_layer_forward`: what is added is added in place."""

    def first(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def second(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    def attend(x: Tensor) -> Tensor:
        parts = F.linear(x, qkv_weight, qkv_bias).chunk(3, -1)
        q, k, v = (p.view(p.shape[0], -1, num_heads, embed_dim // num_heads).transpose(1, 2) for p in parts)
        attended = F.scaled_dot_product_attention(q, k, v)
        del parts, q, k, v
        return F.linear(attended.transpose(1, 2).reshape(x.shape), proj_weight, proj_bias)

    def feed(x: Tensor) -> Tensor:
        rows = torch._addmm_activation(ffn_bias_1, x.view(-1, embed_dim), ffn_weight_1.t(), use_gelu=use_gelu)
        return torch.addmm(ffn_bias_2, rows, ffn_weight_2.t()).view(x.shape)

    if norm_first:
        x = attend(first(src)).add_(src)
        return feed(second(x)).add_(x)
    x = first(attend(src).add_(src))
    return second(feed(x).add_(x))

"""Which kernel attention takes: tensors and a card come in, a choice goes out. From `sdp_utils.cpp`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.devices import since
from ipyvram.simulated.arguments import HALVES

#: Since 2.14 the memory-efficient kernel takes groups of heads, and fused kernels take tensors without a batch (pytorch pull
#: requests 191085 and 192271).
WIDER = since(2, 14)


class _Call(NamedTuple):
    """What attention is asked for, and where."""

    card: Card
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    dropout: float
    causal: bool
    grouped: bool

    @property
    def wants(self) -> bool:
        """Whether a backward may follow."""
        return torch.is_grad_enabled() and any(t.requires_grad for t in (self.query, self.key, self.value))


def choose(card: Card, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, causal: bool,
           grouped: bool) -> str:  # fmt: skip
    """`select_sdp_backend`: ``"cudnn"``, ``"flash"``, ``"efficient"`` or ``"math"``, the first that takes the tensors."""
    call, tensors = _Call(card, query, key, value, mask, dropout, causal, grouped), (query, key, value)
    ranks = (3, 4) if WIDER else (4,)
    if query.dim() not in ranks or len({t.dim() for t in tensors}) > 1 or not all(t.numel() for t in tensors):
        return "math"
    if any(t.stride(-1) != 1 for t in tensors):
        return "math"
    order = ("cudnn", "flash", "efficient") if _prefers_cudnn(card) else ("flash", "efficient", "math", "cudnn")
    return next((name for name in order if _TAKES[name](call)), "math")


def _prefers_cudnn(card: Card) -> bool:
    """`check_prefer_cudnn_attention`: on Hopper and Blackwell of data centres, where cuDNN is new enough."""
    major, minor = card.capability
    if major not in (9, 10) or os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1":
        return False
    if int((torch.version.cuda or "13").partition(".")[0]) < 13 and minor not in (0, 3):
        return False
    return _cudnn_version() > 91_500


def _cudnn_version() -> int:
    """Of the cuDNN that comes with this torch; where none does, that of the newest."""
    try:
        return torch.backends.cudnn.version() or sys.maxsize
    except RuntimeError:  # another is installed than torch was built with
        return 0


def _cudnn_takes(call: _Call) -> bool:
    """`can_use_cudnn_attention`."""
    if not torch.backends.cuda.cudnn_sdp_enabled() or call.card.capability < (8, 0) or call.query.dtype not in HALVES:
        return False
    if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
        return False
    return _cudnn_takes_lengths(call) and _cudnn_takes_widths(call) and (call.mask is None or _mask_fits(call))


def _cudnn_takes_lengths(call: _Call) -> bool:
    if call.key.shape[-2] == 1:
        return False
    if not call.dropout:
        return True
    return not (call.query.shape[-2] == 1 or call.dropout * 16 % 1 or 91_100 < _cudnn_version() < 91_400)


def _cudnn_takes_widths(call: _Call) -> bool:
    capability, widths = call.card.capability, (call.query.shape[-1], call.value.shape[-1])
    roomy = capability == (9, 0) and _cudnn_version() >= 91_000
    if WIDER:
        roomy = (capability == (9, 0) or capability[0] == 10) and _cudnn_version() > 92_200
    if any(width % 8 or width > (256 if roomy else 128) for width in widths):
        return False
    return not (call.wants and max(widths) > 128) or widths in ((192, 128), (256, 256))


def _mask_fits(call: _Call) -> bool:
    """`check_attn_mask_shape`."""
    mask, query, key = call.mask, call.query, call.key
    assert mask is not None
    if mask.requires_grad or mask.shape[-1] not in (1, key.shape[-2]) or mask.shape[-2] not in (1, query.shape[-2]):
        return False
    leading = tuple(mask.shape[:-2])
    whole = tuple(query.shape[:-2])
    return not leading or (len(leading) == len(whole) and all(n in (1, m) for n, m in zip(leading, whole, strict=True)))


def _flash_takes(call: _Call) -> bool:
    capability, width = call.card.capability, call.query.shape[-1]
    if not torch.backends.cuda.flash_sdp_enabled() or call.mask is not None or capability < (8, 0):
        return False
    if call.query.dtype not in HALVES or width > 256 or call.value.shape[-1] != width:
        return False
    small = (8, 6) <= capability <= (8, 9) or capability[0] == 12
    if call.wants and small and (192 < width <= 224 or (width > 224 and call.dropout > 0)):
        return False  # `check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120`
    return not call.causal or call.query.shape[-2] == call.key.shape[-2]


def _efficient_takes(call: _Call) -> bool:
    """`check_head_dim_size_mem_efficient` with `minimum_gemm_alignment`, and the dtypes of the card."""
    if not torch.backends.cuda.mem_efficient_sdp_enabled() or (call.grouped and not WIDER):
        return False
    dtype, (major, _) = call.query.dtype, call.card.capability
    half = dtype in HALVES
    if (dtype is torch.bfloat16 and major < 8) or not (half or dtype is torch.float32):
        return False
    alignment = 8 if half and major >= 7 else 4 if major >= 8 else 1
    return call.query.shape[-1] % alignment == 0 and call.value.shape[-1] % alignment == 0


_TAKES: dict[str, Callable[[_Call], bool]] = {
    "cudnn": _cudnn_takes,
    "flash": _flash_takes,
    "efficient": _efficient_takes,
    "math": lambda call: torch.backends.cuda.math_sdp_enabled(),
}

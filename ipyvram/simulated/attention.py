"""What the kernels of attention work in: an operator and its results come in, requests go out; adds its rules to `within`.

From `attention.cu`, `attention_backward.cu` and the flash-attention that torch carries.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.simulated.arguments import HALVES, argument
from ipyvram.simulated.attention_choice import WIDER
from ipyvram.simulated.ways import Ways
from ipyvram.simulated.within import Made, copied, rule


def padded_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """`preprocess_mask` (attention.cpp): rows of a multiple of 16."""
    if mask.dim() and (mask.stride(-1) != 1 or any(s % 16 for s in mask.stride()[:-1])):
        width = mask.shape[-1]
        mask = torch.nn.functional.pad(mask, [0, 16 - width % 16])[..., :width]
    return mask.expand(*query.shape[:-1], key.shape[-2])


# -- flash -----------------------------------------------------------------------------------------------------------------


def _splits(blocks: int, processors: int, keys: int) -> int:
    """`num_splits_heuristic` (flash_api.cpp): the keys are shared out where there are too few blocks for the card."""
    if blocks >= 0.8 * processors:
        return 1
    most = min(128, processors, keys)
    eligible = [n for n in range(1, most + 1) if n == 1 or -(-keys // n) != -(-keys // (n - 1))]
    efficiency = {n: (blocks * n / processors) / math.ceil(blocks * n / processors) for n in eligible}
    best = max(efficiency.values(), default=1.0)
    return next((n for n in eligible if efficiency[n] >= 0.85 * best), 1)


def _rounded(width: int) -> int:
    step = 32 if width <= 128 else 64
    return -(-width // step) * step


@rule("_scaled_dot_product_flash_attention")
def _flash_forward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`mha_fwd`: partial outputs where the keys are shared out over several blocks, which needs no dropout."""
    query, key = args[:2]
    batch, heads, length, width = query.shape
    made(*result[:2])
    if argument(args, kwargs, 3, "dropout_p", 0.0):
        return
    block = 256 if width <= 64 else 128 if width <= 128 else 64
    splits = _splits(batch * heads * -(-length // 64), 2 * ways.card.multiprocessors, -(-key.shape[2] // block))
    held: list[tuple[int, int]] = []
    if splits > 1:
        rows = splits * batch * heads * length * 4
        held = ways.take(rows, rows * _rounded(width), op="flash attention parts")
    made(*result[6:8])
    ways.give(held)


@rule("_scaled_dot_product_flash_attention_backward")
def _flash_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`mha_bwd`: sums of each row, the query's gradient in float32, and gradients for each head of grouped keys."""
    query, key = args[1:3]
    batch, heads, length, width = query.shape
    held = ways.take(*(copied(t.transpose(1, 2)) for t in (args[0], args[4])), op="flash attention copy")
    made(*result)
    rows = batch * heads * -(-length // 128) * 128 * 4
    grouped = batch * heads * key.shape[2] * width * query.element_size() if key.shape[1] != heads else 0
    ways.use(rows, rows * _rounded(width), grouped, grouped, op="flash attention backward")
    ways.give(held)


# -- cuDNN -----------------------------------------------------------------------------------------------------------------


def cudnn(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_scaled_dot_product_cudnn_attention`: sums of each row only for a backward."""
    result = list(func(*args, **kwargs))
    if not args[4]:
        result[1] = torch.empty(0, device="meta")
    return tuple(result)


@rule("_scaled_dot_product_cudnn_attention")
def _cudnn_forward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """attention.cu: the generator's seed and offset first."""
    ways.attention_by_cudnn = True
    made(*result[6:8])


@rule("_scaled_dot_product_cudnn_attention_backward")
def _cudnn_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """MHA.cpp `run_cudnn_SDP_bprop`: the gradient in order, and what cudnn-frontend's node works in: sums of each row, and the
    query's gradient in float32. What the engine itself works in only cuDNN knows."""
    gradient, query = args[:2]
    made(*result)
    held = ways.take(gradient.nbytes if gradient.stride(-1) != 1 else 0, op="attention copy")
    rows = query.numel() // query.shape[-1] * 4
    ways.use(rows + rows * query.shape[-1], op="cuDNN attention backward")
    ways.give(held)


# -- memory-efficient ------------------------------------------------------------------------------------------------------


@rule("_scaled_dot_product_efficient_attention")
def _efficient_forward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`_efficient_attention_forward`: the generator's state first (with dropout it stays on the host), then output and sums;
    wide values of half precision are added up in float32 beside."""
    dropout = argument(args, kwargs, 5, "dropout_p", 0.0)
    for tensor in result[2:]:
        if dropout or not WIDER:
            ways.memory.ignore(tensor.untyped_storage())
        else:
            made(tensor)
    made(result[0])
    if result[1].numel():
        made(result[1])
    value = args[2]
    if value.dtype in HALVES and value.shape[-1] > 128:
        ways.use(2 * result[0].nbytes, op="efficient attention sums")


@rule("_scaled_dot_product_efficient_attention_backward")
def _efficient_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`_efficient_attention_backward`: row sums of gradient times output, and the kernel's `workspace_size`."""
    gradient, query, key, value = args[:4]
    held = ways.take(copied(gradient.transpose(1, 2)), op="attention copy")
    made(*result)
    batch, heads, length, _ = query.shape
    rows = batch * heads * length * 4
    if key.shape[1] != heads:
        held += ways.take(
            key.nbytes // key.shape[1] * heads, value.nbytes // key.shape[1] * heads, op="attention gradients of heads"
        )
    if query.dtype is torch.float32:  # `kKernelComputesDelta` is for half precision
        product = ways.take(gradient.nbytes, op="attention delta")
        delta = ways.take(rows, op="attention delta")
        ways.give(product)
        if heads > 1 and length > 1:  # sums of each position and head, turned round
            turned = ways.take(rows, op="attention delta")
            ways.give(delta)
            delta = turned
        held += delta
    else:
        held += ways.take(rows, op="attention delta")
    held += ways.take(batch * heads * _workspace_bytes(ways.card, query, key, value), op="efficient attention backward")
    ways.give(held)


def _workspace_bytes(card: Card, query: Tensor, key: Tensor, value: Tensor) -> int:
    """For each head (kernel_backward.h `workspace_strideBH`): the query's gradient in blocks of ``rows × columns`` with four
    counters each; those of key and value too where they are half precision and too wide for registers. The blocks are
    those of the kernels that torch is built with (`cutlassB.h`)."""
    half, width = query.dtype in HALVES, max(query.shape[-1], value.shape[-1])
    rows, columns = 64, 64
    if width > 64 and (half or card.capability[0] >= 8):
        rows = 128
    roomy = card.capability[0] >= 8 and not (8, 6) <= card.capability <= (8, 9)  # shared memory of a multiprocessor
    if half and (64 if roomy else 96) < width <= 128 and card.capability[0] >= 8:
        columns = 128
    blocks = -(-query.shape[2] // rows) * -(-query.shape[-1] // columns)
    floats = blocks * (rows * columns + 4)
    if half and width > 128:
        keys = -(-key.shape[2] // 64) * 64
        floats += sum(keys * (-(-t.shape[-1] // 128) * 128) for t in (key, value))
    return -(-floats // 4) * 4 * 4

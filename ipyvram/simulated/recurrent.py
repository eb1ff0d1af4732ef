"""Recurrent layers on the card: cuDNN's way (RNN.cpp `_cudnn_impl`, cudnn/RNN.cpp), with its flat weights and its reserve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten

RELU, TANH, LSTM, GRU = 0, 1, 2, 3
#: Values kept for backward for each hidden value: gates, and for an LSTM the cell. cuDNN does not publish its layout; with
#: room for the layer's own output and alignment this is taken as a bound.
_KEPT = {RELU: 2, TANH: 2, LSTM: 6, GRU: 5}


def kernels() -> dict[str, Callable[..., Any]]:
    """Composite operators on ``meta`` → cuDNN's."""
    return {
        "lstm.input": _lstm,
        "gru.input": lambda source, hx, *rest: _cudnn(GRU, source, hx, None, *rest)[:2],
        "rnn_tanh.input": lambda source, hx, *rest: _cudnn(TANH, source, hx, None, *rest)[:2],
        "rnn_relu.input": lambda source, hx, *rest: _cudnn(RELU, source, hx, None, *rest)[:2],
        "lstm.data": lambda source, sizes, hx, *rest: _packed(LSTM, source, sizes, hx[0], hx[1], rest),
        "gru.data": lambda source, sizes, hx, *rest: _packed(GRU, source, sizes, hx, None, rest)[:2],
        "rnn_tanh.data": lambda source, sizes, hx, *rest: _packed(TANH, source, sizes, hx, None, rest)[:2],
        "rnn_relu.data": lambda source, sizes, hx, *rest: _packed(RELU, source, sizes, hx, None, rest)[:2],
        "lstm_cell": _lstm_cell,
        "gru_cell": _gru_cell,
    }


def _lstm_cell(
    source: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`LSTMCell` (RNN.cpp) on CUDA: two products and one kernel."""
    gates = torch.matmul(source, w_ih.t()), torch.matmul(hx[0], w_hh.t())
    hy, cy, _ = aten._thnn_fused_lstm_cell(*gates, hx[1], b_ih, b_hh)
    return hy, cy


def _gru_cell(
    source: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    gates = torch.matmul(source, w_ih.t()), torch.matmul(hx, w_hh.t())
    hy: Tensor = aten._thnn_fused_gru_cell(*gates, hx, b_ih, b_hh)[0]
    return hy


def fused_gru(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_thnn_fused_gru_cell` (RNN.cu): the state and five values kept for each of its elements."""
    hx = args[2]
    return torch.empty_like(hx), hx.new_empty((hx.shape[0], 5 * hx.shape[1]))


def fused_gru_backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_thnn_fused_gru_cell_backward`: gradients of both kinds of gates, the state and the biases."""
    gradient, workspace, biased = args[:3]
    gates = (workspace.shape[0], workspace.shape[1] // 5 * 3)
    biases = [workspace.new_empty(gates[1]) if biased else None for _ in range(2)]
    return workspace.new_empty(gates), workspace.new_empty(gates), torch.empty_like(gradient), *biases


def _lstm(source: Tensor, hx: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _cudnn(LSTM, source, hx[0], hx[1], *rest)


def _cudnn(
    mode: int, source: Tensor, hx: Tensor, cx: Tensor | None, params: Any, biases: bool, layers: int, dropout: float,
    train: bool, bidirectional: bool, batch_first: bool, sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    params = list(params)
    out, hy, cy, _, _ = aten._cudnn_rnn(
        source, params, len(params) // (layers * (2 if bidirectional else 1)), _shared(params), hx, cx, mode, hx.shape[2], 0,
        layers, batch_first, dropout, train, bidirectional, [] if sizes is None else sizes.tolist(), None,
    )  # fmt: skip
    return out, hy, cy


def _packed(mode: int, source: Tensor, sizes: Tensor, hx: Tensor, cx: Tensor | None, rest: Any) -> Any:
    params, biases, layers, dropout, train, bidirectional = rest
    return _cudnn(mode, source, hx, cx, params, biases, layers, dropout, train, bidirectional, False, sizes)


def _shared(weights: list[Tensor]) -> Tensor | None:
    """The flat tensor that all weights are parts of, None where there is none."""
    first = weights[0].untyped_storage()
    if any(w.untyped_storage()._cdata != first._cdata for w in weights):
        return None
    with torch.no_grad():
        flat = torch.empty(0, dtype=weights[0].dtype, device=weights[0].device)
        return flat.set_(first, 0, (first.nbytes() // flat.element_size(),), (1,))


def flatten(module: nn.RNNBase) -> None:
    """`RNNBase.flatten_parameters` on the card: one allocation that every weight is a part of."""
    weights = [w for w in module._flat_weights if isinstance(w, Tensor)]
    if not weights or any(w.device.type != "cuda" for w in weights):  # as the cell is told
        return
    if len({w.untyped_storage()._cdata for w in weights}) == 1:
        return
    with torch.no_grad():
        flat = torch.empty(sum(w.numel() for w in weights), dtype=weights[0].dtype, device="meta")
        place = 0
        for weight in weights:
            weight.data = flat[place : place + weight.numel()].view(weight.shape)
            place += weight.numel()


def forward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_cudnn_rnn`: output, last states, reserve and weights."""
    source, weights, _, flat, hx, cx, mode, hidden, _, layers, batch_first, _, train, both = args[:14]
    sides = 2 if both else 1
    if batch_first and not source.transpose(0, 1).is_contiguous():
        card._ways.use(source.numel() * source.element_size(), op="rnn input")
    places = list(source.shape[:-1]) if not batch_first else [source.shape[1], source.shape[0]]  # packed: one dimension
    out = source.new_empty((*places, hidden * sides))
    hy = torch.empty_like(hx)
    cy = torch.empty_like(hx) if cx is not None else source.new_empty(0)
    reserve_bytes = layers * sides * math.prod(places) * hidden * _KEPT[mode] * source.element_size() if train else 0
    card._ways.recurrent_bound = max(card._ways.recurrent_bound, reserve_bytes)
    reserve = torch.empty(reserve_bytes, dtype=torch.uint8, device="meta")
    whole = source.new_empty(0)
    if flat is not None:
        whole.set_(flat.untyped_storage(), 0, flat.shape, flat.stride())
    elif weights[0].dtype is torch.float32:  # under autocast, the casts of the weights are the flat copy
        whole = source.new_empty(sum(w.numel() for w in weights))
    return (out.transpose(0, 1) if batch_first else out), hy, cy, reserve, whole


def backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_cudnn_rnn_backward`: the gradients of the weights are parts of one allocation."""
    source, weights, _, _, hx, cx = args[:6]
    mask = args[-1]
    of_source = torch.empty_like(source)
    of_hx = torch.empty_like(hx)
    of_cx = torch.empty_like(cx) if cx is not None else source.new_empty(0)
    parts: list[Tensor] = []
    if mask[3]:
        flat, place = source.new_empty(sum(w.numel() for w in weights)), 0
        for weight in weights:
            parts.append(flat[place : place + weight.numel()].view(weight.shape))
            place += math.prod(weight.shape)
    return of_source, of_hx, of_cx, parts

"""Recurrent layers on the card: cuDNN's way (RNN.cpp `_cudnn_impl`, cudnn/RNN.cpp), with its flat weights and its reserve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.simulated.arguments import aten
from ipyvram.simulated.ways import Ways
from ipyvram.simulated.within import Made, copied, rule
from ipyvram.units import MIB

RELU, TANH, LSTM, GRU = 0, 1, 2, 3
#: Values kept for backward for each hidden value: gates, and for an LSTM the cell. cuDNN does not publish its layout; with
#: room for the layer's own output and alignment this is taken as a bound.
_KEPT = {RELU: 2, TANH: 2, LSTM: 6, GRU: 5}
#: "Slightly over 2MB" (RNN.cpp `get_dropout_state`); cuDNN does not publish it either.
_DROPOUT_STATE = 2 * MIB


def kernels() -> dict[str, Callable[..., Any]]:
    """Composite operators on ``meta`` → cuDNN's."""
    run = _Cudnn()
    modes = {"gru": GRU, "rnn_tanh": TANH, "rnn_relu": RELU}

    def padded(mode: int) -> Callable[..., Any]:
        return lambda source, hx, *rest: run(mode, source, hx, None, rest)[:2]

    def packed(mode: int) -> Callable[..., Any]:
        return lambda source, sizes, hx, *rest: run(mode, source, hx, None, rest, sizes)[:2]

    return {
        "lstm.input": lambda source, hx, *rest: run(LSTM, source, hx[0], hx[1], rest),
        "lstm.data": lambda source, sizes, hx, *rest: run(LSTM, source, hx[0], hx[1], rest, sizes),
        **{f"{name}.input": padded(mode) for name, mode in modes.items()},
        **{f"{name}.data": packed(mode) for name, mode in modes.items()},
        "lstm_cell": _lstm_cell,
        "gru_cell": _gru_cell,
    }


class _Cudnn:
    """`_cudnn_impl` (cudnn/RNN.cpp), with the state of dropout's random numbers, which is made once."""

    def __init__(self) -> None:
        self._state: Tensor | None = None

    def __call__(
        self, mode: int, source: Tensor, hx: Tensor, cx: Tensor | None, rest: Sequence[Any], sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        params, _, layers, dropout, train, bidirectional, *order = rest
        batch_first = bool(order and order[0])
        params = list(params)
        if train and dropout > 0 and self._state is None:
            torch.empty((), dtype=torch.int64, device=source.device)  # the seed
            self._state = torch.empty(_DROPOUT_STATE, dtype=torch.uint8, device=source.device)
        out, hy, cy, _, _ = aten._cudnn_rnn(
            source, params, len(params) // (layers * (2 if bidirectional else 1)), _shared(params), hx, cx, mode, hx.shape[2], 0,
            layers, batch_first, dropout, train, bidirectional, [] if sizes is None else sizes.tolist(), self._state,
        )  # fmt: skip
        return out, hy, cy


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
    if weights[0].dtype not in torch.backends.cudnn.CUDNN_TENSOR_DTYPES:
        return
    if len({w.untyped_storage()._cdata for w in weights}) == 1:
        return
    with torch.no_grad():
        flat = torch.empty(numbers(weights), dtype=weights[0].dtype, device="meta")
        for weight, part in zip(weights, views(flat, weights), strict=True):
            weight.data = part


def forward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_cudnn_rnn`: output, last states, reserve and weights."""
    source, weights, _, flat, hx, cx, mode, hidden, _, layers, batch_first, _, train, both = args[:14]
    sides = 2 if both else 1
    places = list(source.shape[:-1]) if not batch_first else [source.shape[1], source.shape[0]]  # packed: one dimension
    out = source.new_empty((*places, hidden * sides))
    hy = torch.empty_like(hx)
    cy = torch.empty_like(cx) if cx is not None else source.new_empty(0)
    reserve_bytes = layers * sides * math.prod(places) * hidden * _KEPT[mode] * source.element_size() if train else 0
    card.ways.recurrent_bound = max(card.ways.recurrent_bound, reserve_bytes)
    reserve = torch.empty(reserve_bytes, dtype=torch.uint8, device="meta")
    whole = source.new_empty(0 if flat is not None else numbers(weights))
    if flat is not None:
        whole.set_(flat.untyped_storage(), 0, flat.shape, flat.stride())
    return (out.transpose(0, 1) if batch_first else out), hy, cy, reserve, whole


@rule("_cudnn_rnn")
def _forward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """The input in order, and the weights before the reserve."""
    out, hy, cy, reserve, whole = result
    held = ways.take(_in_order(args[0], args[10]), op="rnn input")
    made(out, hy, cy, whole, reserve)
    ways.give(held)


def _in_order(tensor: Tensor, batch_first: bool) -> int:
    """Bytes of a copy with the steps first: cuDNN reads no other order."""
    return copied(tensor.transpose(0, 1) if batch_first else tensor)


def backward(card: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`_cudnn_rnn_backward`: the gradients of the weights are parts of one allocation."""
    source, weights, _, _, hx, cx = args[:6]
    batch_first, mask = args[14], args[-1]
    of_source = (
        source.new_empty(source.transpose(0, 1).shape).transpose(0, 1) if batch_first else torch.empty_like(source)
    )
    of_hx = torch.empty_like(hx)
    of_cx = torch.empty_like(cx) if cx is not None else source.new_empty(0)
    parts: list[Tensor] = []
    if mask[3]:
        parts = (
            [torch.empty_like(w) for w in weights]
            if _unbiased(weights)
            else views(source.new_empty(numbers(weights)), weights)
        )
    return of_source, of_hx, of_cx, parts


@rule("_cudnn_rnn_backward")
def _backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Zeros for states without a gradient, input and gradient in order, and for the weights the input once more."""
    source, hx, cx = args[0], args[4], args[5]
    of_out, of_hy, of_cy = args[7:10]
    batch_first = args[14]
    states = [hx.nbytes if of_hy is None else 0, cx.nbytes if cx is not None and of_cy is None else 0]
    missing = ways.take(args[6].nbytes if of_out is None else 0, *states, op="rnn gradient")
    steps_first = [_in_order(t, batch_first) for t in (source, args[6].contiguous() if of_out is None else of_out)]
    held = ways.take(*steps_first, op="rnn input")
    of_source, of_hx, of_cx, parts = result
    made(of_source, of_hx, of_cx)
    ways.give(held)
    if parts:
        held = ways.take(steps_first[0], op="rnn input")
        item = parts[0].element_size()
        held += ways.take(numbers(args[1]) * item if _unbiased(args[1]) else 0, op="rnn gradient with biases")
        made(parts)
        ways.give(held)
    ways.give(missing)


def _unbiased(weights: list[Tensor]) -> bool:
    return all(weight.dim() > 1 for weight in weights)


def numbers(weights: list[Tensor]) -> int:
    """Elements of the flat tensor: cuDNN has two biases for each layer and direction, wanted or not."""
    biases = sum(weight.shape[0] for weight in weights) if _unbiased(weights) else 0
    return sum(weight.numel() for weight in weights) + biases


def views(flat: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Parts of a flat tensor, each in the shape of a weight; with memory in common and no history."""
    parts, place = [], 0
    for weight in weights:
        part = torch.empty(0, dtype=flat.dtype, device=flat.device)
        parts.append(part.set_(flat.untyped_storage(), place, weight.shape, weight.contiguous().stride()))
        place += weight.numel()
    return parts

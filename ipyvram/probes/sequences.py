"""A call of a layer comes in; how many samples it was given goes out, where its data have time first.

Recurrent layers and attention of torch take (time, samples, …) unless told otherwise, and so do models made of them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_LAYERS = (nn.RNNBase, nn.MultiheadAttention)


def samples_of(layer: nn.Module, args: tuple[Any, ...]) -> tuple[int, ...]:
    """Samples in this call, nothing where the layer has samples first or does not tell."""
    if not isinstance(layer, _LAYERS) or layer.batch_first or not args:
        return ()
    data = args[0]
    return (int(data.shape[1]),) if isinstance(data, Tensor) and data.dim() == 3 else ()

"""Which out-of-place operators of the autograd engine write in place on a GPU.

Under any dispatch mode the engine and its formulas choose out-of-place variants (`at::isTensorSubclassLike` is true for
every tensor): gradients are summed with ``add`` where a real run uses ``add_``, and ``scatter`` or ``index_put`` fill a
fresh tensor of zeros where a real run fills it in place. Here they become what a real run does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

#: out of place → in place; the first operand takes the result.
_IN_PLACE: dict[Any, Any] = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.index_put.default: aten.index_put_.default,
    aten.index_add.default: aten.index_add_.default,
    aten.masked_fill.Scalar: aten.masked_fill_.Scalar,
    aten.masked_fill.Tensor: aten.masked_fill_.Tensor,
}
#: `torch::autograd::InputBuffer` sums gradients outside every node, or while its producer is still the current one.
_FILLS = (aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.index_put.default, aten.index_add.default)


class Folding:
    """Decides for one thread; what an unshared tensor's use count looks like from here is measured once."""

    def __init__(self) -> None:
        self._unshared: int | None = None

    def in_place(self, func: Any, args: Any) -> Callable[..., Any] | None:
        """The in-place operator that a real run would use, None where it would not."""
        inside = _IN_PLACE.get(func)
        if inside is None or torch.is_grad_enabled():
            return None
        target = args[0]
        if func is aten.add.Tensor:
            if not isinstance(args[1], Tensor) or not _same(target, args[1]):
                return None
            node = torch._C._current_autograd_node()
            if node is not None and "AccumulateGrad" in node.name():
                return inside  # `.grad` takes the sum in place, whoever holds it
        elif func not in _FILLS:
            return None
        return inside if self._unheld(target) else None

    def _unheld(self, tensor: Tensor) -> bool:
        if self._unshared is None:
            self._unshared = _measure()
        # The tensor and its storage each have one owner, and no variable of Python's holds the tensor
        # (five references: the dispatcher's tuple, `args[0]`, two parameters on the way here and `getrefcount`).
        return (
            tensor._use_count() <= self._unshared
            and torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) <= 2
            and sys.getrefcount(tensor) <= 5
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _measure() -> int:
    """The use count, seen from a dispatch mode, of a tensor that only the engine's input buffer holds."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts: list[int] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                counts.append(args[0]._use_count())
            return func(*args, **(kwargs or {}))

    def run() -> None:
        with torch.enable_grad():
            x = torch.empty(2, device="meta", requires_grad=True) * 2
            total = (x.exp() + x.sin()).sum()
        with Look():
            total.backward()

    import threading

    thread = threading.Thread(target=run)  # a backward inside a backward of this thread would see other counts
    thread.start()
    thread.join()
    return max(counts, default=4)

"""Which out-of-place operators of the autograd engine write in place on a GPU.

Under any dispatch mode the engine and its formulas choose out-of-place variants (`at::isTensorSubclassLike` is true for
every tensor): gradients are summed with ``add`` where a real run uses ``add_``, and ``scatter`` or ``index_put`` fill a
fresh tensor of zeros where a real run fills it in place. Here they become what a real run does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

#: out of place → in place; the first operand takes the result.
_IN_PLACE: dict[Any, Any] = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.scatter.src: aten.scatter_.src,
    aten.scatter.value: aten.scatter_.value,
    aten.scatter_add.default: aten.scatter_add_.default,
    aten.index_put.default: aten.index_put_.default,
    aten.index_add.default: aten.index_add_.default,
}
#: Formulas that write into what they have just made, unless a mode is on (FunctionsManual.cpp, derivatives.yaml).
_IN_PLACE_NODES = ("BinaryCrossEntropyWithLogitsBackward0",)
_MASKING_NODES = ("Maximum", "Minimum", "Fmax", "Fmin", "Clamp", "ClampMin", "ClampMax")
_MASK = aten.masked_fill.Scalar
#: Formulas that add what they have made to something else.
_ADDING_NODES = ("VarMeanBackward0", "StdMeanBackward0")
_FORMULAS = {aten.sub.Tensor: aten.sub_.Tensor, aten.mul.Tensor: aten.mul_.Tensor, aten.div.Tensor: aten.div_.Tensor}
_IN_PLACE |= _FORMULAS | {_MASK: aten.masked_fill_.Scalar}
#: These fill what `value_selecting_reduction_backward` and its like (FunctionsManual.cpp) have just made.
_FILLS = (
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter_add.default,
    aten.index_put.default,
    aten.index_add.default,
)


class Folding:
    """Decides for one thread; what an unshared tensor's use counts look like from here is measured once.

    Parameters
    ----------
    is_newest : callable
        Whether a storage was allocated last, with nothing in between.
    """

    def __init__(self, is_newest: Callable[[torch.UntypedStorage], bool]) -> None:
        self._is_newest = is_newest
        self._unshared: tuple[int, int, int] | None = None

    def in_place(self, func: Any, args: Any) -> Callable[..., Any] | None:
        """The in-place operator that a real run would use, None where it would not."""
        inside: Callable[..., Any] | None = _IN_PLACE.get(func)
        if inside is None or torch.is_grad_enabled():
            return None
        if func in _FILLS:
            return inside if self._is_newest(args[0].untyped_storage()) else None
        if not isinstance(args[1], Tensor):
            return None
        node = torch._C._current_autograd_node()
        if func is _MASK:
            masks = node is not None and node.name().rstrip("0123456789").removesuffix("Backward") in _MASKING_NODES
            return inside if masks else None
        if func in _FORMULAS:
            ours = node is not None and node.name() in _IN_PLACE_NODES and args[0].dtype is args[1].dtype
            return inside if ours and _fits(args[1], args[0]) and self._unheld(args) else None
        if not _same(args[0], args[1]):
            return None
        if node is not None and "AccumulateGrad" in node.name():
            return inside  # `.grad` takes the sum in place, whoever holds it
        if node is not None and node.name() in _ADDING_NODES:
            return None
        return inside if self._unheld(args) else None

    def _unheld(self, args: tuple[Any, ...]) -> bool:
        """`can_accumulate_inplace` (input_buffer.cpp): tensor and storage have one owner, the engine's buffer."""
        if self._unshared is None:
            self._unshared = _measure()
        return all(count <= alone for count, alone in zip(_counts(args[0]), self._unshared, strict=True))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _fits(operand: Tensor, target: Tensor) -> bool:
    return bool(torch.broadcast_shapes(operand.shape, target.shape) == target.shape)


def _counts(tensor: Tensor) -> tuple[int, int, int]:
    """Owners of a tensor, of its storage and of its Python object, with those on the way here: how many depends on Python's version."""
    owners: int = tensor._use_count()  # type: ignore[attr-defined, unused-ignore]
    return owners, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata), sys.getrefcount(tensor)


def _measure() -> tuple[int, int, int]:
    """`_counts`, seen from a dispatch mode, of a tensor that only the engine's input buffer holds."""
    counts: list[tuple[int, int, int]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            with torch._C.DisableTorchFunction():
                if func is aten.add.Tensor and torch._C._current_graph_task_id() != -1:
                    counts.append(_counts(args[0]))
                result = func(*args, **(kwargs or {}))
                if isinstance(result, Tensor):
                    result.untyped_storage()  # its Python object counts, and in a real run it has been asked for
                return result

    def run() -> None:
        with torch.enable_grad():
            x = torch.empty(2, device="meta", requires_grad=True) * 2
            total = (x.exp() + x.sin()).sum()
        with Look():  # type: ignore[no-untyped-call]
            total.backward()

    thread = threading.Thread(target=run)  # a backward inside a backward of this thread would see other counts
    thread.start()
    thread.join()
    return counts[0] if counts else (4, 2, 4)

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

from ipyvram.simulated.arguments import aten

#: Formulas that write into what they have just made, unless a mode is on (FunctionsManual.cpp, derivatives.yaml).
_IN_PLACE_NODES = ("BinaryCrossEntropyWithLogitsBackward0",)
_MASKING_NODES = ("Maximum", "Minimum", "Fmax", "Fmin", "Clamp", "ClampMin", "ClampMax")
#: Formulas that add what they have made to something else.
_ADDING_NODES = ("VarMeanBackward0", "StdMeanBackward0")


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

    def in_place(self, func: Any, args: Any) -> Any:
        """The in-place operator that a real run would use, whose first operand takes the result; None where it would not."""
        inside, rule = _FOLDED.get(func, (None, None))
        if rule is None or torch.is_grad_enabled() or torch._C._current_graph_task_id() == -1:
            return None
        node = torch._C._current_autograd_node()
        return inside if rule(self, args, "" if node is None else node.name()) else None

    def _fills(self, args: Any, node: str) -> bool:
        """`value_selecting_reduction_backward` and its like (FunctionsManual.cpp) fill what they have just made."""
        return self._is_newest(args[0].untyped_storage())

    def _masks(self, args: Any, node: str) -> bool:
        return node.rstrip("0123456789").removesuffix("Backward") in _MASKING_NODES

    def _goes_on(self, args: Any, node: str) -> bool:
        """A formula's next step, written into what it has made before."""
        if node not in _IN_PLACE_NODES or not isinstance(args[1], Tensor) or args[0].dtype is not args[1].dtype:
            return False
        fits = torch.broadcast_shapes(args[0].shape, args[1].shape) == args[0].shape
        return fits and self._is_unheld(args)

    def _sums(self, args: Any, node: str) -> bool:
        """The engine adds one gradient to another."""
        if not isinstance(args[1], Tensor) or args[0].shape != args[1].shape or args[0].dtype != args[1].dtype:
            return False
        if "AccumulateGrad" in node:
            return True  # `.grad` takes the sum in place, whoever holds it
        return node not in _ADDING_NODES and self._is_unheld(args)

    def _is_unheld(self, args: Any) -> bool:
        """`can_accumulate_inplace` (input_buffer.cpp): tensor and storage have one owner, the engine's buffer.

        That is the first of ``args``, of which no variable on the way from the mode to here may be another owner.
        """
        if self._unshared is None:
            self._unshared = _measure()
        return all(count <= alone for count, alone in zip(_counts(args[0]), self._unshared, strict=True))


#: Out of place → in place, and when.
_FOLDED: dict[Any, tuple[Any, Callable[[Folding, Any, str], bool]]] = {
    aten.add.Tensor: (aten.add_.Tensor, Folding._sums),
    aten.sub.Tensor: (aten.sub_.Tensor, Folding._goes_on),
    aten.mul.Tensor: (aten.mul_.Tensor, Folding._goes_on),
    aten.div.Tensor: (aten.div_.Tensor, Folding._goes_on),
    aten.masked_fill.Scalar: (aten.masked_fill_.Scalar, Folding._masks),
    aten.scatter.src: (aten.scatter_.src, Folding._fills),
    aten.scatter.value: (aten.scatter_.value, Folding._fills),
    aten.scatter_add.default: (aten.scatter_add_.default, Folding._fills),
    aten.index_put.default: (aten.index_put_.default, Folding._fills),
    aten.index_add.default: (aten.index_add_.default, Folding._fills),
}


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

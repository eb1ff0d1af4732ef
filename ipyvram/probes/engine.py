"""What autograd does out of place only because a dispatch mode is on, and in place otherwise.

Under any mode torch takes every tensor for one of a subclass (`at::isTensorSubclassLike`): where a tensor is used twice, the
engine then sums its gradients with ``add`` instead of ``add_``, and formulas fill a new tensor instead of the one they just
made. What is added to a ``.grad`` is added in place, as without a mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OUTSIDE = -1  #: no node: not in the engine

_graph_task_id, _node = torch._C._current_graph_task_id, torch._C._current_autograd_node
_aten = torch.ops.aten
ADD = _aten.add.Tensor
#: Formulas apply these to zeros that they have just made (`value_selecting_reduction_backward` and its like).
_FILLS = frozenset({
    _aten.scatter.src, _aten.scatter.value, _aten.scatter_add.default, _aten.index_put.default, _aten.index_add.default,
    _aten.masked_scatter.default, _aten.masked_fill.Scalar, _aten.masked_fill.Tensor,
})  # fmt: skip
REUSING = frozenset(map(id, (*_FILLS, ADD)))  #: by identity: an overload's own hash is a Python function


def current_node() -> int:
    """A number for the node that the engine evaluates on this thread, `OUTSIDE` where there is none."""
    if _graph_task_id() == -1:
        return OUTSIDE
    node: Any = _node()
    return OUTSIDE if node is None else int(node._sequence_nr())


def may_reuse(func: Any, operand: Tensor, made_by: int, newest: bool) -> bool:
    """Whether torch would write the result over ``operand`` without a mode, if nobody else holds that.

    Parameters
    ----------
    func : OpOverload
        One of those in `REUSING`.
    made_by : int
        The node during which the operand was allocated.
    newest : bool
        Nothing was allocated since.
    """
    if torch.is_grad_enabled() or operand._is_view():
        return False  # a view keeps its base, a second holder
    node: Any = torch._C._current_autograd_node()
    if node is None:
        return False
    own = made_by == int(node._sequence_nr())
    if func in _FILLS:
        return own and newest and not hasattr(type(node), "saved_tensors")  # not in a Function of the user's
    if not own:
        return True  # the gradient that had come first; a formula's sums have an operand of their own
    edges = [edge for edge in node.next_functions if edge[0] is not None]
    return len(set(edges)) < len(edges)  # one place is fed twice, as by x * x

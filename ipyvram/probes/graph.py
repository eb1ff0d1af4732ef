"""The autograd graph below some tensors comes in; what it saved for backward, and its leaves, goes out.

The graph is read through `node._raw_saved_*`, which neither unpacks a tensor nor checks its version. Reading
`node._saved_*` instead would re-run checkpointed forwards; older torch has nothing else, and is asked only where none is.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ipyvram.probes.tensors import tensors_in
from ipyvram.probes.unpacked import UNPACKED

#: Nodes visited at most in one `GraphWalk`: a thousand losses of a deep model.
MAX_NODES = 300_000

#: Whether torch shows what a node saved as it lies there.
SHOWN = hasattr(getattr(torch._C._autograd, "SavedTensor", None), "data")
_RAW = "_raw_saved_"
#: Types of nodes → what their saved tensors are called; None: they accumulate into a leaf.
_FIELDS: dict[type, tuple[str, ...] | None] = {}
#: What a formula saves of its own results carries no history either, but is no data.
_RESULTS = ("result", "output", "out", "mask", "indices", "logsumexp", "save_", "reserve", "total_weight", "buffer")


class Saved(NamedTuple):
    """A tensor that a node keeps for backward; ``data``: it was handed in, and nothing in the graph made it."""

    node: Any
    field: str
    tensor: Tensor
    data: bool


def node_of(root: Any) -> Any:
    """The node that made a tensor, or that a `GradientEdge` names; None for what has no history."""
    try:
        return getattr(root, "grad_fn", None) or getattr(root, "node", None)
    except RuntimeError:  # an undefined tensor, of which older torch leaves objects
        return None


def sequence_number() -> int:
    """Nodes that this thread makes from now on have this number or a higher one; 0 where torch does not tell."""
    current = getattr(torch._C._autograd, "_get_sequence_nr", None)
    return int(current()) if current is not None else 0


def nodes_below(
    roots: Iterable[Any], since: int = 0, seen: set[Any] | None = None, ends: Container[int] = ()
) -> Iterator[Any]:
    """Every node of the graph once.

    Parameters
    ----------
    roots : iterable of Tensor or GradientEdge
    since : int
        Pass over nodes with a lower sequence number: they were made before.
    seen : set, optional
        Nodes to pass over; those that are visited are added, and None where ``since`` cut something off.
    ends : container of int
        Sequence numbers of nodes that are visited, while nothing below them is.
    """
    stack = [node_of(root) for root in roots]
    seen = set() if seen is None else seen
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if since and node._sequence_nr() < since:
            seen.add(None)
            continue
        seen.add(node)
        yield node
        if not ends or node._sequence_nr() not in ends:
            stack += [parent for parent, _ in node.next_functions]


def leaf_of(node: Any) -> Tensor | None:
    """The tensor whose gradient a node accumulates, None for any other node."""
    if _fields(type(node)) is not None:
        return None
    leaf = node.variable
    return leaf if isinstance(leaf, Tensor) else None


def _fields(kind: type) -> tuple[str, ...] | None:
    try:
        return _FIELDS[kind]
    except KeyError:
        leaf = hasattr(kind, "variable") and not hasattr(kind, "saved_tensors")
        fields = None if leaf else tuple(name for name in dir(kind) if name.startswith(_RAW))
        _FIELDS[kind] = fields
        return fields


def packed_by(node: Any) -> Iterator[tuple[str, Any]]:
    """Field and content of every saved tensor of a node, as it lies there; nothing once the graph was freed."""
    fields = _fields(type(node)) or ()
    if fields and not SHOWN and node._sequence_nr() not in UNPACKED:
        return
    for name in fields:
        field = name[len(_RAW) :]
        try:
            saved = getattr(node, name) if SHOWN else _unpacked(node, field)
        except RuntimeError:
            continue  # the graph was freed; or, unpacked, the tensor was written to since
        for one in saved if isinstance(saved, (tuple, list)) else (saved,):
            content = getattr(one, "data", None) if SHOWN else one
            if content is not None:
                yield field, content


def _unpacked(node: Any, field: str) -> Any:
    """What a node saved, where no hook packed it; a result is detached from its node for that, which is no operator's work."""
    with torch._C._DisableTorchDispatch():  # type: ignore[no-untyped-call, attr-defined, unused-ignore]
        return getattr(node, f"_saved_{field}" if hasattr(type(node), f"_saved_{field}") else f"saved_{field}")


def saved_by(node: Any) -> Iterator[Saved]:
    """What a node keeps; nothing once the graph was freed."""
    if not _fields(type(node)):
        return
    for field, content in packed_by(node):
        if isinstance(content, Tensor):
            result = field.startswith(_RESULTS) or field == "tensors"
            data = not result and content.grad_fn is None and not content.requires_grad
            yield Saved(node, field, content, data)
        else:  # what a hook packed, such as a copy on another device
            yield from (Saved(node, field, packed, False) for packed in tensors_in(content))


def kept_by_context(node: Any) -> Iterator[Saved]:
    """What a Python Function keeps on its context beside `save_for_backward`; lives as long as the node."""
    if hasattr(type(node), "saved_tensors"):
        for key, value in list(getattr(node, "__dict__", {}).items()):
            yield from (Saved(node, key, tensor, False) for tensor in tensors_in(value))


class GraphWalk:
    """Walks graphs one after another; a node that two of them share is visited once.

    Attributes
    ----------
    complete : bool
        False when the walk ended at `MAX_NODES`.
    packed : bool
        True when hooks packed something away (checkpoints, offloading): then more is kept than can be seen.
    """

    def __init__(self) -> None:
        self.complete, self.packed = True, False
        self._seen: set[Any] = set()

    def below(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """``(category, tensor)`` for everything that the graph of ``tensor`` holds and no earlier one did: its leaves are
        parameters, with their gradients, and what it saved are activations."""
        for node in nodes_below([tensor], seen=self._seen):
            if len(self._seen) > MAX_NODES:
                self.complete = False
                return
            leaf = leaf_of(node)
            if leaf is not None:
                yield "parameters", leaf
                if leaf.grad is not None:
                    yield "gradients", leaf.grad
                continue
            for _, content in packed_by(node):
                if isinstance(content, Tensor):
                    yield "activations", content
                else:
                    self.packed = True

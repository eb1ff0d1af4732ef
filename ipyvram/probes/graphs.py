"""What an autograd graph keeps alive: tensors with a history come in, saved storages and leaves come out; nothing is unpacked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

#: Nodes visited at most in one look: a thousand losses of a deep model.
MAX_NODES = 300_000


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
        self.complete = True
        self.packed = False
        self._seen: set[Any] = set()
        self._fields: dict[type, tuple[str, ...]] = {}

    def below(self, tensor: Tensor) -> Iterator[tuple[bool, Tensor]]:
        """``(is a leaf, tensor)`` for everything that the graph of ``tensor`` holds and no earlier one did."""
        todo = [tensor.grad_fn]
        while todo:
            node: Any = todo.pop()
            if node is None or node in self._seen:
                continue
            if len(self._seen) >= MAX_NODES:
                self.complete = False
                return
            self._seen.add(node)
            todo.extend(parent for parent, _ in node.next_functions)
            leaf = getattr(node, "variable", None)
            if leaf is not None:
                yield True, leaf
            else:
                yield from ((False, saved) for saved in self._saved(node))

    def _saved(self, node: Any) -> Iterable[Tensor]:
        """As `Owners` reads them: `_raw_saved_*`, since reading `_saved_*` would run checkpointed forwards again."""
        kind = type(node)
        if kind not in self._fields:
            self._fields[kind] = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
        for name in self._fields[kind]:
            try:
                raws = getattr(node, name)
            except RuntimeError:  # the graph was freed
                continue
            for raw in raws if isinstance(raws, (tuple, list)) else (raws,):
                tensor = getattr(raw, "data", None)
                if isinstance(tensor, Tensor):
                    yield tensor
                elif tensor is not None:
                    self.packed = True

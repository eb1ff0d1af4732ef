"""A notebook before its cell runs comes in; what earlier cells left beside its variables goes out: graphs, values in ``Out``, errors.

Nothing is unpacked, and nothing is kept but by the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from ipyvram.probes import roots
from ipyvram.probes.graph import leaf_of, nodes_below, saved_by
from ipyvram.probes.reach import Storage, Walk
from ipyvram.report_rows import OF_ERROR, OF_GRAPH

#: Nodes read at most: a hundred losses of a deep model, some tens of milliseconds.
MAX_NODES = 20_000


class Left(NamedTuple):
    """A tensor and what holds it; ``saved``: a graph does, ``data``: which did not make it. See `graph.Saved`."""

    tensor: Tensor
    name: str
    saved: bool = False
    data: bool = False


def leftovers(namespace: Mapping[str, Any], variables: Iterable[tuple[str, Any]]) -> Iterator[Left]:
    """What is alive, and in nobody's variable.

    Parameters
    ----------
    namespace : mapping
        The notebook's.
    variables : iterable of (str, object)
        What its variables lead to, with names.
    """
    seen: set[Any] = set()
    yield from _graphs(((name, value) for name, value in variables if isinstance(value, Tensor)), seen)
    walk = _Collecting((namespace,))
    for prefix, held in (("", roots.outputs(namespace)), (OF_ERROR, roots.all_errors(namespace))):
        for name, value in held:
            walk.root(value, name)
        yield from (Left(tensor, prefix + path) for path, tensor in walk.tensors)
        yield from _graphs(walk.tensors, seen, prefix)
        walk.tensors.clear()


def _graphs(named: Iterable[tuple[str, Tensor]], seen: set[Any], prefix: str = "") -> Iterator[Left]:
    for name, tensor in named:
        below = nodes_below([tensor], seen=seen) if tensor.grad_fn is not None else iter(())
        where = f"{prefix}{OF_GRAPH}{name}"
        for node in islice(below, max(0, MAX_NODES - len(seen))):
            leaf = leaf_of(node)
            if leaf is None:
                yield from (Left(kept.tensor, where, saved=True, data=kept.data) for kept in saved_by(node))
            else:  # parameters of a model that is gone, say: a graph that was used still leads to them
                yield Left(leaf, where)


class _Collecting(Walk):
    """A walk that hands on the tensors themselves, with their paths."""

    def __init__(self, borders: Iterable[object]) -> None:
        super().__init__(borders)
        self.tensors: list[tuple[str, Tensor]] = []

    def _tensor(self, tensor: Tensor, path: str, role: str) -> list[Storage]:
        found = super()._tensor(tensor, path, role)
        if found:
            self.tensors.append((path, tensor))
        return found

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
from ipyvram.probes.keeping import earlier_models
from ipyvram.probes.reach import Storage, Walk
from ipyvram.probes.tensors import is_parameter

#: Nodes read at most: a hundred losses of a deep model, some tens of milliseconds.
MAX_NODES = 20_000


class Left(NamedTuple):
    """A tensor, what holds it, and what it is as far as that tells.

    ``activations`` and ``data`` are what a graph saved for backward, see `graph.Saved`; an empty category is unknown.
    ``graph_of`` and ``in_error`` are as in `recording.Claim`.
    """

    tensor: Tensor
    name: str
    category: str = ""
    graph_of: str = ""
    in_error: bool = False


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
    for name, value in [*roots.outputs(namespace), *(item for item in roots.variables(namespace) if item[0] == "_")]:
        walk.root(value, name)
    yield from walk.collected(seen)
    for name, value in roots.threads():
        walk.root(value, name)
    yield from walk.collected(seen)
    for name, value in roots.all_errors(namespace):
        walk.root(value, name)
    for left in walk.collected(seen):
        yield left._replace(name=f"traceback: {left.name}", graph_of="", in_error=True)
    for name, parameters in earlier_models(namespace).items():  # in a reference cycle, say
        for parameter in parameters:
            yield Left(parameter, f"previous {name}", "parameters")
            if parameter.grad is not None:
                yield Left(parameter.grad, f"previous {name}.grad", "gradients")


def left_by(error: BaseException, namespace: Mapping[str, Any]) -> Iterator[Left]:
    """What the frames of one error hold; ``namespace`` is not entered."""
    walk = _Collecting((namespace,))
    walk.root(error, type(error).__name__)
    yield from walk.collected(set())


def _graphs(named: Iterable[tuple[str, Tensor]], seen: set[Any]) -> Iterator[Left]:
    for name, tensor in named:
        below = nodes_below([tensor], seen=seen) if tensor.grad_fn is not None else iter(())
        where = f"graph of {name}"
        for node in islice(below, max(0, MAX_NODES - len(seen))):
            leaf = leaf_of(node)
            if leaf is None:
                for kept in saved_by(node):
                    yield Left(kept.tensor, where, "data" if kept.data else "activations", name)
                continue  # the rest are leaves: of a model that is gone, say
            yield Left(leaf, where, "parameters" if is_parameter(leaf) else "", name)
            if leaf.grad is not None:
                yield Left(leaf.grad, where + ".grad", "gradients", name)


class _Collecting(Walk):
    """A walk that hands on the tensors themselves, with their paths."""

    def __init__(self, borders: Iterable[object]) -> None:
        super().__init__(borders)
        self._tensors: list[tuple[str, Tensor, str]] = []

    def _tensor(self, tensor: Tensor, path: str, role: str) -> list[Storage]:
        found = super()._tensor(tensor, path, role)
        if found:
            category = self.categories[found[0]]
            self._tensors.append((path, tensor, "" if category == "other" else category))
        return found

    def collected(self, seen: set[Any]) -> Iterator[Left]:
        """What was reached since the last call, and what graphs below it keep; ``seen``: nodes that were read before."""
        tensors, self._tensors = self._tensors, []
        yield from (Left(tensor, path, category) for path, tensor, category in tensors)
        yield from _graphs(((path, tensor) for path, tensor, _ in tensors), seen)

"""Lists that hold a copy of a model's parameters: models and lists come in, yes or no goes out. Shapes only.

An average of the weights is often kept as ``[p.clone() for p in model.parameters()]``: no name tells whose it is, but the shapes do,
in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ipyvram.probes.tensors import shape_of

Shapes = tuple[tuple[int, ...], ...]

#: Weights and biases of two layers: fewer tensors may have such shapes by chance, as a batch and its targets.
LEAST = 4


def orders_of(models: Iterable[nn.Module]) -> frozenset[Shapes]:
    """The shapes of each model's parameters in their order, and of those that are trained."""
    found = set[Shapes]()
    for model in models:
        parameters = [p for p in model.parameters() if not is_lazy(p)]
        for members in (parameters, [p for p in parameters if p.requires_grad]):
            if len(members) >= LEAST:
                found.add(tuple(tuple(shape_of(p)) for p in members))
    return frozenset(found)


def is_copy(items: Collection[Any], orders: frozenset[Shapes]) -> bool:
    """Whether these are tensors of the shapes of a model's parameters, in their order, that autograd did not compute."""
    if len(items) < LEAST or not any(len(order) == len(items) for order in orders):
        return False
    if not all(isinstance(t, Tensor) and t.is_floating_point() and t.grad_fn is None for t in items):
        return False
    return tuple(tuple(shape_of(t)) for t in items) in orders


def copies_in(found: Iterable[tuple[str, Any]]) -> set[int]:
    """The identities of the tensors that stand in such lists, of what `namespace.holdings` gives."""
    models, lists = list[nn.Module](), dict[str, list[Tensor]]()
    for name, value in found:
        if isinstance(value, nn.Module):
            models.append(value)
        elif isinstance(value, Tensor) and name.endswith("]") and name[:-1].rpartition("[")[2].isdigit():
            lists.setdefault(name.rpartition("[")[0], []).append(value)
    if not lists:
        return set()
    orders = orders_of(models)
    return {id(tensor) for tensors in lists.values() if is_copy(tensors, orders) for tensor in tensors}

"""Containers that hold a tensor for each parameter: models and containers come in, what such a one is goes out. Nothing is computed.

An average of the weights is often kept as ``[p.clone() for p in model.parameters()]``, and so are momenta that a program
updates by hand: no name tells whose they are, but the shapes do, in their order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ipyvram.probes.tensors import plain_data, shape_of, tensors_in, wrapped

#: One tensor for each parameter: an average, a best state, gradients.
COPY = "copy"
#: The same, written in place since it was made, of parameters that no optimizer holds: what the program updates them with.
STATE = "state"

Shapes = tuple[tuple[int, ...], ...]
#: Path of a list, tuple or dict, and the container.
Container = tuple[str, Collection[Any]]

#: Weights and biases of two layers: fewer tensors may have such shapes by chance, as a batch and its targets.
LEAST = 4
#: Containers within a container that are looked into: momenta by parameter, each a tuple of two.
_DEPTH = 2


def copies_in(values: Iterable[object], containers: Collection[Container]) -> Iterator[tuple[str, Tensor, str]]:
    """The tensors of the containers that hold one for each parameter, or several; with their paths, and `COPY` or `STATE`.

    Parameters
    ----------
    values
        Models and optimizers among what `namespace.holdings` gives.
    """
    orders = _orders(list(values), containers)
    for name, container in containers:
        kind = _kind_of(container, orders)
        if kind:
            for path, tensor in _members(name, container):
                yield path, tensor, kind


def _orders(values: Collection[object], containers: Collection[Container]) -> dict[Shapes, bool]:
    """The shapes of each model's parameters in their order, of those that are trained, and of lists of leaves where there is no
    model; and whether an optimizer updates them."""
    found: dict[Shapes, bool] = {}
    held = _updated_by(values)

    def add(members: list[Tensor]) -> None:
        if len(members) >= LEAST:
            order = tuple(tuple(shape_of(p)) for p in members)
            found[order] = found.get(order, False) or any(id(p) in held for p in members)

    for model in (value for value in values if isinstance(value, nn.Module)):
        parameters: list[Tensor] = [p for p in model.parameters() if not is_lazy(p)]
        add(parameters)
        add([p for p in parameters if p.requires_grad])
    for _, container in containers:
        add(_leaves(container))
    return found


def _leaves(container: Collection[Any]) -> list[Tensor]:
    """The tensors of one that holds nothing but parameters; of any other none, at once."""
    found: list[Tensor] = []
    for _, tensor in _members("", container):
        if not (tensor.is_leaf and tensor.requires_grad):
            return []
        found.append(tensor)
    return found


def _updated_by(values: Iterable[object]) -> set[int]:
    """The identities of the tensors that optimizers hold, torch's or the program's own."""
    found = set[int]()
    for value in values:
        if isinstance(value, torch.optim.Optimizer):
            found.update(id(p) for group in value.param_groups for p in group["params"])
        elif not isinstance(value, (Tensor, nn.Module)):
            found.update(id(t) for t in tensors_in(list(vars(value).values())) if t.requires_grad)
    return found


def _kind_of(container: Collection[Any], orders: Mapping[Shapes, bool]) -> str:
    """`COPY` or `STATE` where it holds one tensor for each parameter, or several, that autograd did not compute; else empty."""
    begins = {order[0] for order in orders}
    shapes: list[tuple[int, ...]] = []
    written = False
    for _, tensor in _members("", container):
        shapes.append(tuple(shape_of(tensor)))
        if shapes[0] not in begins or tensor.requires_grad or not tensor.is_floating_point():
            return ""  # at once: it may be a long list of anything
        written = written or _is_written(tensor)
    for order, held in orders.items():
        times, rest = divmod(len(shapes), len(order))
        if times and not rest and _repeats(shapes, order, times):
            return STATE if written and not held else COPY
    return ""


def _repeats(shapes: list[tuple[int, ...]], order: Shapes, times: int) -> bool:
    """Whether these are an order several times over: one list after the other, or tuples with several for each parameter."""
    return tuple(shapes) in (order * times, tuple(shape for shape in order for _ in range(times)))


def _members(name: str, container: Collection[Any], depth: int = _DEPTH) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested lists, tuples and dicts, with their paths."""
    if isinstance(container, dict):
        items = [(f"[{key!r}]" if type(key) in (str, int) else "[…]", value) for key, value in list(container.items())]
    elif isinstance(container, (list, tuple)) and not plain_data(container):
        items = [(f"[{i}]", value) for i, value in enumerate(list(container))]
    else:
        return
    for key, value in items:
        if isinstance(value, Tensor):
            yield name + key, value
        elif (tensor := wrapped(value)) is not None:
            yield name + key, tensor
        elif depth > 1:
            yield from _members(name + key, value, depth - 1)


def _is_written(tensor: Tensor) -> bool:
    try:
        return tensor._version > 0
    except RuntimeError:  # one of inference mode has no version
        return False

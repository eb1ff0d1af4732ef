"""What operators are called by, given and return: names in, overloads out; arguments in, the tensors among them out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

aten = torch.ops.aten
HALVES = (torch.float16, torch.bfloat16)

_R = TypeVar("_R")


def overloads(*names: str) -> set[Any]:
    """Every overload of these operators that this torch has; of ``index.Tensor`` this one."""
    found: set[Any] = set()
    for name in names:
        packet_name, _, wanted = name.partition(".")
        packet = getattr(aten, packet_name, None)
        known = packet.overloads() if packet is not None else ()
        found |= {getattr(packet, overload) for overload in known if wanted in ("", overload)}
    return found


def entries_of(table: dict[Any, _R]) -> Callable[..., Callable[[_R], _R]]:
    """A decorator for functions that enters them in a table, by the operators that it is given the names of."""

    def of(*names: str) -> Callable[[_R], _R]:
        def enter(function: _R) -> _R:
            table.update(dict.fromkeys(overloads(*names), function))
            return function

        return enter

    return of


def argument(args: Any, kwargs: Any, position: int, name: str, default: Any = None) -> Any:
    """An argument, given by its place or by its name."""
    return args[position] if position < len(args) else kwargs.get(name, default)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments or results and in their lists, in order."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def written(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Those of its arguments that an operator writes into."""
    for position, name in _written_places(func):
        yield from tensors_in((argument(args, kwargs, position, name),))


@functools.cache
def _written_places(func: Any) -> tuple[tuple[int, str], ...]:
    arguments = func._schema.arguments
    return tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


def is_mask(index: Any) -> bool:
    """Whether an index says of each place if it is meant, and does not name places."""
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def dims_of(tensor: Tensor, dims: Any) -> tuple[int, ...]:
    """Dimensions as an operator was given them, counted from the front; all of them where it was given none."""
    given = (dims,) if isinstance(dims, int) else tuple(dims or range(tensor.dim()))
    return tuple(d % max(1, tensor.dim()) for d in given)

"""A notebook's variables come in; the tensors, models and optimizers that they lead to go out, each with its name."""

from __future__ import annotations

import functools
import gc
import types
from collections import UserDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.code_names import enclosed
from ipyvram.probes.tensors import objects_of, plain_data, wrapped
from ipyvram.probes.variables import OWN_COPY, variables_of

#: Instances of these packages' classes lead to half of the interpreter, and to none of the user's tensors.
_CLOSED = frozenset({
    "IPython", "ipykernel", "ipyvram", "ipywidgets", "logging", "matplotlib", "numpy", "pandas", "PIL", "pathlib",
    "asyncio", "threading", "multiprocessing", "traitlets", "zmq", "re", "inspect", "datetime", "argparse", "tqdm",
})  # fmt: skip
#: Depth into objects and containers, and how many of them: at the start and the end of a cell, some 20 µs each.
DEEP = 6, 200_000
SHALLOW = 1, 2_000  #: at each backward
RESULT = 5, 2_000  #: of what a model gives, at each forward
_LEAVES = (type, types.ModuleType, types.CodeType, str, bytes, int, float, complex, type(None))
CONTAINERS = (dict, list, tuple)
_YIELDED = (Tensor, nn.Module, torch.optim.Optimizer)
_leads_on = gc.is_tracked
#: Name and value → names and values of what it is made of.
Look = Callable[[str, Any], Iterable[tuple[str, Any]]]


def holdings(
    namespace: Mapping[str, Any],
    depth: int,
    limit: int,
    cut: Callable[[], object] | None = None,
    containers: list[tuple[str, Collection[Any]]] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Tensors, modules, optimizers (the user's own too) and gradient scalers, each once, with the shortest path that leads there.

    Parameters
    ----------
    namespace : mapping
        Variables; names that begin with an underscore are IPython's.
    depth : int
        How far to go into containers and objects: 0 gives the variables themselves.
    limit : int
        Objects looked at before the search ends.
    cut : callable
        Called when it ends so, with something left.
    containers : list, optional
        Takes the lists, tuples and dicts that begin with a tensor (not with a number, as losses do), or with such a container: a variable of a loop over one has
        the shorter path to its last tensor, and takes that from what is yielded.

    Yields
    ------
    name : str
        ``x``, ``batches[2]``, ``shadow['fc.weight']``, ``loader.dataset.tensors[0]``.
    value : object
    """
    queue = deque((n, v, 0) for n, v in list(namespace.items()) if not n.startswith("_"))
    seen: set[int] = set()
    roles, looks = _Roles(), _Looks(_LOOKS)
    whole = True
    while queue and limit > 0:
        limit -= 1
        name, value, level = queue.popleft()
        kind = type(value)  # not isinstance: that asks the object for its class, which lazy proxies answer by loading
        role = roles[kind]
        if role is _LEAF or id(value) in seen:
            continue
        seen.add(id(value))
        if role is _FOUND or _optimizes(value, kind):
            yield name, value
            if level < depth:
                queue.extend((inner, part, level + 1) for inner, part in _held_by(name, value, kind, depth))
        elif level < depth:
            if containers is not None and issubclass(kind, CONTAINERS) and begins_with_tensor(value):
                containers.append((name, value))
            room, before = limit - len(queue), len(queue)
            parts = islice(looks[kind](name, value), max(0, room) + 1)
            queue.extend((child, part, level + 1) for child, part in parts)
            if len(queue) - before > room:  # one more than there is room for tells that there are more
                queue.pop()
                whole = False
    if cut is not None and (queue or not whole):
        cut()


def member_path(path: str, key: str, kind: type, value: Any) -> str:
    """How one gets to a member of an object; the items of a mapping that it keeps to itself are its own: ``data['x']``."""
    kept = key.startswith("_") or (key == "data" and issubclass(kind, UserDict))
    if kept and issubclass(type(value), Mapping) and hasattr(kind, "__getitem__"):
        return path
    return f"{path}.{key}"


_LEAF, _OPEN, _FOUND = range(3)


class _Roles(dict[type, int]):
    """By its type, whether a value is wanted, leads on or neither: asked for each of many, and slow through metaclasses."""

    def __missing__(self, kind: type) -> int:
        found = _FOUND if issubclass(kind, _YIELDED) or kind.__name__ == "GradScaler" else _OPEN
        self[kind] = role = _LEAF if issubclass(kind, _LEAVES) else found
        return role


def begins_with_tensor(value: Any, depth: int = 2) -> bool:
    """Whether the first in a container is a tensor (not a number, as losses are), or a container that begins so."""
    first = next(iter(dict.values(value) if isinstance(value, dict) else value), None)
    held = wrapped(first)
    first = first if held is None else held
    deeper = depth > 1 and isinstance(first, CONTAINERS)
    return (isinstance(first, Tensor) and first.dim() > 0) or (deeper and begins_with_tensor(first, depth - 1))


def _optimizes(value: Any, kind: type) -> bool:
    """Whether an object of the user's is an optimizer, by what it can do; a trainer has a model, too."""
    if not (hasattr(kind, "step") and hasattr(kind, "zero_grad")):
        return False
    members = getattr(value, "__dict__", {}).values()
    return not any(issubclass(type(member), (nn.Module, torch.optim.Optimizer)) for member in members)


def _held_by(name: str, value: Any, kind: type, depth: int) -> list[tuple[str, Any]]:
    """Optimizers that one is wrapped around (SAM, Lookahead); in a search that goes deep, objects that a model keeps to itself
    (its trainer, its optimizer)."""
    if issubclass(kind, torch.optim.Optimizer):
        return [(f"{name}.{key}", part) for key, part in vars(value).items() if isinstance(part, torch.optim.Optimizer)]
    if issubclass(kind, nn.Module) and depth > 1:
        return [(f"{name}.{key}", part) for key, part in objects_of(value)]
    return []


def _slots(name: str, value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """Members of an object whose class has ``__slots__``."""
    for owner in kind.__mro__:
        if "__slots__" in vars(owner):
            for key, member in vars(owner).items():
                if type(member) is types.MemberDescriptorType and not key.startswith("__"):
                    try:
                        yield f"{name}.{key}", member.__get__(value)
                    except AttributeError:  # not assigned yet
                        continue


class _Looks(dict[type, Look]):
    """By its type, what a container or an object is made of, as far as it can be reached without running code of the user's.

    What Python's collector does not track leads nowhere: numbers, texts, and dicts and tuples of nothing else.
    """

    def __missing__(self, kind: type) -> Look:
        self[kind] = look = _look_of(kind)
        return look


def _look_of(kind: type) -> Look:
    for base, look in _LOOKS.items():
        if issubclass(kind, base):
            return look
    return _nothing if kind.__module__.partition(".")[0] in _CLOSED else _members


def _dict_items(name: str, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, item in list(dict.items(value)):
        if _leads_on(item):
            yield f"{name}[{key!r}]" if type(key) in (str, int) else f"{name}[…]", item


def _items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if len(value) and not plain_data(value):
        items = list(islice(value, DEEP[1]))
        yield from ((f"{name}[{i}]", item) for i, item in enumerate(items) if _leads_on(item))


def _set_items(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield from ((f"{name}[…]", item) for item in list(islice(value, DEEP[1])) if _leads_on(item))


def _closure(name: str, value: types.FunctionType) -> Iterator[tuple[str, Any]]:
    return enclosed(value)


def _waiting(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if value.gi_frame is not None and not value.gi_running and OWN_COPY.isdisjoint(value.gi_code.co_names):
        yield from variables_of(value.gi_frame).items()


def _bound_to(name: str, value: types.MethodType) -> Iterator[tuple[str, Any]]:
    yield name, value.__self__


def _partial_parts(name: str, value: functools.partial[Any]) -> Iterator[tuple[str, Any]]:
    yield name, value.func
    yield from ((f"{name}.args[{i}]", item) for i, item in enumerate(value.args))


def _members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    kind, members = type(value), getattr(value, "__dict__", None)
    if type(members) is dict:
        found = list(members.items())
        yield from ((member_path(name, key, kind, item), item) for key, item in found if _leads_on(item))
    yield from _slots(name, value, kind)


def _nothing(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    return ()


#: How to look into a kind of object; the first that fits.
_LOOKS: dict[type, Look] = {
    dict: _dict_items,
    list: _items,
    tuple: _items,
    deque: _items,
    set: _set_items,
    frozenset: _set_items,
    types.FunctionType: _closure,
    types.GeneratorType: _waiting,
    types.MethodType: _bound_to,
    functools.partial: _partial_parts,
}

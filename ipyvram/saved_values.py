"""A plain value (a container, an object's attributes, a generator of random numbers) comes in; what puts it back comes out.

Containers are compared by the identity of what they hold, and written only where they have changed.
"""

from __future__ import annotations

import collections
import io
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

Restore = Callable[[], None]


def generator(value: Any) -> Restore:
    """A generator of random numbers, of torch, numpy or the standard library."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: _ignore(value.set_state(state))
    if isinstance(value, np.random.Generator):
        inner = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", inner)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    plain = value.getstate()
    return lambda: value.setstate(plain)


def array(array: np.ndarray[Any, Any]) -> Restore:
    """The elements of an array."""
    copy = array.copy()

    def restore() -> None:
        if array.dtype == object or array.tobytes() != copy.tobytes():
            array[...] = copy

    return restore


def container(value: Any) -> Restore | None:
    """What a container or a buffer holds; None for what is neither."""
    if isinstance(value, dict):
        return mapping(value)
    if isinstance(value, list):
        items = list(value)
        return lambda: None if _identical(value, items) else list.__setitem__(value, slice(None), items)
    if isinstance(value, collections.deque):
        queued = list(value)
        return lambda: None if _identical(value, queued) else _refill(value, value.extend, queued)
    if isinstance(value, set):
        members = set(value)
        return lambda: None if value == members else _refill(value, value.update, members)
    if isinstance(value, bytearray):
        content = bytes(value)
        return lambda: value.__setitem__(slice(None), content)
    if isinstance(value, (io.StringIO, io.BytesIO)) and not value.closed:
        return _buffer(value)
    if isinstance(value, types.CellType):
        return _cell(value)
    return None


def _refill(container: Any, add: Callable[[Any], None], items: Iterable[Any]) -> None:
    container.clear()
    add(items)


def _ignore(value: object) -> None:
    """A setter's value."""


def mapping(mapping: dict[Any, Any]) -> Restore:
    """A dictionary's keys, values (by identity) and order."""
    saved = dict(mapping)
    kind: Any = collections.OrderedDict if isinstance(mapping, collections.OrderedDict) else dict

    def restore() -> None:
        for key in [key for key in mapping if key not in saved]:
            kind.__delitem__(mapping, key)
        for key, value in saved.items():
            if key not in mapping or dict.__getitem__(mapping, key) is not value:
                kind.__setitem__(mapping, key, value)
        if not _identical(list(mapping), list(saved)):
            kind.clear(mapping)
            for key, value in saved.items():
                kind.__setitem__(mapping, key, value)

    return restore


def class_attributes(kind: type) -> Restore:
    """The attributes of a class."""
    saved = dict(vars(kind))

    def restore() -> None:
        for name in [n for n in vars(kind) if n not in saved]:
            delattr(kind, name)
        for name, value in saved.items():
            if vars(kind).get(name) is not value:
                setattr(kind, name, value)

    return restore


def own_class(value: Any) -> Restore:
    """The class of an object: parametrizations change that of a module, and a lazy one does when it knows its shape."""
    kind = type(value)

    def restore() -> None:
        if type(value) is not kind:
            value.__class__ = kind

    return restore


def slots(kind: type) -> Iterator[tuple[str, Any]]:
    """Names and descriptors of the slots that a class, or a base of it, defines in Python."""
    for base in kind.__mro__:
        if "__slots__" in vars(base):
            for name, member in vars(base).items():
                if isinstance(member, types.MemberDescriptorType):
                    yield name, member


def slot_values(value: Any) -> Restore:
    """What an object's slots hold."""
    missing = object()

    def read(descriptor: Any) -> Any:
        try:
            return descriptor.__get__(value)
        except AttributeError:
            return missing

    saved = [(descriptor, read(descriptor)) for _, descriptor in slots(type(value))]

    def restore() -> None:
        for descriptor, before in saved:
            if read(descriptor) is not before:
                descriptor.__delete__(value) if before is missing else descriptor.__set__(value, before)

    return restore


def _cell(cell: types.CellType) -> Restore:
    try:
        content = cell.cell_contents
    except ValueError:
        return lambda: None
    return lambda: setattr(cell, "cell_contents", content)


def _buffer(buffer: Any) -> Restore:
    content, place = buffer.getvalue(), buffer.tell()

    def restore() -> None:
        buffer.seek(0)
        buffer.truncate()
        buffer.write(content)
        buffer.seek(place)

    return restore


def _identical(a: Iterable[Any], b: Iterable[Any]) -> bool:
    a, b = list(a), list(b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))

"""Variables come in; every object that code using them could change comes out, each once, with the path to it.

Only plain storage is followed (containers, attributes, slots, closures, and the notebook's globals that its functions
name): no property runs, no library module is entered.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import re
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils.data.dataloader import _BaseDataLoaderIter

from ipyvram.code_names import globals_of
from ipyvram.saved_values import slots

#: Objects looked at; a program that holds more in plain Python is not copied in passing.
MAX_OBJECTS = 3_000_000

_ATOMS = (
    int, float, complex, str, bytes, bool, type(None), type(Ellipsis), range, slice, types.ModuleType, types.CodeType,
    types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout, np.generic,
    np.dtype, types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType,
)  # fmt: skip

#: Packages whose objects are not the user's to have changed: the shell, figures, locks, compiled code.
_FOREIGN = (
    "IPython", "ipykernel", "ipyvram", "matplotlib", "logging", "traitlets", "weakref", "importlib", "_pytest",
    "torch._dynamo", "torch._inductor", "torch._functorch",
)  # fmt: skip


class Found(NamedTuple):
    """An object and how it was reached."""

    path: str
    value: Any


class CannotRestore(ValueError):
    """Something the cell uses could not be put back after a trial."""


def walk(names: Iterable[str], namespace: Mapping[str, Any], roots: Iterable[Found] = ()) -> list[Found]:
    """All objects with a state of their own that ``names`` of ``namespace``, or ``roots``, lead to.

    Raises
    ------
    CannotRestore
        One of them is of a kind that cannot be put back, or there are more than `MAX_OBJECTS`.
    """
    stack = [Found(name, namespace[name]) for name in names if name in namespace] + list(roots)
    seen: set[int] = set()
    found: list[Found] = []
    while stack:
        path, value = stack.pop()
        if isinstance(value, _ATOMS) or id(value) in seen or _is_foreign(type(value)):
            continue
        seen.add(id(value))
        if len(seen) > MAX_OBJECTS:
            raise CannotRestore(f"{path.partition('.')[0]} holds more than {MAX_OBJECTS:,} objects: too many to copy")
        why = _obstacle(value)
        if why:
            raise CannotRestore(f"{_tidy(path)} {why}")
        if not isinstance(value, type) or _is_users(value, namespace):
            found.append(Found(path, value))
            stack.extend(_children(path, value, namespace))
    return found


def _is_foreign(kind: type) -> bool:
    return str(kind.__module__).startswith(_FOREIGN)


def _is_users(kind: type, namespace: Mapping[str, Any]) -> bool:
    """Whether a class was written in the notebook."""
    return bool(kind.__module__ == namespace.get("__name__", "__main__"))


def _obstacle(value: Any) -> str:
    """Why a value could not be put back, as the end of a sentence; empty when it can."""
    if isinstance(value, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
        return "is a generator, and what a trial takes from it cannot be put back: create it in the cell"
    if isinstance(value, _BaseDataLoaderIter) or _is_builtin_iterator(value):
        return "is an iterator, and what a trial takes from it cannot be put back: create it in the cell"
    if isinstance(value, io.IOBase) and not isinstance(value, (io.StringIO, io.BytesIO)):
        standard = (sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        if not value.closed and value not in standard and _writable(value):
            return "is a file open for writing, and what a trial writes stays written: open it in the cell"
    if isinstance(value, (socket.socket, subprocess.Popen)):
        return "is connected to another process, which cannot be put back: create it in the cell"
    if isinstance(value, (threading.Thread, BaseProcess)) and value.is_alive():
        return "is running at the same time, and what it does cannot be put back: start it in the cell"
    if isinstance(value, (UninitializedBuffer, UninitializedParameter)):
        return "gets its shape from the first batch (a lazy module), which cannot be undone: run the model once before"
    if isinstance(value, getattr(torch.cuda, "CUDAGraph", ())):
        return "is a CUDA graph, which holds on to its addresses: capture it in the cell"
    return ""


def _is_builtin_iterator(value: Any) -> bool:
    """Whether it keeps its place where Python code cannot write it: ``iter([])``, ``zip``, ``enumerate``."""
    return hasattr(type(value), "__next__") and not hasattr(value, "__dict__") and not isinstance(value, io.IOBase)


def _writable(file: io.IOBase) -> bool:
    try:
        return file.writable()
    except (ValueError, OSError):
        return False


def _children(path: str, value: Any, namespace: Mapping[str, Any]) -> Iterator[Found]:
    if isinstance(value, types.FunctionType):
        yield from _of_function(path, value, namespace)
    for kinds, parts in _PARTS:
        if isinstance(value, kinds):
            yield from parts(path, value)
            break
    yield from _of_object(path, value, namespace)


def _of_dict(path: str, value: dict[Any, Any]) -> Iterator[Found]:
    yield from (Found(f"{path}[{_key(key)}]", item) for key, item in list(value.items()))
    yield from (Found(f"{path} key", key) for key in list(value) if isinstance(key, Tensor))


def _of_sequence(path: str, value: Sequence[Any]) -> Iterator[Found]:
    return (Found(f"{path}[{i}]", item) for i, item in enumerate(value) if not isinstance(item, _ATOMS))


def _of_set(path: str, value: AbstractSet[Any]) -> Iterator[Found]:
    return (Found(f"{path} item", item) for item in value if not isinstance(item, _ATOMS))


def _of_tensor(path: str, value: Tensor) -> Iterator[Found]:
    return (Found(f"{path}.{name}", getattr(value, name)) for name in _inner_tensors(value))


def _of_array(path: str, value: np.ndarray[Any, Any]) -> Iterator[Found]:
    if value.dtype == object:
        yield from (Found(f"{path} item", item) for item in value.flat)


def _of_cell(path: str, value: types.CellType) -> Iterator[Found]:
    with contextlib.suppress(ValueError):  # not assigned yet
        yield Found(path, value.cell_contents)


def _of_method(path: str, value: types.MethodType) -> Iterator[Found]:
    yield Found(path, value.__self__)
    yield Found(path, value.__func__)


def _of_partial(path: str, value: functools.partial[Any]) -> Iterator[Found]:
    return (Found(path, part) for part in (value.func, value.args, value.keywords))


def _of_static(path: str, value: Any) -> Iterator[Found]:
    yield Found(path, value.__func__)


def _of_property(path: str, value: property) -> Iterator[Found]:
    return (Found(path, part) for part in (value.fget, value.fset) if part is not None)


#: How to look into a kind of object, beside its attributes; the first that fits.
_PARTS: tuple[tuple[tuple[type, ...], Callable[[str, Any], Iterator[Found]]], ...] = (
    ((dict,), _of_dict),
    ((list, tuple, collections.deque), _of_sequence),
    ((set, frozenset), _of_set),
    ((Tensor,), _of_tensor),
    ((np.ndarray,), _of_array),
    ((types.CellType,), _of_cell),
    ((types.MethodType,), _of_method),
    ((functools.partial,), _of_partial),
    ((staticmethod, classmethod), _of_static),
    ((property,), _of_property),
)


def _of_function(path: str, function: types.FunctionType, namespace: Mapping[str, Any]) -> Iterator[Found]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Found(name, cell)
    yield Found(f"{path} defaults", function.__defaults__)
    yield Found(f"{path} defaults", function.__kwdefaults__)
    if function.__globals__ is namespace:
        yield from (Found(name, namespace[name]) for name in globals_of(function.__code__) if name in namespace)


def _of_object(path: str, value: Any, namespace: Mapping[str, Any]) -> Iterator[Found]:
    kind = type(value)
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, (dict, types.MappingProxyType)):
        for name, item in list(attributes.items()):
            if not _is_own_business(kind, name, item, namespace):
                yield Found(f"{path}.{name}", item)
    for name, descriptor in slots(kind):
        try:
            yield Found(f"{path}.{name}", descriptor.__get__(value))
        except AttributeError:
            pass  # not assigned
    if not isinstance(value, type):
        yield Found(kind.__name__, kind)


def _is_own_business(kind: type, name: str, item: Any, namespace: Mapping[str, Any]) -> bool:
    """Iterators inside a library's object, and a loader's workers, which it starts anew with each epoch."""
    if isinstance(item, _BaseDataLoaderIter):
        return name == "_iterator"
    inside = isinstance(item, types.GeneratorType) or _is_builtin_iterator(item)
    return inside and not _is_users(kind, namespace) and not issubclass(kind, _BaseDataLoaderIter)


def _inner_tensors(tensor: Tensor) -> tuple[str, ...]:
    """Attributes that hold the parts of a tensor made of tensors."""
    flatten = getattr(type(tensor), "__tensor_flatten__", None)
    return tuple(flatten(tensor)[0]) if flatten is not None else ()


def _key(key: Any) -> str:
    return repr(key) if isinstance(key, (str, int)) else type(key).__name__


def _tidy(path: str) -> str:
    """``model._modules['layer'].weight`` as people write it."""
    return re.sub(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", r".\1", path)

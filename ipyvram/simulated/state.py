"""The notebook's Python state, set aside before a cell runs for an estimate and put back afterwards, object by object.

Containers and objects are restored in place, so whoever holds them sees them as before. What cannot be put back (a
generator that was begun earlier) is refused before the cell runs.
"""

from __future__ import annotations

import collections
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

from ipyvram import saved_values
from ipyvram.code_names import enclosed, globals_of
from ipyvram.global_state import GlobalState
from ipyvram.saved_values import Restore
from ipyvram.simulated.refusal import CannotEstimate

MAX_OBJECTS = 200_000
MAX_ARRAY_BYTES = 256 << 20  # NumPy arrays set aside; larger ones are data and taken to be read only
_LONG = 10_000  # items from which a list is data: it is put back, but not looked into
_CONTAINERS = (dict, list, collections.deque, set, types.CellType)
#: Of these only what they lead to can change.
_WITHOUT_STATE = (
    tuple, frozenset, types.FunctionType, types.MethodType, types.ModuleType, torch.Tensor, torch.Generator, type,
)  # fmt: skip


class State:
    """Values of variables, contents of containers, attributes of objects, and random number generators."""

    def __init__(self, namespace: dict[str, Any], note: Callable[[str], None]) -> None:
        self._namespace, self._note = namespace, note
        self._undo: list[Restore] = []
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # keeps what was set aside alive, so that no address is used twice
        self._array_bytes = 0

    def save(self, extra: Iterable[Any] = ()) -> None:
        """Set aside everything that hangs on the namespace and on ``extra``."""
        self._undo.append(GlobalState().restore)
        self._undo.append(saved_values.mapping(self._namespace))
        queue = collections.deque([*(v for k, v in self._namespace.items() if k != "__builtins__"), *extra])
        while queue and len(self._seen) < MAX_OBJECTS:
            item = queue.popleft()
            if id(item) in self._seen or isinstance(item, (str, bytes, int, float, type(None))):
                continue
            self._seen.add(id(item))
            self._kept.append(item)
            queue.extend(self._set_aside(item))
        if queue:
            self._note(
                f"more than {MAX_OBJECTS:,} objects hang on the notebook's variables; the rest was not set aside"
            )

    def restore(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()
        self._kept.clear()

    def _set_aside(self, item: Any) -> Iterable[Any]:
        """Remember the item's contents; gives what is inside it."""
        if isinstance(item, _CONTAINERS) and (contents := saved_values.container(item)) is not None:
            self._undo.append(contents)
        elif isinstance(item, np.ndarray):
            self._array(item)
        elif isinstance(item, torch.Generator) and item.device.type == "cpu":
            self._undo.append(saved_values.generator(item))
        elif not isinstance(item, _WITHOUT_STATE):
            return self._instance(item)
        return _inside(item)

    def _array(self, item: np.ndarray[Any, Any]) -> None:
        if item.dtype.hasobject or not item.flags.writeable:
            return
        if self._array_bytes + item.nbytes > MAX_ARRAY_BYTES:
            self._note(f"a NumPy array of {item.nbytes >> 20} MiB was not set aside: the cell must not write into it")
            return
        self._array_bytes += item.nbytes
        before = item.copy()
        self._undo.append(lambda: np.copyto(item, before))

    def _instance(self, item: Any) -> Iterable[Any]:
        attributes = getattr(item, "__dict__", None)
        if not isinstance(attributes, dict) or not _is_ours_to_restore(type(item)):
            return ()
        before = list(attributes.values())
        self._undo += saved_values.mapping(attributes), saved_values.own_class(item)
        if isinstance(item, _SingleProcessDataLoaderIter):
            item._sampler_iter = iter(item._index_sampler)  # a fresh one: the old one goes on where it was
        return before


def _inside(item: Any) -> Iterable[Any]:
    """What a container holds, unless it is data, and what a function or a method leads to."""
    if isinstance(item, types.FunctionType):
        return _captured(item)
    if isinstance(item, types.MethodType):
        return (item.__self__, item.__func__)
    if not isinstance(item, (dict, list, tuple, collections.deque, frozenset)) or len(item) >= _LONG:
        return ()
    return list(item.values() if isinstance(item, dict) else item)


def _is_ours_to_restore(kind: type) -> bool:
    """Instances of the user's classes and of torch's; other packages' objects look after themselves."""
    root = kind.__module__.partition(".")[0]
    if root in ("torch", "torchvision", "transformers", "peft", "timm", "argparse", "types"):
        return True
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return kind.__module__ in ("__main__", "__mp_main__")
    from ipyvram.probes.stacks import is_user_file

    return is_user_file(file)


def _captured(function: types.FunctionType) -> Iterator[Any]:
    """Cells and values of a function's closure, and its defaults; its globals are the namespace, or a module that stays as it is."""
    yield from function.__closure__ or ()
    yield from (value for _, value in enclosed(function))
    yield from function.__defaults__ or ()
    if function.__globals__.get("__name__") == "__main__":
        yield function.__globals__


def mentions(code: types.CodeType | None, namespace: dict[str, Any], wanted: frozenset[str]) -> bool:
    """Whether code, or a function, a class or an object of one of the notebook that it leads to by name, names one of ``wanted``."""
    open_codes, seen = [code] if code is not None else [], set[int]()
    while open_codes:
        names = globals_of(open_codes.pop())
        if names & wanted:
            return True
        for value in [namespace[name] for name in names & namespace.keys()]:
            if id(value) not in seen:
                seen.add(id(value))
                kind = type(value) if type(value).__module__ == namespace.get("__name__") else value
                own = vars(kind).values() if type(kind) is type else (value,)
                open_codes += [part.__code__ for part in own if isinstance(part, types.FunctionType)]
    return False


def refuse_begun_generators(namespace: dict[str, Any], code: types.CodeType | None) -> None:
    """Refuse code that uses a generator of an earlier cell.

    Raises
    ------
    CannotEstimate
        Names the variable.
    """
    names = globals_of(code) if code is not None else set[str]()
    for name in sorted(names & namespace.keys()):
        if isinstance(namespace[name], types.GeneratorType):
            raise CannotEstimate(
                f"{name} is a generator that was made in an earlier cell: running this cell would advance it, and it cannot "
                "be put back; make it in this cell"
            )

"""The notebook's Python state, set aside before a cell runs for an estimate and put back afterwards, object by object.

Containers and objects are restored in place, so whoever holds them sees them as before. What cannot be put back (a
generator that was begun earlier) is refused before the cell runs.
"""

from __future__ import annotations

import collections
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ipyvram.code_names import enclosed, globals_of
from ipyvram.global_state import GlobalState
from ipyvram.simulated.refusal import CannotEstimate

MAX_OBJECTS = 200_000
MAX_ARRAY_BYTES = 256 << 20  # NumPy arrays set aside; larger ones are data and taken to be read only
_LONG = 10_000  # items from which a list is data: it is put back, but not looked into

Undo = Callable[[], object]


class State:
    """Values of variables, contents of containers, attributes of objects, and random number generators."""

    def __init__(self, namespace: dict[str, Any], note: Callable[[str], None]) -> None:
        self._namespace, self._note = namespace, note
        self._undo: list[Undo] = []
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # keeps what was set aside alive, so that no address is used twice
        self._array_bytes = 0

    def save(self, extra: Iterable[Any] = ()) -> None:
        """Set aside everything that hangs on the namespace and on ``extra``."""
        self._undo.append(GlobalState().restore)
        self._namespace_undo()
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

    def _namespace_undo(self) -> None:
        before = dict(self._namespace)

        def undo() -> None:
            for name in [n for n in self._namespace if n not in before]:
                del self._namespace[name]
            self._namespace.update(before)

        self._undo.append(undo)

    # -- one object --------------------------------------------------------------------------------------------------

    def _set_aside(self, item: Any) -> Iterable[Any]:
        """Remember the item's contents; gives what is inside it."""
        if isinstance(item, (list, collections.deque)):
            return self._sequence(item)
        if isinstance(item, dict):
            return self._mapping(item)
        if isinstance(item, set):
            self._undo.append(_set_undo(item, set(item)))
            return ()
        if isinstance(item, (tuple, frozenset)):
            return item if len(item) < _LONG else ()
        if isinstance(item, np.ndarray):
            self._array(item)
            return ()
        if isinstance(item, torch.Generator):
            if item.device.type == "cpu":
                self._undo.append(functools.partial(item.set_state, item.get_state()))
            return ()
        if isinstance(item, types.FunctionType):
            return _captured(item)
        if isinstance(item, types.MethodType):
            return (item.__self__, item.__func__)
        if isinstance(item, (types.ModuleType, torch.Tensor, type)):
            return ()
        return self._instance(item)

    def _sequence(self, item: Any) -> Iterable[Any]:
        before = list(item)

        def undo() -> None:
            if len(item) != len(before) or any(a is not b for a, b in zip(item, before, strict=True)):
                item.clear()
                item.extend(before)

        self._undo.append(undo)
        return before if len(before) < _LONG else ()

    def _mapping(self, item: dict[Any, Any]) -> Iterable[Any]:
        before = dict(item)

        def undo() -> None:
            same = len(item) == len(before) and all(
                a is b and v is w for (a, v), (b, w) in zip(dict.items(item), before.items(), strict=True)
            )
            if not same and isinstance(item, collections.OrderedDict):
                item.clear()
                item.update(before)
            elif not same:
                dict.clear(item)  # a subclass may do more than keep what it is given
                dict.update(item, before)

        self._undo.append(undo)
        return before.values() if len(before) < _LONG else ()

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
        iterator = _dataloader_iterator(item)
        attributes = getattr(item, "__dict__", None)
        if not isinstance(attributes, dict) or not _is_ours_to_restore(type(item)):
            return ()
        before, kind = dict(attributes), type(item)

        def undo() -> None:
            if type(item) is not kind:  # a lazy layer that knows its shape now, a layer that got a parametrization
                item.__class__ = kind
            attributes.clear()
            attributes.update(before)

        self._undo.append(undo)
        if iterator:
            item._sampler_iter = iter(item._index_sampler)  # a fresh one: the old one goes on where it was
        return before.values()


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


def _dataloader_iterator(item: Any) -> bool:
    from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

    return isinstance(item, _SingleProcessDataLoaderIter)


def _captured(function: types.FunctionType) -> Iterator[Any]:
    """Values in a function's closure and defaults; its globals are the namespace, or a module that stays as it is."""
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


def _set_undo(item: set[Any], before: set[Any]) -> Undo:
    def undo() -> None:
        if item != before:
            item.clear()
            item.update(before)

    return undo

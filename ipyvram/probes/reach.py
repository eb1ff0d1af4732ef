"""What Python objects reach: roots with their names come in, the tensors below them with their paths go out.

Nothing is called and no property is read: only containers, instance dictionaries, closures and frames are looked into. Modules,
classes and the notebook's own machinery are borders, so that a variable does not reach everything there is.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ipyvram.code_names import enclosed
from ipyvram.probes.namespace import member_path
from ipyvram.probes.tensors import NO_STORAGE
from ipyvram.probes.variables import locals_of

#: Objects looked into at most: a notebook that holds more plain Python data than this is told so by `Walk.complete`.
MAX_OBJECTS = 400_000
#: Items of one list of plain data looked at before it is taken for plain data throughout.
PLAIN = 64

_ATOMS = (
    int, float, complex, str, bytes, bytearray, bool, type(None), range, slice, type(Ellipsis), type(NotImplemented),
    torch.dtype, torch.device, torch.Size, torch.Generator, torch.UntypedStorage, torch.Stream,
    type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, types.GetSetDescriptorType, property,
)  # fmt: skip
#: Modules whose objects lead to none of the user's tensors, and the frames of an error to thousands of them: torch's compiler has
#: symbols, guards and graphs of tensors that take no memory. What it was given stands in its frames.
_BORDERS = frozenset({
    "IPython", "ipykernel", "ipyvram", "traitlets", "zmq", "tornado", "asyncio", "logging", "threading", "weakref",
    "importlib", "_frozen_importlib", "concurrent", "jupyter_client", "comm", "traceback", "sympy",
    "torch._dynamo", "torch._inductor", "torch._functorch", "torch._guards", "torch._subclasses", "torch.fx", "torch._ops",
})  # fmt: skip


_OPERATORS = (torch._ops.OperatorBase, torch._ops.OpOverloadPacket)

#: Python's collector does not track numbers, texts, and tuples of nothing else.
_leads_on = gc.is_tracked

#: An object and its path → what it holds, with the paths, and categories where they are known.
Look = Callable[[Any, str], Iterable[tuple[Any, ...]]]


class Storage(NamedTuple):
    """A storage by its identity; several tensors may share it."""

    key: int
    device: str
    nbytes: int


def storage_of(tensor: Tensor) -> Storage | None:
    """The storage of a tensor; None where it has none or takes no memory (meta, sparse, not materialised)."""
    try:
        storage = tensor.untyped_storage()
        if storage.device.type == "meta" or not storage.nbytes():
            return None
        return Storage(storage._cdata, str(storage.device), storage.nbytes())
    except NO_STORAGE:
        return None


class Walk:
    """A walk over roots one after another; what an earlier root reached, a later one does not reach again.

    Parameters
    ----------
    borders : iterable of objects
        Dictionaries not to be entered: the notebook's namespace, `sys.modules`.
    roles : mapping of int to str
        Categories that are known, by the identity of the tensor.
    storage : callable
        The storage of a tensor, None where it is of no interest.

    Attributes
    ----------
    storages : dict of Storage to str
        Every storage reached, and the path by which it was reached first.
    categories : dict of Storage to str
        What it is, as far as its place tells.
    modules : dict of int to str
        id of every `nn.Module` reached, and the path.
    complete : bool
        False when the walk ended at `MAX_OBJECTS`.
    """

    def __init__(
        self,
        borders: Iterable[object] = (),
        roles: Mapping[int, str] | None = None,
        storage: Callable[[Tensor], Storage | None] = storage_of,
    ) -> None:
        self.roles, self._storage = roles or {}, storage
        self.storages: dict[Storage, str] = {}
        self.categories: dict[Storage, str] = {}
        self.modules: dict[int, str] = {}
        self.graphs: list[tuple[str, Tensor]] = []  #: tensors with a history, and their paths
        self.complete = True
        self._seen = {id(b) for b in borders}
        self._looks = _Looks()
        self._left = MAX_OBJECTS

    def reached(self, item: object) -> bool:
        """Whether a root led to this object."""
        return id(item) in self._seen

    def root(self, value: Any, path: str) -> list[Storage]:
        """Walk from one object; the storages that only now were reached."""
        fresh: list[Storage] = []
        todo: deque[tuple[Any, str, str]] = deque([(value, path, "")])
        while todo:  # the shortest path first
            item, path, role = todo.popleft()
            look = self._looks[type(item)]
            if look is _none or id(item) in self._seen:
                continue
            self._left -= 1
            if self._left < 0:
                self.complete = False
                break
            self._seen.add(id(item))
            if look is _tensor_parts:
                fresh += self._tensor(item, path, role)
            elif look is _module_parts:
                self.modules[id(item)] = path
            for child, name, *given in look(item, path):
                todo.append((child, name, given[0] if given else role))
        return fresh

    def _tensor(self, tensor: Tensor, path: str, role: str) -> list[Storage]:
        if tensor.grad_fn is not None:
            self.graphs.append((path, tensor))
        storage = self._storage(tensor)
        if storage is None or storage in self.storages:
            return []
        self.storages[storage] = path
        leaf = tensor.is_leaf and tensor.requires_grad
        self.categories[storage] = (
            role
            or self.roles.get(id(tensor))
            or ("parameters" if leaf else "outputs" if tensor.grad_fn is not None else "other")
        )
        return [storage]


class _Looks(dict[type, Look]):
    """By its type, how to look into an object: what it holds, with paths as one would write them, and the category of its tensors
    where the place tells. Asked for each of many, so what leads nowhere (`_leads_on`) gets no path."""

    def __missing__(self, kind: type) -> Look:
        self[kind] = look = self._of(kind)
        return look

    def _of(self, kind: type) -> Look:
        if issubclass(kind, _ATOMS):
            return _none
        for base, look in _LOOKS.items():
            if issubclass(kind, base):
                return look
        package, _, rest = str(kind.__module__).partition(".")
        inside = package in _BORDERS or f"{package}.{rest.partition('.')[0]}" in _BORDERS
        return _none if inside else _attributes


def _attributes(item: Any, path: str) -> Iterator[tuple[Any, str]]:
    try:
        found = object.__getattribute__(item, "__dict__")
    except AttributeError:
        found = None
    if isinstance(found, dict):
        for name, value in list(found.items()):
            if _leads_on(value):
                yield value, member_path(path, name, type(item), value)
    else:
        for value in gc.get_referents(item):
            yield value, path


def _tensor_parts(tensor: Tensor, path: str) -> Iterator[tuple[Any, ...]]:
    if tensor.is_leaf and tensor.grad is not None:
        yield tensor.grad, path + ".grad", "gradients"
    for name, value in list(getattr(tensor, "__dict__", {}).items()):
        yield value, f"{path}.{name}"


_MEMBERS = {"_parameters": "parameters", "_buffers": "buffers", "_modules": ""}


def _module_parts(module: nn.Module, path: str) -> Iterator[tuple[Any, ...]]:
    for name, value in list(vars(module).items()):
        if name in _MEMBERS and isinstance(value, dict):
            for key, member in list(value.items()):
                yield member, f"{path}.{key}", _MEMBERS[name]
        elif _leads_on(value):
            plain = issubclass(type(value), Tensor) and not value.requires_grad
            yield value, f"{path}.{name}", "buffers" if plain else ""


def _optimizer_parts(optimizer: torch.optim.Optimizer, path: str) -> Iterator[tuple[Any, ...]]:
    for name, value in list(vars(optimizer).items()):
        if name == "state" and isinstance(value, dict):
            for i, state in enumerate(list(value.values())):
                yield state, f"{path}.state[{i}]", "optimizer_state"
        else:
            yield value, f"{path}.{name}", ""


def _dict_parts(found: Mapping[Any, Any], path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(next(iter(found), None), _OPERATORS):
        return  # a table of the compiler's: what each of thousands of operators is made of
    for key, value in list(found.items()):
        if _leads_on(value):
            yield value, f"{path}[{key!r}]" if isinstance(key, (str, int)) else path
        if _leads_on(key):
            yield key, path


def _items(found: Iterable[Any], path: str) -> Iterator[tuple[Any, str]]:
    values = list(found)
    if len(values) > PLAIN and all(isinstance(v, _ATOMS) for v in values[:PLAIN]) and isinstance(values[-1], _ATOMS):
        return
    for i, value in enumerate(values):
        if _leads_on(value):
            yield value, f"{path}[{i}]"


def _function_parts(function: types.FunctionType, path: str) -> Iterator[tuple[Any, str]]:
    for name, value in enclosed(function):
        yield value, f"{name} in {path}()"
    yield function.__defaults__, path
    yield function.__kwdefaults__, path


def _method_parts(method: types.MethodType, path: str) -> Iterator[tuple[Any, str]]:
    yield method.__self__, path
    yield method.__func__, path


def _partial_parts(found: functools.partial[Any], path: str) -> Iterator[tuple[Any, str]]:
    yield found.func, path
    yield found.args, path
    yield found.keywords, path


def _generator_parts(found: Any, path: str) -> Iterator[tuple[Any, str]]:
    for value in gc.get_referents(found):  # reading `f_locals` of a frame that goes on would pin what it holds now
        yield value, path


def _frame_parts(frame: types.FrameType, path: str) -> Iterator[tuple[Any, str]]:
    if frame.f_locals is not frame.f_globals:
        for name, value in locals_of(frame).items():
            yield value, f"{name} in {frame.f_code.co_name}()"


def _traceback_parts(traceback: types.TracebackType, path: str) -> Iterator[tuple[Any, str]]:
    steps: list[types.TracebackType] = [traceback]
    while (following := steps[-1].tb_next) is not None:
        steps.append(following)
    for step in steps:  # the user's own frame first: it names what it hands on
        yield step.tb_frame, path


def _exception_parts(error: BaseException, path: str) -> Iterator[tuple[Any, str]]:
    for value in (
        error.__traceback__,
        error.__cause__,
        error.__context__,
        error.args,
        getattr(error, "__dict__", None),
    ):
        yield value, path


def _none(item: Any, path: str) -> Iterable[tuple[Any, str]]:
    return ()


#: How to look into a kind of object; the first that fits.
_LOOKS: dict[type, Look] = {
    Tensor: _tensor_parts,
    nn.Module: _module_parts,
    torch.optim.Optimizer: _optimizer_parts,
    dict: _dict_parts,
    list: _items,
    tuple: _items,
    set: _items,
    frozenset: _items,
    deque: _items,
    types.FunctionType: _function_parts,
    types.MethodType: _method_parts,
    functools.partial: _partial_parts,
    types.GeneratorType: _generator_parts,
    types.CoroutineType: _generator_parts,
    types.AsyncGeneratorType: _generator_parts,
    types.FrameType: _frame_parts,
    types.TracebackType: _traceback_parts,
    BaseException: _exception_parts,
    weakref.ReferenceType: _none,
}

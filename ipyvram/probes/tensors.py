"""From any value to the plain tensors in it and the storages below them; nothing is computed, unpacked or kept."""

from __future__ import annotations

import gc
from collections import UserDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_tracing_state = torch._C._get_tracing_state
_TRACER = "Tracer"
_ATOMS = frozenset(
    {int, float, bool, str, type(None)}
)  # most of what is looked at, and the slowest to be told from the rest
_DTYPES: dict[torch.dtype, str] = {}
_SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def tensors_in(value: Any, limit: int = 1000) -> Iterator[Tensor]:
    """Tensors in nested lists, tuples, dicts and simple objects (dataclasses, model outputs), at most ``limit``."""
    stack, seen, entered = [value], 0, set[int]()
    while stack and seen < limit:
        item = stack.pop()
        if type(item) in _ATOMS:
            continue
        if isinstance(item, Tensor):
            seen += 1
            yield item
            continue
        if id(item) in entered:
            continue  # what holds itself, or stands there twice
        entered.add(id(item))
        if isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple)):
            if not plain_data(item):
                stack.extend(reversed(item))
        elif hasattr(type(item), "__dataclass_fields__"):
            stack.extend(reversed(vars(item).values()) if hasattr(item, "__dict__") else ())


#: What a value can be: see `Kinds`.
OTHER, TENSOR, SEVERAL, NAMED = 0, 1, 2, 3


class Kinds(dict[type, int]):
    """By its type, whether a value is a tensor, a sequence or a dict: `issubclass` would go through a metaclass each time."""

    def __missing__(self, kind: type) -> int:
        found = OTHER
        if issubclass(kind, Tensor):
            found = TENSOR
        elif issubclass(kind, (list, tuple)):
            found = SEVERAL
        elif issubclass(kind, (dict, UserDict)):
            found = NAMED
        self[kind] = found
        return found


def plain_data(items: list[Any] | tuple[Any, ...]) -> bool:
    """Whether this is a long list of numbers or strings, which nobody needs to search."""
    return len(items) > 64 and isinstance(items[0], (int, float, complex, str, bytes, type(None)))


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor itself, or the ones that a wrapper (quantised, distributed), a sparse tensor or a transform is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            part = getattr(tensor, name)
            if isinstance(part, Tensor):  # a distributed tensor names its mesh here too
                yield from plain_tensors(part)
    elif tensor.layout in _SPARSE_PARTS:
        with torch._C._DisableTorchDispatch():  # type: ignore[no-untyped-call, attr-defined, unused-ignore]
            parts = [getattr(tensor.detach(), part)() for part in _SPARSE_PARTS[tensor.layout]]
        yield from (part for part in parts if part.layout is torch.strided)
    elif torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        yield from plain_tensors(torch._C._functorch.get_unwrapped(tensor))
    else:
        yield tensor


#: What `untyped_storage` raises for tensors that have none.
NO_STORAGE = (NotImplementedError, RuntimeError, ValueError)


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """The storage of a plain tensor; None for a sparse one, one of a transform, or one not materialised (lazy modules)."""
    try:
        return tensor.untyped_storage()
    except NO_STORAGE:
        return None


def storage_key(tensor: Tensor) -> int | None:
    """Identity of the storage of a tensor, of a sparse one of its first part; None where there is none."""
    storage = storage_of(tensor)
    if storage is None and tensor.layout is not torch.strided:
        storage = next((storage_of(part) for part in plain_tensors(tensor) if part is not tensor), None)
    return None if storage is None else storage._cdata


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Sizes as plain numbers. While `torch.jit` traces, torch would give tensors and write the question into the program."""
    tracing = _tracing_state()
    if tracing is None:
        try:
            return tensor.shape
        except RuntimeError:  # a nested tensor of strided layout has rows of several sizes
            return ()
    # An operator that is made of others (a convolution) has excluded the tracer meanwhile; then its state must not be touched.
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_TRACER)
    torch._C._dispatch_tls_set_dispatch_key_excluded(_TRACER, False)
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined, unused-ignore]
    try:
        return tuple(tensor.shape)
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined, unused-ignore]
        torch._C._dispatch_tls_set_dispatch_key_excluded(_TRACER, excluded)


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``."""
    known = _DTYPES.get(dtype)
    return known if known is not None else _DTYPES.setdefault(dtype, str(dtype).removeprefix("torch."))


def gradient_of(tensor: Tensor) -> Tensor | None:
    """``.grad``; not asked for where torch would warn: a module has results for parameters while `functional_call` runs."""
    return tensor.grad if tensor.is_leaf or tensor.retains_grad else None


def is_parameter(tensor: Tensor) -> bool:
    """Whether a tensor is, by its type, part of a model; lazy and subclassed parameters too."""
    return isinstance(tensor, nn.Parameter)


_OF_ANY_MODULE = frozenset(vars(nn.Module()))
_LOOKED_INTO = (Tensor, nn.Module, Mapping, list, tuple)


def frozen_in(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What `torch.jit.freeze` made constants of a model's code: its parameters, which it has no more, by the code's names."""
    if isinstance(module, torch.jit.ScriptModule) and next(module.parameters(), None) is None:
        try:
            constants = module.code_with_constants[1].const_mapping
        except (RuntimeError, AttributeError):  # it has no forward
            return
        yield from ((name, value) for name, value in constants.items() if isinstance(value, Tensor))


def wrapped(value: object) -> Tensor | None:
    """The tensor of an object that has one and no more, as a variable of keras; None of any other."""
    members = getattr(value, "__dict__", None)
    found = [m for m in members.values() if isinstance(m, Tensor)] if type(members) is dict else []
    return found[0] if len(found) == 1 else None


def objects_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds as plain attributes, but for numbers and what `attributes_of` looks into."""
    for key, value in list(vars(module).items()):
        if key not in _OF_ANY_MODULE and gc.is_tracked(value) and not issubclass(type(value), _LOOKED_INTO):
            yield key, value


def attributes_of(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that modules hold as plain attributes, alone or in containers, with their paths; none that autograd follows."""
    seen = set[int]()
    for path, module in root.named_modules():
        for key, value in list(vars(module).items()):
            # What Python's collector does not track leads nowhere: numbers, and tuples of them.
            if key not in _OF_ANY_MODULE and gc.is_tracked(value) and id(value) not in seen:
                seen.add(id(value))  # many share one configuration
                for tensor in tensors_in(value, 100):
                    if not tensor.requires_grad:
                        yield f"{path}.{key}".lstrip("."), tensor

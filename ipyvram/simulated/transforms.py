"""``vmap``, ``grad`` and their like: what they are called with, and what their function uses, comes in before they wrap any of it.

Inside a transform a tensor of an earlier cell is held by a wrapper in C++, where nothing can be exchanged any more. So it is
decided where the outermost begins: if the function uses anything on the card, what it is given belongs there as well.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch._functorch.apis as apis
import torch._functorch.eager_transforms as eager
from torch import Tensor, nn

from ipyvram.code_names import enclosed
from ipyvram.patches import Patches

#: Every transform of `torch.func` goes through one of these, which takes a function first.
_BEGINNINGS = (
    (apis, "vmap_impl"),
    (eager, "grad_and_value_impl"),
    (eager, "_vjp_with_argnums"),
    (eager, "_jvp_with_argnums"),
)
_MAX_OBJECTS = 10_000


def install(patches: Patches, meet: Callable[[Iterable[Tensor]], None]) -> None:
    """Call ``meet`` with the tensors that a transform is about to use; undone with ``patches``."""
    for module, name in _BEGINNINGS:
        original = getattr(module, name, None)
        if original is not None:
            patches.set(module, name, _announced(original, meet))


def _announced(original: Callable[..., Any], meet: Callable[[Iterable[Tensor]], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def begin(*args: Any, **kwargs: Any) -> Any:
        meet(_used((args, kwargs)))
        return original(*args, **kwargs)

    return begin


def _used(value: Any) -> Iterator[Tensor]:
    """Tensors among values, in models, and in what functions enclose or name."""
    stack, seen = [value], set[int]()
    while stack and len(seen) < _MAX_OBJECTS:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        else:
            stack.extend(_parts(item))


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    if isinstance(item, (list, tuple)):
        return item
    if isinstance(item, nn.Module):
        return (*item.parameters(), *item.buffers())
    if isinstance(item, functools.partial):
        return (item.func, *item.args, *item.keywords.values())
    if isinstance(item, types.MethodType):
        return (item.__self__, item.__func__)
    if isinstance(item, types.FunctionType):
        return (*dict(enclosed(item)).values(), *_named(item))
    return ()


def _named(function: types.FunctionType) -> Iterator[Any]:
    """Variables that the code of a function names, and the code of functions in it; a library's own lead nowhere."""
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
        for step in dis.get_instructions(code):
            if step.opname == "LOAD_GLOBAL" and step.argval in function.__globals__:
                value = function.__globals__[step.argval]
                if not isinstance(value, (type, types.ModuleType)):
                    yield value

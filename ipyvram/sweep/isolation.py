"""Whether one trial left memory for the next to trip over: nothing comes in; live bytes, and who holds them, come out.

On CUDA the allocator's counter says so. Elsewhere live tensors are counted, with what their graphs keep for backward.
"""

from __future__ import annotations

import gc
import re
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ipyvram.devices import cublaslt_workspace_bytes
from ipyvram.probes.graph import nodes_below, packed_by
from ipyvram.probes.tensors import NO_STORAGE
from ipyvram.sweep.watch import synchronize
from ipyvram.units import format_bytes

#: What may differ between trials: small change of libraries.
TOLERANCE_BYTES = 10**6


class Leftover(NamedTuple):
    """Bytes that are live beyond the baseline, and what holds them in words."""

    bytes: int
    holder: str

    def __str__(self) -> str:
        return f"{format_bytes(self.bytes)} left by the trial, held by {self.holder}"


class Baseline:
    """What was live before the first trial."""

    def __init__(self) -> None:
        self._workspaces = settle()
        tensors = _live_tensors()
        self._tensors = {id(t): weakref.ref(t) for t in tensors}
        self._bytes = sum(_storages_of(tensors).values())
        self._cuda = _cuda_allocated()
        _make_workspaces(self._workspaces)

    def leftover(self) -> Leftover | None:
        """What the last trial left, if that is more than `TOLERANCE_BYTES`; call it when all has been restored."""
        try:
            return self._leftover()
        finally:
            _make_workspaces(self._workspaces)

    def _leftover(self) -> Leftover | None:
        settle()
        tensors = _live_tensors()
        new = [t for t in tensors if (known := self._tensors.get(id(t))) is None or known() is not t]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            more = _cuda_allocated() - self._cuda
        else:
            # All of them, not the new ones only: a gradient that was put back is a new tensor in place of an old one.
            more = sum(_storages_of(tensors).values()) - self._bytes
        del tensors
        if more <= TOLERANCE_BYTES:
            return None
        new.sort(key=_weight, reverse=True)
        return Leftover(more, next((name for t in new[:20] if (name := _holder(t))), _UNKNOWN))


_UNKNOWN = "something that Python does not show (a library's own memory)"


def settle() -> int:
    """Collect garbage, wait for the device and give its cache back, and cuBLAS's workspaces, whose bytes are returned."""
    gc.collect()
    synchronize()
    workspaces = 0
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        clear, before = getattr(torch._C, "_cuda_clearCublasWorkspaces", None), _cuda_allocated()
        if clear is not None:
            clear()  # they stay until the process ends, and belong to no trial
        workspaces = before - _cuda_allocated()
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    return workspaces


def _make_workspaces(wanted: int) -> None:
    """As many workspaces of cuBLAS as there were in ``wanted`` bytes: this thread's, then the engine's.

    A thread has its own, and asking for cuBLAS's handle makes it. Where cuBLASLt has another beside it, a product does.
    """
    if wanted <= 0:
        return
    before = _cuda_allocated()
    _use_cublas(product=False)
    one, own = _cuda_allocated() - before, cublaslt_workspace_bytes()
    counts = [(handles, products) for handles in (1, 2) for products in range(handles + 1)]
    handles, products = next((c for c in counts if c[0] * one + c[1] * own == wanted), (2 if wanted > one else 1, 0))
    if products:
        _use_cublas(product=True)
    if handles > 1:
        with torch.enable_grad():
            begin = torch.empty(0, device="cuda", requires_grad=True)
            _OnEngine.apply(begin, products > 1).backward(torch.empty(0, device="cuda"))


def _use_cublas(product: bool) -> None:
    torch.cuda.current_blas_handle()
    if product:
        x = torch.empty(16, 16, device="cuda")
        torch.addmm(x[0], x, x)  # with a bias: of cuBLASLt


class _OnEngine(torch.autograd.Function):
    """Uses cuBLAS where its backward runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, product: bool) -> Tensor:
        ctx.product = product
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _use_cublas(ctx.product)
        return gradient, None


def _cuda_allocated() -> int:
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return 0
    # What was asked for: the same tensors, put back, may come to lie in larger blocks. Without such a count, the blocks.
    stats = [torch.cuda.memory_stats_as_nested_dict(i) for i in range(torch.cuda.device_count())]
    return sum(_current(s, "requested_bytes") or _current(s, "allocated_bytes") for s in stats)


def _current(stats: dict[str, Any], kind: str) -> int:
    return int(stats.get(kind, {}).get("all", {}).get("current", 0))


def _live_tensors() -> list[Tensor]:
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Tensor)}
    return [o for o in objects if type(o) in kinds]


def _storages_of(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by storage: of the tensors, and of what their graphs saved for backward."""
    found: dict[int, int] = {}
    for tensor in tensors:
        _add(found, tensor)
    for tensor in _saved(tensors):
        _add(found, tensor)
    return found


def _add(found: dict[int, int], tensor: Tensor) -> None:
    try:
        storage = tensor.untyped_storage()
        found[storage._cdata] = 0 if storage.device.type == "meta" else storage.nbytes()
    except NO_STORAGE:
        pass  # sparse, or not materialised


def _saved(tensors: list[Tensor]) -> Iterator[Tensor]:
    """Tensors that graphs hold."""
    for node in nodes_below(tensors):
        yield from (content for _, content in packed_by(node) if isinstance(content, Tensor))


def _weight(tensor: Tensor) -> int:
    return sum(_storages_of([tensor]).values())


def _holder(tensor: Tensor) -> str:
    """The name under which a module or a class holds a tensor, directly or inside other objects; empty if none does."""
    modules = {id(vars(m)): name for name, m in list(sys.modules.items()) if isinstance(m, types.ModuleType)}
    level: list[tuple[Any, str]] = [(tensor, "")]
    seen = {id(tensor)}
    for _ in range(6):
        above: list[tuple[Any, str]] = []
        seen |= {id(level), id(above), *map(id, level)}
        for value, path in level:
            for referrer in gc.get_referrers(value):
                if id(referrer) in modules:
                    name = next((k for k, v in referrer.items() if v is value), "?")
                    where = modules[id(referrer)]
                    return f"{name}{path}" if where == "__main__" else f"{where}.{name}{path}"
                if id(referrer) in seen or isinstance(referrer, types.FrameType):
                    continue
                seen.add(id(referrer))
                if isinstance(referrer, type):  # through its dictionary
                    return re.sub(r"^(\w+)\['(\w+)'\]", r"\1.\2", f"{referrer.__name__}{path}")
                above.append((referrer, _step(referrer, value) + path))
        level = above[:2000]
    return ""


def _step(referrer: Any, value: Any) -> str:
    if isinstance(referrer, dict):
        key = next((k for k, v in referrer.items() if v is value), None)
        return f"[{key!r}]" if isinstance(key, (str, int)) else "[…]"
    if isinstance(referrer, (list, tuple, set)):
        return "[…]"
    attributes = getattr(referrer, "__dict__", {})
    name = next((k for k, v in attributes.items() if v is value), "") if isinstance(attributes, dict) else ""
    return f".{name}" if name else ""

"""Snapshots of the CUDA allocator: nothing comes in; torch's own dicts go out, without what torch would load for them."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def whole() -> dict[str, Any]:
    """Segments now and the history, as `torch.cuda.memory._snapshot` gives them."""
    with _no_compiler_loaded():
        return dict(torch.cuda.memory._snapshot())


def segments() -> list[dict[str, Any]]:
    """Segments now; an older torch reads the whole history along with them, see `segments_alone`."""
    options: dict[str, Any] = {"include_traces": False} if segments_alone() else {}
    with _no_compiler_loaded():
        return list(torch.cuda.memory_snapshot(**options))


def segments_alone() -> bool:
    """Whether this torch can leave the history out."""
    return "include_traces" in inspect.signature(torch.cuda.memory_snapshot).parameters


@contextmanager
def _no_compiler_loaded() -> Iterator[None]:
    """Torch asks `torch._inductor` for frames of compiled code, and the question loads it: seconds, where nothing is compiled."""
    if "torch._inductor" in sys.modules or "_inductor" in vars(torch):
        yield
        return
    stand_in = types.SimpleNamespace()
    vars(torch)["_inductor"] = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_inductor") is stand_in:  # else another thread has loaded it
            del vars(torch)["_inductor"]

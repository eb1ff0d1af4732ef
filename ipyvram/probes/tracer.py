"""`torch.jit` tracing a program: meanwhile our dispatch mode is away.

Below any mode torch fails to trace a convolution of parameters that want gradients, and writes other operators into the program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ipyvram.patches import Patches

#: Where torch begins to trace: a function, one for an exporter, and a method of a module.
_BEGINS = tuple(
    (owner, name + ending)
    for owner, name in (
        (torch._C, "_create_function_from_trace"),
        (torch._C, "_create_graph_by_tracing"),
        (torch._C.ScriptModule, "_create_method_from_trace"),
    )
    for ending in ("", "_with_dict")
)


def watch_tracer(patches: Patches, away: Callable[[], AbstractContextManager[None]]) -> None:
    """Until ``patches`` are undone, the tracer runs within ``away()``."""
    for owner, name in _BEGINS:
        if name in vars(owner):
            patches.set(owner, name, _within(getattr(owner, name), away))


def _within(original: Callable[..., Any], away: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    @functools.wraps(original)
    def traced(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True  # in the traceback of the program's own error
        with away():
            return original(*args, **kwargs)

    return traced

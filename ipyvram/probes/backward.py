"""When the autograd engine begins and ends: seen where torch attaches its own logging to a graph.

Nothing hangs on a tensor or a node, and no frame of ours is in a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.graph as autograd_graph

from ipyvram.patches import Patches
from ipyvram.probes.uncompiled import leave_alone, uncompiled

Begin = Callable[[Any], Callable[[], None]]


def watch_engine(patches: Patches, begin: Begin) -> None:
    """Have every backward told, until the patches are undone.

    `_engine_run_backward` calls `_register_logging_hooks_on_whole_graph` when its log level is DEBUG, and what that returns
    when the engine is done. Both names are private: where they are missing, the function itself is wrapped instead.

    Parameters
    ----------
    begin : callable
        Called with the roots of each backward; what it returns is called when that is over.
    """
    log = getattr(autograd_graph, "log", None)
    attach = getattr(autograd_graph, "_register_logging_hooks_on_whole_graph", None)
    if log is None or attach is None:
        _wrap_engine(patches, begin)
        return

    tell = uncompiled(begin)

    def register(roots: Any) -> Callable[[], None]:
        theirs = attach(roots) if log.getEffectiveLevel() <= logging.DEBUG else None
        ours = tell(roots)
        end = None if ours is None else uncompiled(ours)

        def unregister() -> None:
            if end is not None:
                end()
            if theirs is not None:
                theirs()

        leave_alone(unregister.__code__)
        return unregister

    leave_alone(register.__code__)
    patches.set(autograd_graph, "log", _AlwaysDebug(log))
    patches.set(autograd_graph, "_register_logging_hooks_on_whole_graph", register)


def _wrap_engine(patches: Patches, begin: Begin) -> None:
    original = autograd_graph._engine_run_backward

    def _engine_run_backward(t_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        end = begin(t_outputs)
        try:
            return original(t_outputs, *args, **kwargs)
        finally:
            end()

    patches.set(autograd_graph, "_engine_run_backward", _engine_run_backward)
    patches.set(torch.autograd, "_engine_run_backward", _engine_run_backward)


class _AlwaysDebug:
    """A logger that claims the DEBUG level and is otherwise the one it stands for."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def getEffectiveLevel(self) -> int:
        return logging.DEBUG

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

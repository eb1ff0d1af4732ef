"""When a program turns a model to evaluation between two traces: its first forwards may be the peak, with a batch of their own.

No optimizer steps there, and a module hook would be in what the program pickles; so `nn.Module.eval` tells, while somebody listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

#: Calls of the evaluated model that are traced: the second finds the result of the first still alive.
FORWARDS = 2
#: Traces that may be begun: an evaluation may have nothing to run on.
MAX_BEGUN = 2


class Evaluations:
    """Calls ``began`` when a model turns to evaluation, until a whole one was seen.

    Parameters
    ----------
    began : callable
        Starts a trace.
    """

    def __init__(self, began: Callable[[], None]) -> None:
        self._began = began
        self._listening: Callable[[nn.Module], Any] | None = None
        self._restore: Callable[[], None] = lambda: None
        self._model = self._forwards = self._begun = 0

    def listen(self) -> None:
        """From here on a call of `nn.Module.eval` tells."""
        if self._listening is not None or self._forwards > FORWARDS or self._begun >= MAX_BEGUN:
            return
        original = nn.Module.eval

        def evaluate(module: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._begun += 1
                self._began()
            return original(module)

        evaluate.__name__, evaluate.__doc__ = original.__name__, original.__doc__
        self._listening = evaluate
        nn.Module.eval = evaluate  # type: ignore[method-assign, assignment]
        self._restore = lambda: setattr(nn.Module, "eval", original)

    def silence(self) -> None:
        """Take it away, unless the program has put something of its own in its place."""
        if self._listening is not None and nn.Module.eval is self._listening:
            self._restore()
        self._listening = None

    def forward(self, module: nn.Module) -> bool:
        """A root module is about to run in a trace that an evaluation began; whether that has seen enough."""
        if not module.training and self._model in (0, id(module)):
            self._model = id(module)
            self._forwards += 1
        return self._forwards > FORWARDS

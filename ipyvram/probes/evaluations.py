"""When a program begins to evaluate between two traces: the first forwards may be the peak, with a batch of their own.

No optimizer steps there, and a module hook would be in what the program pickles. So `nn.Module.eval` tells, and where gradients are
turned off at a place in the program at which no trace has seen that, the next forward does.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as global_hooks

from ipyvram.patches import Patches
from ipyvram.probes.dispatch import agree, agree_after_compiled
from ipyvram.probes.phases import hide_hooks
from ipyvram.probes.stacks import OURS
from ipyvram.probes.uncompiled import leave_alone, uncompiled

#: Calls of the evaluated model that are traced: the second finds the result of the first still alive.
FORWARDS = 2
#: Traces that calls of `eval` may begin: there may be nothing to run on.
MAX_TURNED = 2

_PASSED = (OURS, os.path.join(os.path.dirname(os.path.abspath(torch.__file__)), ""))


class Evaluations:
    """Calls ``began`` when an evaluation begins and no trace is running: a model turns to evaluation, until a whole one was seen,
    or a first forward runs in a new place without gradients.

    Parameters
    ----------
    began : callable
        Starts a trace; called with the module that is about to run and its arguments, with None and nothing where none is yet.
    """

    def __init__(self, began: Callable[[nn.Module | None, tuple[Any, ...]], None]) -> None:
        self._began = uncompiled(began)
        self._switches, self._hidden = Patches(), Patches()
        self._places: dict[tuple[int, int], CodeType] = {}  # where gradients were turned off; keeps identities unique
        self._between = False  # two traces
        self._turning: Callable[[nn.Module], Any] | None = None
        self._restore: Callable[[], None] = lambda: None
        self._expected: Any = None  # hook that waits for a forward …
        self._context: Any = None  # … until this one turns gradients on again
        self._model = self._forwards = self._turned = 0
        self._whole = False

    def start(self) -> None:
        """From here on every place is noted at which gradients are turned off, and a trace may begin or end within any."""
        for switch in (torch.no_grad, torch.inference_mode):
            self._follow(switch)
        agree_after_compiled(self._switches)

    def _follow(self, switch: Any) -> None:
        turn_off, turn_on = switch.__enter__, switch.__exit__

        def enter(context: Any) -> Any:
            if torch.is_grad_enabled():
                self._off(context, sys._getframe(1))
            return turn_off(context)

        def leave(context: Any, *error: Any) -> Any:
            if context is self._context:
                self._expect_nothing()
            ended = turn_on(context, *error)
            agree()  # a trace may have begun or ended meanwhile
            return ended

        for original, ours in ((turn_off, enter), (turn_on, leave)):
            leave_alone(ours.__code__)
            self._switches.set(switch, original.__name__, functools.wraps(original)(ours))

    @uncompiled
    def _off(self, context: Any, frame: FrameType | None) -> None:
        """Gradients are about to be turned off, for the program by the innermost frame that is not torch's."""
        while frame is not None and frame.f_code.co_filename.startswith(_PASSED):
            frame = frame.f_back
        if frame is None or (place := (id(frame.f_code), frame.f_lasti)) in self._places:
            return
        self._places[place] = frame.f_code
        if self._between and self._expected is None:
            hide_hooks(self._hidden)
            self._context = context
            self._expected = global_hooks.register_module_forward_pre_hook(self._first_forward)

    @uncompiled
    def _first_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._expect_nothing()
        if not torch.is_grad_enabled():
            self._began(module, args)

    def _expect_nothing(self) -> None:
        if self._expected is not None:
            self._expected.remove()
            self._expected = self._context = None
            self._hidden.undo()

    def listen(self) -> None:
        """No trace is running: what begins from here on is told."""
        self._between, self._model, self._forwards = True, 0, 0
        if self._turning is not None or self._whole or self._turned >= MAX_TURNED:
            return
        original = nn.Module.eval

        def evaluate(module: Any) -> Any:
            if not torch.compiler.is_compiling():
                self._turned += 1
                self._began(None, ())
            return original(module)

        leave_alone(evaluate.__code__)
        evaluate.__name__, evaluate.__doc__ = original.__name__, original.__doc__
        self._turning = evaluate
        nn.Module.eval = evaluate  # type: ignore[method-assign, assignment]
        self._restore = lambda: setattr(nn.Module, "eval", original)

    def silence(self) -> None:
        """A trace begins: nothing has to be told. What the program has put in the place of ours stays."""
        self._between = False
        self._expect_nothing()
        if self._turning is not None and nn.Module.eval is self._turning:
            self._restore()
        self._turning = None

    def stop(self) -> None:
        """Take everything away."""
        self.silence()
        self._switches.undo()

    def forward(self, module: nn.Module) -> bool:
        """A root module is about to run in a trace that an evaluation began; whether that has seen enough."""
        evaluates = not module.training or not torch.is_grad_enabled()
        if evaluates and self._model in (0, id(module)):
            self._model = id(module)
            self._forwards += 1
        self._whole |= self._forwards > FORWARDS
        return self._forwards > FORWARDS

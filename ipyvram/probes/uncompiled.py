"""Functions of ours that torch calls: its compiler leaves them as they are, wherever it runs the program around them.

After a graph break (each `loss.backward()` is one) a function that `torch.compile` was given goes on in Python, and the compiler
takes every function called there for the program's. Of ours it would make code with guards on hooks that are soon gone.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import CodeType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# Private names: where a torch has other ones, its compiler takes our functions for the program's, and nothing else is lost.
_compiler: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)

#: Gives what the compiler does with functions on this thread, and replaces it; None: it does nothing.
set_compiler: Callable[[Any], Any] = getattr(_compiler, "set_eval_frame", lambda callback: None)


def leave_alone(code: CodeType) -> None:
    """Have the compiler not begin with this function; what it calls is another matter."""
    with contextlib.suppress(AttributeError):
        if hasattr(_compiler, "set_code_exec_strategy"):
            skip = _compiler._FrameAction.SKIP, _compiler._FrameAction.DEFAULT
            _compiler.set_code_exec_strategy(code, _compiler._FrameExecStrategy(*skip))
        else:  # up to torch 2.6
            _compiler.skip_code(code)


def uncompiled(function: Callable[P, R]) -> Callable[P, R | None]:
    """The function, run as it stands; what the compiler makes of the program is without it."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        if torch.compiler.is_compiling():  # the compiler reads on here
            return None
        compiler = set_compiler(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_compiler(compiler)

    leave_alone(call.__code__)
    return functools.update_wrapper(call, function)


leave_alone(leave_alone.__code__)
leave_alone(uncompiled.__code__)

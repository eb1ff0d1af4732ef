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

_RECURSES = hasattr(_compiler, "set_code_exec_strategy")  # from torch 2.7 on


def leave_alone(code: CodeType, calls: bool = False) -> None:
    """Have the compiler not begin with this function, nor, where it can be told that, with what it ``calls``."""
    with contextlib.suppress(AttributeError):
        if _RECURSES:
            action = _compiler._FrameAction
            skip = action.SKIP, action.SKIP if calls else action.DEFAULT
            _compiler.set_code_exec_strategy(code, _compiler._FrameExecStrategy(*skip))
        else:
            _compiler.skip_code(code)


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which runs as it stands, with all that it calls."""
    if _RECURSES:
        leave_alone(function.__code__, calls=True)
        return function
    # Gives what the compiler does with functions on this thread, and replaces it; None: it does nothing.
    set_compiler = getattr(_compiler, "set_eval_frame", lambda callback: None)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        compiler = set_compiler(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_compiler(compiler)

    leave_alone(call.__code__)
    return functools.update_wrapper(call, function)


def uncompiled(function: Callable[P, R]) -> Callable[P, R | None]:
    """`alone`; and what the compiler makes of the program is without it."""
    run = alone(function)

    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        return None if torch.compiler.is_compiling() else run(*args, **kwargs)  # there the compiler reads on

    leave_alone(call.__code__)
    return functools.update_wrapper(call, function)


for _function in (leave_alone, alone, uncompiled):  # called when a backward begins
    leave_alone(_function.__code__, calls=True)

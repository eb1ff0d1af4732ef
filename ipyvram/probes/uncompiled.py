"""Functions of ours that torch calls: its compiler leaves them as they are, wherever it runs the program around them.

After a graph break (each `loss.backward()` is one) a function that `torch.compile` was given goes on in Python, and the compiler
takes every function called there for the program's. Of ours it would make code with guards on hooks that are soon gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import CodeType
from typing import Any, ParamSpec, TypeVar

import torch
from torch._C._dynamo import eval_frame

P = ParamSpec("P")
R = TypeVar("R")

#: Gives what the compiler does with functions on this thread, and replaces it; None: it does nothing.
set_compiler: Callable[[Any], Any] = eval_frame.set_eval_frame


def leave_alone(code: CodeType) -> None:
    """Have the compiler not begin with this function; what it calls is another matter."""
    if hasattr(eval_frame, "set_code_exec_strategy"):
        skip = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
        eval_frame.set_code_exec_strategy(code, eval_frame._FrameExecStrategy(*skip))
    elif hasattr(eval_frame, "skip_code"):  # up to torch 2.6
        eval_frame.skip_code(code)


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

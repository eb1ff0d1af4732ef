"""The dispatch mode of the storage trace: operators come in, what they did is handed to a recorder, their results go out."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _python_dispatch as dispatch_modes
from torch.utils._python_dispatch import TorchDispatchMode

from ipyvram.patches import Patches
from ipyvram.probes.uncompiled import leave_alone

_DISABLED = Tensor.__torch_dispatch__
WITHOUT_MEMORY = "torch._subclasses."  # where torch keeps the tensors that its compiler and exporter run programs with
_FLAGS = ("Python", "PythonTLSSnapshot")
_NUMBERS = frozenset({int, float, complex, bool})


class Recorder(Protocol):
    """What `Mode` talks to: `probes.storages.StorageTrace`."""

    active: bool

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, result: Any) -> None:
        """An operator has run."""

    def failed(self, func: Any, error: Exception) -> None:
        """`record` raised what is no out-of-memory."""


class Mode(TorchDispatchMode):
    """Runs every operator as it would run without, and tells the recorder while that is active."""

    supports_higher_order_operators = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code runs compiled; without this it would silently run eagerly under the mode."""
        return True

    def enter(self) -> None:
        """Go on top of this thread's modes."""
        _entered.add(self)
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> bool:
        """Go away if nothing is above; else False: leaving from below would break the flags that torch keeps for the others.

        Nor in the middle of a backward, whose end would bring the mode back.
        """
        if dispatch_modes._get_current_dispatch_mode() is not self or torch._C._current_graph_task_id() != -1:
            return False
        _entered.discard(self)
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return True


def _dispatch(self: Mode, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    recorder = self.recorder
    for kind in types:
        if kind.__torch_dispatch__ is not _DISABLED:
            if kind.__module__.startswith(WITHOUT_MEMORY):  # whose mode is below ours: it does not answer by itself
                return func(*args, **(kwargs or {}))
            return NotImplemented  # made of tensors: its own dispatch runs operators on its parts, seen one by one
    if not recorder.active:
        return func(*args, **(kwargs or {}))
    given = _with_tensors(func, args) if args and type(args[0]) in _NUMBERS else args
    try:  # not through its handle, which would save a call: IPython always shows the last frame, and that must not be this one
        result = func(*given, **kwargs) if kwargs else func(*given)
    except BaseException:
        __tracebackhide__ = True  # the operator's own error: IPython leaves this frame out of the traceback
        raise
    try:
        recorder.record(func, args, kwargs, result)
    except torch.OutOfMemoryError as error:
        del result  # what was refused does not exist, and the traceback is not to keep it
        raise error.with_traceback(None) from None
    except Exception as error:
        recorder.failed(func, error)
    return result


def _with_tensors(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with tensors for numbers where the operator takes nothing else: its first one is not a scalar.

    On the way to a mode torch makes a number of a tensor that stands for one: a constant in a graph that is printed.
    """
    schema = getattr(func, "_schema", None)
    kinds = [str(argument.type) for argument in schema.arguments[: len(args)]] if schema is not None else ["Scalar"]
    if kinds[0] != "Tensor":
        return args
    pairs = zip(kinds, args, strict=True)
    return tuple(
        torch.tensor(value) if kind == "Tensor" and type(value) in _NUMBERS else value for kind, value in pairs
    )


leave_alone(_dispatch.__code__)
# Assigned, not defined in the class: there torch would wrap it in a function that imports its compiler (seconds).
Mode.__torch_dispatch__ = _dispatch  # type: ignore[method-assign,assignment]


def agree() -> None:
    """Torch's flags say again whether there is any mode.

    The ends of `torch.inference_mode` and of a compiled function put them back as they were at its begin. If a mode has left
    meanwhile, every operator would fail for want of it; if one came, it would see none.
    """
    there = torch._C._len_torch_dispatch_stack() > 0
    for key in _FLAGS:
        if torch._C._dispatch_tls_is_dispatch_key_included(key) is not there:
            torch._C._dispatch_tls_set_dispatch_key_included(key, there)


def agree_after_compiled(patches: Patches) -> None:
    """Have the flags `agree` at the end of each compiled function, too. Older torch does not put them back there."""
    name = "_dynamo_restore_local_dispatch_key_set"
    restore: Any = getattr(torch._C, name, None)

    def restored() -> None:
        restore()
        agree()

    leave_alone(restored.__code__)
    patches.set(torch._C, name, restored)


_entered: weakref.WeakSet[Mode] = weakref.WeakSet()


def _in_child() -> None:
    """A forked process, such as a loader's worker, inherits the mode; what it does is not the cell's."""
    for mode in list(_entered):
        mode.recorder.active = False


if hasattr(os, "register_at_fork"):  # cannot be taken back; without a mode it does nothing
    os.register_at_fork(after_in_child=_in_child)

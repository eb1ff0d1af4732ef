"""The code of a sweep, a cell or a function, behind one protocol (`trial.Body`): it can be run at any size, and saved."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch.utils.data import DataLoader

from ipyvram.code_names import functions_used, globals_of, top_level_names
from ipyvram.recording import Cell
from ipyvram.sweep.binding import Binding, bind
from ipyvram.sweep.reachable import Found
from ipyvram.sweep.saved_state import SavedState


class CellBody:
    """A notebook's cell, run in the notebook's own namespace.

    Parameters
    ----------
    name : str
        The variable that holds the batch size.
    cell : Cell
        ``source`` is Python: IPython's own syntax already transformed.
    namespace : dict
        The notebook's variables.
    compile_ : callable
        Compiles a module so that tracebacks show the cell's lines.

    Raises
    ------
    ValueError
        The cell does not get its batch size from ``name``.
    """

    def __init__(
        self, name: str, cell: Cell, namespace: dict[str, Any], compile_: Callable[[ast.Module], CodeType]
    ) -> None:
        self.cell, self.namespace, self._compile = cell, namespace, compile_
        self.binding: Binding = bind(name, cell.source, namespace)

    def run(self, size: int) -> None:
        """Run the cell once."""
        code = self.binding.code(size, self._compile)
        self.namespace.update(self.binding.namespace(size))
        exec(code, self.namespace)

    def save(self) -> SavedState:
        """Keep what the cell may change."""
        read, replaced = top_level_names(self.binding.tree)
        return SavedState(self.namespace, read, replaced)

    def loader_with(self, batch: int) -> str:
        """The name of a loader from an earlier cell that the cell uses and that gives ``batch`` samples; empty if none."""
        used = {n.id for n in ast.walk(self.binding.tree) if isinstance(n, ast.Name)}
        for function in functions_used(self.binding.tree, self.namespace):
            used |= globals_of(function.__code__)
        return _loader_with(batch, {n: v for n, v in self.namespace.items() if n in used})


class FunctionBody:
    """A function of the batch size.

    Raises
    ------
    ValueError
        It cannot be called with one argument.
    """

    def __init__(self, function: Callable[[int], object]) -> None:
        try:
            inspect.signature(function).bind(1)
        except TypeError as error:
            raise ValueError(f"compare_batches calls fn(batch_size): {error}") from None
        except ValueError:
            pass  # no signature to look at
        self._function = function
        plain = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
        plain = getattr(plain, "__func__", plain)
        self.namespace: dict[str, Any] = getattr(plain, "__globals__", None) or vars(sys.modules["__main__"])
        code = getattr(plain, "__code__", None)
        self.cell = Cell(filename=code.co_filename if code is not None else "")
        self._names = globals_of(code) if code is not None else set[str]()

    def run(self, size: int) -> None:
        """Call the function once."""
        self._function(size)

    def save(self) -> SavedState:
        """Keep what the function may change."""
        return SavedState(self.namespace, self._names, roots=[Found("fn", self._function)])

    def loader_with(self, batch: int) -> str:
        """The name of a loader that the function uses and that gives ``batch`` samples; empty if none."""
        closure = inspect.getclosurevars(self._function).nonlocals if inspect.isfunction(self._function) else {}
        return _loader_with(batch, {n: v for n, v in self.namespace.items() if n in self._names} | dict(closure))


def _loader_with(batch: int, values: dict[str, Any]) -> str:
    return next((n for n, v in values.items() if isinstance(v, DataLoader) and v.batch_size == batch), "")

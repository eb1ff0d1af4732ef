"""Errors that ended a cell of this kernel and are alive: the results of cells come in, as the shell tells of them.

IPython's result of a cell refers to its error, whose first frame refers to the result: it lives as long as the error is kept, or
waits for Python's collector. A traceback takes no weak reference, a result does.
"""

from __future__ import annotations

import gc
import weakref
from itertools import compress, repeat
from operator import is_
from types import TracebackType
from typing import Any

_results: weakref.WeakSet[Any] = weakref.WeakSet()
_told = _searched = False


def listen(told: bool) -> None:
    """From now on `cell_ended` is called after each cell, or no more."""
    global _told, _searched
    _told, _searched = told, False


def cell_ended(result: Any) -> None:
    """Note the result of a cell, if that failed."""
    if getattr(result, "error_in_exec", None) is not None:
        _results.add(result)


def errors() -> list[BaseException]:
    """All of them.

    Where no shell tells, every object there is is looked at each time, else once: 50 ms, half a second where a compiler is loaded.
    """
    global _searched
    if not (_told and _searched):
        _search()
        _searched = True
    return [result.error_in_exec for result in list(_results)]


def _search() -> None:
    objects = gc.get_objects()
    tracebacks = compress(objects, map(is_, map(type, objects), repeat(TracebackType)))  # a third of a loop's time
    for first in tracebacks:
        code = first.tb_frame.f_code
        # Nothing between IPython and the cell caught it.
        if code.co_name == "run_code" and "IPython" in code.co_filename:
            cell_ended(first.tb_frame.f_locals.get("result"))

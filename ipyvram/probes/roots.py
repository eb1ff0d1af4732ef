"""Where a notebook keeps things alive: its namespace comes in; variables, ``Out`` and the last errors come out, with names.

Works without IPython: `sys.last_value` and what the namespace's own ``get_ipython`` gives are read, nothing is imported.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

from ipyvram.probes import failed
from ipyvram.probes.stacks import is_user_file
from ipyvram.probes.variables import OWN_COPY, variables_of

#: Names that IPython puts into the namespace itself.
_NOT_THE_USERS = re.compile(r"_+|_i+|_i?\d+|_oh|_ih|_dh|_exit_code|__\w+__|In|Out|exit|quit|get_ipython|open")

#: The last three displayed values.
_LATEST = ("_", "__", "___")


def variables(namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The user's own names, ``_`` too where the user has given it a value: then IPython does not."""
    displayed = _displayed(namespace)
    for name, value in list(namespace.items()):
        if (name in _LATEST and "_oh" in namespace and name not in displayed) or not _NOT_THE_USERS.fullmatch(name):
            yield name, value


def outputs(namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What IPython's output cache holds: ``Out[3]`` and what ``_``, ``__``, ``___`` hold beside it."""
    cache = namespace.get("_oh")
    if isinstance(cache, dict):
        for number, value in list(cache.items()):
            yield f"Out[{number}]", value
    for name in (
        _displayed(namespace) if isinstance(cache, dict) else ()
    ):  # outside IPython `_` is a name like any other
        yield name, namespace[name]


def _displayed(namespace: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of `_LATEST` that hold what IPython put there: its hook then holds the same."""
    hook = getattr(_shell(namespace), "displayhook", None)
    present = (name for name in _LATEST if name in namespace)
    return tuple(name for name in present if hook is None or getattr(hook, name, None) is namespace[name])


def threads() -> Iterator[tuple[str, Any]]:
    """Variables of the user's functions that other threads run now, and do not hand back: ``batch in load()``."""
    if threading.gettrace() is not None:
        return  # a debugger may be about to write them back
    others = sys._current_frames()
    # Our own frame in a variable of its own is a cycle: with those it was called from it stays, and with these a batch.
    del others[threading.get_ident()]
    for innermost in others.values():
        frame: FrameType | None = innermost
        while frame is not None:
            code = frame.f_code
            if is_user_file(code.co_filename) and code.co_name != "<module>" and OWN_COPY.isdisjoint(code.co_names):
                yield from ((f"{name} in {code.co_name}()", value) for name, value in variables_of(frame).items())
            frame = frame.f_back


def out_names(namespace: Mapping[str, Any], number: str, value: Any) -> str:
    """``Out[3], _3, _``: every name under which the output cache holds one value."""
    index = number.removeprefix("Out[").removesuffix("]")
    names = [number] + ([f"_{index}"] if namespace.get(f"_{index}") is value else [])
    return ", ".join(dict.fromkeys(names + [n for n in _LATEST if namespace.get(n) is value]))


def errors(namespace: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Exceptions and tracebacks that are kept for ``%debug``, with the exception's type; each once."""
    shell = _shell(namespace)
    last = getattr(shell, "last_execution_result", None)
    kept = [
        getattr(sys, "last_exc", None),
        getattr(sys, "last_value", None),
        getattr(last, "error_in_exec", None),
        getattr(last, "error_before_exec", None),
        getattr(sys, "last_traceback", None),
        getattr(getattr(shell, "InteractiveTB", None), "tb", None),
    ]
    found: dict[int, tuple[str, Any]] = {}
    for item in kept:
        if isinstance(item, BaseException):
            found.setdefault(id(item), (type(item).__name__, item))
        elif isinstance(item, TracebackType):
            found.setdefault(id(item), ("", item))
    return list(found.values())


def all_errors(namespace: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`errors`, and those before them that ended a cell and still wait in reference cycles for the garbage collector.

    IPython's result of a cell refers to the error, whose first frame refers to the result: the next error takes the place of
    the last one, and frees nothing of it.
    """
    found = errors(namespace)
    if found:  # without one there was none before it
        chained = (error for _, item in found if isinstance(item, BaseException) for error in _chain(item))
        known = {id(error.__traceback__) for error in chained} | {id(item) for _, item in found}
        earlier = [error for error in failed.errors() if not {id(error), id(error.__traceback__)} & known]
        found += [("an earlier one", error) for error in earlier]
    return found


def forget_errors(namespace: Mapping[str, Any]) -> None:
    """Cut the kept exceptions loose from their frames and empty these: what only they held is freed, and ``%debug`` ends."""
    shell = _shell(namespace)
    for _, item in errors(namespace):
        for error in _chain(item) if isinstance(item, BaseException) else ():
            _empty(error.__traceback__)
            error.__traceback__ = None
        if isinstance(item, TracebackType):
            _empty(item)
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        if hasattr(sys, name):
            delattr(sys, name)
    formatter: Any = getattr(shell, "InteractiveTB", None)
    if formatter is not None and getattr(formatter, "tb", None) is not None:
        formatter.tb = None


def _empty(first: TracebackType | None) -> None:
    """Let go of the variables of every frame. Cutting the chain is not enough: IPython's formatter leaves cycles that hold frames."""
    step = first
    while step is not None:
        frame, following = step.tb_frame, step.tb_next
        try:
            frame.clear()
        except RuntimeError:  # it is still running: a cell's own
            pass
        if frame.f_locals is not frame.f_globals:
            len(frame.f_locals)  # a dictionary of them that somebody asked for is brought up to date: emptied
        step.tb_next = None
        step = following


def forget_outputs(namespace: Any) -> list[str]:
    """Empty the output cache and the names that go with it; the names that were dropped."""
    cache = namespace.get("_oh")
    if not isinstance(cache, dict):
        return []
    dropped = [f"Out[{number}]" for number in cache]
    values = list(cache.values())
    shell = _shell(namespace)
    names = [*_LATEST, *(f"_{number}" for number in cache)]
    cache.clear()
    # What was displayed stands in the namespace, in IPython's list of names that are not the user's, and in its hook.
    places: tuple[Any, ...] = (namespace, getattr(shell, "user_ns_hidden", None))
    for place in places:
        for name in names if isinstance(place, dict) else ():
            if any(place.get(name) is value for value in values):
                if name in _LATEST:
                    place[name] = ""
                else:
                    del place[name]
    hook = getattr(shell, "displayhook", None)
    for name in _LATEST:
        if any(getattr(hook, name, None) is value for value in values):
            setattr(hook, name, "")
    return dropped


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and every ``__cause__`` and ``__context__`` below it."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [e for e in (one.__cause__, one.__context__) if e is not None]


def _shell(namespace: Mapping[str, Any]) -> Any:
    get = namespace.get("get_ipython")
    try:
        return get() if callable(get) and type(get).__module__ != "torch" else None
    except Exception:
        return None

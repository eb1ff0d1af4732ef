"""`estimate`: a callable or source text in, the `Report` of what it would take on a named card out; no GPU, no run on one."""

from __future__ import annotations

import ast
import itertools
import linecache
import sys
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

from ipyvram import cards
from ipyvram.options import Options, from_keywords

if TYPE_CHECKING:
    from ipyvram.recording import Cell
    from ipyvram.report import Report

_numbers = itertools.count(1)


def estimate(
    target: Callable[[], Any] | str,
    *,
    card: str | int | None = None,
    namespace: dict[str, Any] | None = None,
    label: str | None = None,
    steps: int = 3,
) -> Report:
    """What code would take on a card, without running it on one.

    The code does run, on this machine: its data loading, its shapes and its control flow are real, and nothing is computed
    that would be computed on the card. Models, optimizers, variables and random number generators are as before afterwards.

    Parameters
    ----------
    target : callable or str
        A function without arguments, or source text.
    card : str or int, optional
        ``"RTX 4090"``, ``"T4"``, ``"24GiB"`` or bytes; by default this machine's own GPU, else a card of 24 GiB.
    namespace : dict, optional
        The variables of source text; by default those of the caller.
    label : str, optional
        A name for the report.
    steps : int
        Optimizer steps to run.

    Returns
    -------
    Report
        Of kind ``"estimated"``; every figure is marked ``predicted``.

    Raises
    ------
    ValueError
        The card is unknown, or the code does something that has no estimate; the message says what would be right.
    """
    options = from_keywords(label, trace_steps=steps)
    if callable(target):
        space = getattr(target, "__globals__", None) if namespace is None else namespace
        return run(target, options, cards.find(card), space if space is not None else {}, extra=(target,))
    space = sys._getframe(1).f_globals if namespace is None else namespace
    return run(compiled(target, space), options, cards.find(card), space, cell=cell_of(target))


def run(
    body: Callable[[], Any],
    options: Options,
    card: cards.Card,
    namespace: dict[str, Any],
    cell: Cell | None = None,
    extra: tuple[Any, ...] = (),
) -> Report:
    """Estimate ``body`` and explain what it would do: the engine of `estimate`, of the magic and of the sweep."""
    from ipyvram.analysis import analyse
    from ipyvram.simulated.estimation import Estimation

    return analyse(Estimation(options, card, namespace, cell).run(body, extra))


def compiled(source: str, namespace: dict[str, Any], filename: str | None = None) -> Callable[[], Any]:
    """Source text as something to call; its lines show in tracebacks.

    Raises
    ------
    ValueError
        It is not Python.
    """
    filename = filename or f"<ipython-input-estimate-{next(_numbers)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        code: CodeType = compile(ast.parse(source, filename), filename, "exec")
    except SyntaxError as error:
        raise ValueError(f"this is not Python: {error}") from error
    return lambda: exec(code, namespace)


def cell_of(source: str, filename: str | None = None) -> Cell:
    """The cell that source text is, under the file name of the newest `compiled`."""
    from ipyvram.recording import Cell

    newest = next((name for name in reversed(linecache.cache) if name.startswith("<ipython-input-estimate")), "")
    return Cell(source, filename or newest)

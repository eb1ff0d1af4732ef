"""`estimate`: a callable or source text in, the `Report` of what it would take on a named card out; no GPU, no run on one."""

from __future__ import annotations

import ast
import itertools
import linecache
import sys
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

from ipyvram import cards, journal
from ipyvram.options import Options, from_keywords
from ipyvram.recording import Cell

if TYPE_CHECKING:
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
    chosen = cards.find(card)
    if callable(target):
        space = getattr(target, "__globals__", {}) if namespace is None else namespace
        report = run(target, options, chosen, space, extra=(target,))
    else:
        space = sys._getframe(1).f_globals if namespace is None else namespace
        filename = f"<ipython-input-estimate-{next(_numbers)}>"
        code = compiled(target, filename)
        report = run(lambda: exec(code, space), options, chosen, space, Cell(target, filename), code=code)
    journal.add(report)
    return report


def estimate_cell(code: CodeType, options: Options, namespace: dict[str, Any], cell: Cell) -> Report:
    """Estimate a compiled cell in a notebook's namespace, for ``options.card``."""
    card = options.card or cards.find(None)
    report = run(lambda: exec(code, namespace), options, card, namespace, cell, code=code)
    journal.add(report)
    return report


def run(
    body: Callable[[], Any],
    options: Options,
    card: cards.Card,
    namespace: dict[str, Any],
    cell: Cell | None = None,
    extra: tuple[Any, ...] = (),
    code: CodeType | None = None,
) -> Report:
    """Estimate ``body`` and explain what it would do; the journal is not told, so a sweep can call it for each trial.

    Parameters
    ----------
    body : callable
    options : Options
        Label, note, limit, and ``trace_steps``: the optimizer steps after which the code is stopped.
    card : Card
    namespace : dict
        The code's globals; as before afterwards.
    cell : Cell, optional
        The code's text and the file name in its frames, for the report's lines.
    extra : tuple
        Objects besides the namespace that the code may change.

    code : code object, optional
        What ``body`` executes, where it is not a plain function.

    Raises
    ------
    CannotEstimate
        A ValueError: the code does something that has no estimate.
    BaseException
        Whatever ``body`` itself raises.
    """
    from ipyvram.analysis import analyse
    from ipyvram.simulated.estimation import Estimation

    return analyse(Estimation(options, card, namespace, cell).run(body, extra, code))


def compiled(source: str, filename: str) -> CodeType:
    """Source text as code whose lines show in tracebacks.

    Raises
    ------
    ValueError
        It is not Python.
    """
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        return compile(ast.parse(source, filename), filename, "exec")
    except SyntaxError as error:
        raise ValueError(f"this is not Python: {error}") from error

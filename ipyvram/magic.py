"""``%%vram`` in IPython: arm a measurement on the cell's first line, close it when that cell has ended, show the report.

The only module that knows IPython, with `render.live`. The life of a `Session`:

- `load` registers the directive (`directive.make_transform`), the magics, two events and the completer; `unload` takes each
  of them away again.
- ``pre_run_cell`` and ``post_run_cell`` keep the cells that are running, by the identity of their ``ExecutionInfo``: a cell
  may run others inside it (``%run``, ``%%capture``) and those fire the same events.
- The line magic that the directive put on line 1 arms a `Measurement` for the innermost running cell;
  ``post_run_cell`` of that very cell closes it.
"""

from __future__ import annotations

import ast
import contextlib
import sys
import threading
from collections.abc import Callable
from types import CodeType
from typing import Any

from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import cell_magic
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import no_var_expand
from IPython.display import publish_display_data

from ipyvram import directive
from ipyvram.measuring import Measurement, fault
from ipyvram.options import Options, complete, help_text, parse, wants_help
from ipyvram.recording import Cell
from ipyvram.subcommands import SUBCOMMANDS, run_subcommand, show

_COMPLETE = "complete_command"
_COMPLETED = ("%%vram", "%vram", "vram")

_session: Session | None = None


def load(ip: InteractiveShell) -> None:
    """Register everything with a shell; loading again replaces what was there."""
    global _session
    if _session is not None:
        _session.unregister()
    _session = Session(ip)
    _session.register()


def unload(ip: InteractiveShell) -> None:
    """Take away what `load` registered, and stop a measurement that is running."""
    global _session
    if _session is not None:
        _session.unregister()
    _session = None


class Session:
    """What one IPython shell and ipyvram have to do with each other."""

    def __init__(self, ip: InteractiveShell) -> None:
        self.ip = ip
        self._transform = directive.make_transform(cell_magic)
        self._running: list[tuple[int, Any]] = []  # (thread, ExecutionInfo), innermost last
        self._armed: tuple[Any, Measurement] | None = None

    # -- registration ------------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Hook into the shell."""
        ip, text = self.ip, help_text({usage: s.help for s in SUBCOMMANDS.values() for usage in [s.usage]})

        @no_var_expand  # type: ignore[untyped-decorator]
        def line_magic(line: str) -> Any:
            return self.line(line)

        @no_var_expand  # type: ignore[untyped-decorator]
        def vram_cell(line: str, cell: str) -> Any:
            return self.cell(line, cell)

        line_magic.__doc__ = vram_cell.__doc__ = text
        ip.input_transformers_cleanup.append(self._transform)
        ip.register_magic_function(line_magic, "line", "vram")
        ip.register_magic_function(vram_cell, "cell", "vram")
        ip.events.register("pre_run_cell", self._pre_run_cell)
        ip.events.register("post_run_cell", self._post_run_cell)
        for key in _COMPLETED:
            ip.set_hook(_COMPLETE, _completer, str_key=key)

    def unregister(self) -> None:
        """Undo `register`, each part on its own: a part that is gone already does not keep the others."""
        ip = self.ip
        self._close(None)
        with contextlib.suppress(ValueError):
            ip.input_transformers_cleanup.remove(self._transform)
        for event, callback in (("pre_run_cell", self._pre_run_cell), ("post_run_cell", self._post_run_cell)):
            with contextlib.suppress(ValueError):
                ip.events.unregister(event, callback)
        for kind in ("line", "cell"):
            ip.magics_manager.magics[kind].pop("vram", None)
        strings = ip.strdispatchers[_COMPLETE].strs
        for key in _COMPLETED:
            if key in strings:
                chain = strings[key].chain
                chain[:] = [entry for entry in chain if getattr(entry[1], "__func__", None) is not _completer]
                if not chain:
                    del strings[key]

    # -- events: nothing may be raised here --------------------------------------------------------------------------

    def _pre_run_cell(self, info: Any) -> None:
        self._running.append((threading.get_ident(), info))

    def _post_run_cell(self, result: Any) -> None:
        info = self._ended(getattr(result, "info", None))
        if self._armed is not None and self._armed[0] is info:
            error = getattr(result, "error_in_exec", None) or getattr(result, "error_before_exec", None)
            self._close(error)

    def _ended(self, info: Any) -> Any:
        """The cell that ended, taken off the list.

        Where a cell ends by an exception outside its own code (an interrupt inside IPython), the event carries a new
        ``ExecutionInfo`` or nothing at all: then it is this thread's innermost cell, if the text agrees.
        """
        mine = [i for i, (thread, _) in enumerate(self._running) if thread == threading.get_ident()]
        index = next((i for i in mine if self._running[i][1] is info), None)
        if index is None and mine and (info is None or info.raw_cell == self._running[mine[-1]][1].raw_cell):
            index = mine[-1]
        return None if index is None else self._running.pop(index)[1]

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _current(self) -> Any:
        """The innermost cell that this thread is running; None where no event announced it (silent execution)."""
        return next((info for thread, info in reversed(self._running) if thread == threading.get_ident()), None)

    def _arm(self, arguments: str) -> None:
        """Start measuring the innermost running cell; a mistake in the options stops it before its body runs."""
        options, info = _options(arguments), self._current()
        if self._armed is not None and all(info is not self._armed[0] for _, info in self._running):
            self._close(None)  # its cell is over and nobody told us
        if info is None or (self._armed is not None and self._armed[0] is info):
            return  # silent execution is not a cell; a second %%vram in the same cell (%%timeit) adds nothing
        filename = _caller_filename(self.ip)
        measurement = Measurement(options, Cell(directive.measured_source(info.raw_cell), filename), self.ip.user_ns)
        if self._armed is None:
            self._armed = (info, measurement)  # before it starts: Ctrl-C from here on is closed like any other
        measurement.start()
        if self._armed[1] is not measurement:
            _say(measurement.notes)

    def _close(self, error: BaseException | None) -> None:
        """Finish the armed measurement and show what it found under the cell."""
        armed, self._armed = self._armed, None
        if armed is None:
            return
        measurement = armed[1]
        report = measurement.finish(error)
        notes = measurement.notes
        if report is not None:
            try:
                show(report)
            except (Exception, KeyboardInterrupt) as failure:
                notes.append(fault("measured this but could not show it; see ipyvram.last", failure))
        _say(notes)

    # -- magics ------------------------------------------------------------------------------------------------------

    def line(self, line: str) -> Any:
        """``%vram``: the head of a cell, or a subcommand."""
        heads_cell = line.startswith(directive.MARK)
        rest = line[len(directive.MARK) :].strip() if heads_cell else line.strip()
        if wants_help(rest) or not rest and not heads_cell:
            print(help_text({s.usage: s.help for s in SUBCOMMANDS.values()}))
        elif heads_cell:
            self._arm(rest)
        else:
            return run_subcommand(rest)
        return None

    def cell(self, line: str, cell: str) -> Any:
        """``run_cell_magic('vram', …)`` by name, as scripts made from notebooks do; ``%%vram`` in a cell is `line`."""
        if wants_help(line):
            print(help_text({s.usage: s.help for s in SUBCOMMANDS.values()}))
            return None
        code = _compile(self.ip, cell)
        measurement = Measurement(_options(line), Cell(cell, code[0].co_filename), self.ip.user_ns)
        measurement.start()
        error: BaseException | None = None
        try:
            exec(code[0], self.ip.user_ns)
            return eval(code[1], self.ip.user_ns) if code[1] is not None else None
        except BaseException as raised:
            error = raised
            raise
        finally:
            outer, self._armed = self._armed, (None, measurement)
            self._close(error)
            self._armed, error = outer, None


def _options(arguments: str) -> Options:
    try:
        options = parse(arguments)
        if options.device is not None:
            from ipyvram.run import check_device

            check_device(options.device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return options


def _caller_filename(ip: InteractiveShell) -> str:
    """The file name that the frames of the running cell carry."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals is not ip.user_global_ns:
        frame = frame.f_back
    return frame.f_code.co_filename if frame.f_globals is ip.user_global_ns else ""


def _compile(ip: InteractiveShell, cell: str) -> tuple[CodeType, CodeType | None]:
    """The cell as statements and, apart, its last expression: the value of the magic."""
    source = ip.transform_cell(cell)
    name = ip.compile.cache(source, raw_code=cell)
    tree = ip.compile.ast_parse(source, filename=name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None if last is None else ip.compile(ast.Expression(last.value), name, "eval")
    return ip.compile(tree, name, "exec"), value


def _say(notes: list[str]) -> None:
    """Notes under the cell, one line each."""
    for note in notes:
        with contextlib.suppress(Exception):
            publish_display_data({"text/plain": note})


def _completer(shell: InteractiveShell, event: Any) -> list[str]:
    """Tab after ``%%vram`` or ``%vram``."""
    before = event.text_until_cursor[: len(event.text_until_cursor) - len(event.symbol)]
    words = before.split()
    found = complete(" ".join(words[1:]))
    return [*SUBCOMMANDS, *found] if len(words) == 1 and not words[0].startswith("%%") else found

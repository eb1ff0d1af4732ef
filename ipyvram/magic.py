"""``%%vram`` in IPython: arm a measurement on the cell's first line, close it when that cell has ended, show the report.

Only this module, `showing` and `render.live` know IPython. The life of a `Session`:

- `load` registers the directive (`directive.make_transform`), the magics, two events and the completer; `unload`
  takes each of them away again.
- ``pre_run_cell`` and ``post_run_cell`` tell `RunningCells` which cells are running.
- The line magic that the directive put on line 1 arms a `Measurement` for the innermost running cell;
  ``post_run_cell`` of that very cell closes it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import cell_magic
from IPython.core.magic import MAGIC_NO_VAR_EXPAND_ATTR
from IPython.utils.capture import capture_output

from ipyvram import auto, directive, showing
from ipyvram.cell_code import from_cell, python_of, statements, statements_and_value
from ipyvram.cell_names import Shell, caller_filename, cell_of, coming_filename
from ipyvram.measuring import Measurement, fault
from ipyvram.option_help import complete, help_text
from ipyvram.options import Options, parse, wants_help
from ipyvram.probes import failed
from ipyvram.report import Report
from ipyvram.running_cells import RunningCells
from ipyvram.subcommands import SUBCOMMANDS, Display, offers, run_subcommand, usages

if TYPE_CHECKING:
    from ipyvram.render.live import LiveMeter

T = TypeVar("T")

#: A line that only talks to us: not worth measuring by itself.
_OURS = re.compile(r"\s*%(vram|load_ext|reload_ext|unload_ext)\b")

_COMPLETE = "complete_command"
_COMPLETED = ("%%vram", "%vram", "vram")

_session: Session | None = None


def load(ip: Shell) -> None:
    """Register everything with a shell; loading again replaces what was there."""
    global _session
    if _session is not None:
        _session.unregister()
    _session = Session(ip)
    _session.register()


def unload() -> None:
    """Take away what `load` registered, and stop a measurement that is running."""
    global _session
    if _session is not None:
        _session.unregister()
    _session = None


class Session:
    """What one IPython shell and ipyvram have to do with each other."""

    def __init__(self, ip: Shell) -> None:
        self.ip = ip
        self._transform = directive.make_transform(cell_magic)
        self._running = RunningCells()
        self._armed: tuple[Any, Measurement] | None = None
        self._meter: LiveMeter | None = None
        self._by_itself = False  # the armed cell is measured by `%vram auto`

    # -- registration ------------------------------------------------------------------------------------------------

    def register(self) -> None:
        """Hook into the shell."""
        ip = self.ip

        def line_vram(line: str) -> Any:
            return self.line(line)

        def cell_vram(line: str, cell: str) -> Any:
            __tracebackhide__ = True  # in the traceback of the cell's own error, here and below
            return self.cell(line, cell)

        for magic in (line_vram, cell_vram):
            magic.__doc__ = _help()
            setattr(magic, MAGIC_NO_VAR_EXPAND_ATTR, True)  # braces and dollars in a label are just that
        ip.input_transformers_cleanup.append(self._transform)
        ip.register_magic_function(line_vram, "line", "vram")
        ip.register_magic_function(cell_vram, "cell", "vram")
        ip.register_magic_function(_misplaced, "line", "%vram")  # what IPython makes of `%%vram` on a later line
        ip.events.register("pre_run_cell", self._pre_run_cell)
        ip.events.register("post_run_cell", self._post_run_cell)
        failed.listen(told=True)
        for key in _COMPLETED:
            ip.set_hook(_COMPLETE, _completer, str_key=key)

    def unregister(self) -> None:
        """Undo `register`, each part on its own: a part that is gone already does not keep the others."""
        ip = self.ip
        failed.listen(told=False)
        self._close(None)
        with contextlib.suppress(ValueError):
            ip.input_transformers_cleanup.remove(self._transform)
        for event, callback in (("pre_run_cell", self._pre_run_cell), ("post_run_cell", self._post_run_cell)):
            with contextlib.suppress(ValueError):
                ip.events.unregister(event, callback)
        for kind, name in (("line", "vram"), ("cell", "vram"), ("line", "%vram")):
            ip.magics_manager.magics[kind].pop(name, None)
        strings = ip.strdispatchers[_COMPLETE].strs
        for key in _COMPLETED:
            if key in strings:
                chain = strings[key].chain
                chain[:] = [entry for entry in chain if getattr(entry[1], "__func__", None) is not _completer]
                if not chain:
                    del strings[key]

    # -- events: nothing may be raised here --------------------------------------------------------------------------

    def _pre_run_cell(self, info: Any) -> None:
        self._running.begin(info)
        if auto.minimum() is not None and self._armed is None:
            try:
                self._arm_by_itself(info)
            except Exception as error:
                showing.say([fault("could not measure this cell by itself", error)])

    def _arm_by_itself(self, info: Any) -> None:
        """``%vram auto on``: measure a cell that does not ask for it, unless it is one of ours or has nothing to run."""
        lines = info.raw_cell.splitlines(keepends=True)
        code = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not code or directive.find(lines) is not None or all(_OURS.match(line) for line in code):
            return
        cell = cell_of(self.ip, directive.measured_source(info.raw_cell), coming_filename(self.ip, info.raw_cell))
        measurement = Measurement(Options(), cell, self.ip.user_ns)
        self._armed, self._by_itself = (info, measurement), True
        measurement.start()
        self._meter = showing.start_meter(self.ip, measurement)

    def _post_run_cell(self, result: Any) -> None:
        failed.cell_ended(result)
        info = self._running.end(getattr(result, "info", None))
        if self._armed is not None and self._armed[0] is info:
            error = getattr(result, "error_in_exec", None) or getattr(result, "error_before_exec", None)
            self._close(error)

    # -- measuring ---------------------------------------------------------------------------------------------------

    def _current(self) -> Any:
        """The innermost cell that this thread is running, if it has our line in it.

        Silent execution is announced by no event: there the innermost known cell is somebody else's.
        """
        info = self._running.innermost()
        return info if info is not None and "%vram" in info.raw_cell else None

    def _arm(self, arguments: str) -> None:
        """Start measuring the innermost running cell; a mistake in the options stops it before its body runs."""
        options, info = _options(arguments), self._current()
        if self._armed is not None and self._armed[0] not in self._running:
            self._close(None)  # its cell is over and nobody told us
        if info is None or (self._armed is not None and self._armed[0] is info):
            return  # a second line in the same cell, or one that %%timeit repeats, adds nothing
        cell = cell_of(self.ip, directive.measured_source(info.raw_cell), caller_filename(self.ip))
        measurement = Measurement(options, cell, self.ip.user_ns)
        first = (options.label or " ").split(" ")[0]
        if first in SUBCOMMANDS:
            hint = f"ipyvram: took {options.label!r} as the label; to run %vram {first}, give it a cell of its own"
            measurement.notes.append(hint)
        if self._armed is None:
            self._armed = (info, measurement)  # before it starts: Ctrl-C from here on is closed like any other
            measurement.start()
            self._meter = showing.start_meter(self.ip, measurement)
        else:
            measurement.start()  # says that the outer cell is being measured
            showing.say(measurement.notes)

    def _close(self, error: BaseException | None) -> None:
        """Finish the armed measurement and show what it found under the cell."""
        (armed, self._armed), (meter, self._meter) = (self._armed, None), (self._meter, None)
        by_itself, self._by_itself = self._by_itself, False
        if armed is not None:
            showing.finish(armed[1], error, meter, showing.line_of if by_itself else showing.bundle_of)

    # -- magics ------------------------------------------------------------------------------------------------------

    def line(self, line: str) -> Any:
        """``%vram``: the head of a cell, or a subcommand."""
        heads_cell = line.startswith(directive.MARK)
        rest = line[len(directive.MARK) :].strip() if heads_cell else line.strip()
        if wants_help(rest) or (rest == "help" and not heads_cell):
            print(_help())
        elif heads_cell:
            self._arm(rest)
        else:
            value = _or_usage_error(lambda text: run_subcommand(text, self.ip.user_ns), rest)
            if isinstance(value, Report):
                showing.show(value)
            elif isinstance(value, Display):
                showing.publish(value.data)
            else:
                return value
        return None

    def cell(self, line: str, cell: str) -> Any:
        """``run_cell_magic('vram', …)`` by name, as scripts made from notebooks do; ``%%vram`` in a cell is `line`."""
        __tracebackhide__ = True
        if wants_help(line):
            print(_help())
            return None
        options = _options(line)
        if options.batch is not None or options.max_batch is not None:
            return self._compare(options, cell)
        if options.estimate:
            return self._estimate(options, cell)
        code = statements_and_value(self.ip, cell)
        measurement = Measurement(options, cell_of(self.ip, cell, code[0].co_filename), self.ip.user_ns)
        measurement.start()
        meter = showing.start_meter(self.ip, measurement)
        error: BaseException | None = None
        try:
            exec(code[0], self.ip.user_ns)
            return eval(code[1], self.ip.user_ns) if code[1] is not None else None
        except BaseException as raised:
            error = raised
            raise
        finally:
            showing.finish(measurement, error, meter)
            error = None  # else this frame and the exception keep each other alive

    def _estimate(self, options: Options, text: str) -> None:
        """``%%vram --estimate``: run the cell on a card that is not there and show what it would take."""
        from ipyvram.estimating import estimate_cell
        from ipyvram.simulated.refusal import CannotEstimate

        __tracebackhide__ = True

        source, text, name = self._python(text)
        code = statements(self.ip, source, name)
        if code.co_flags & inspect.CO_COROUTINE:
            raise UsageError(
                "a cell that awaits at its top level has no estimate: what it awaits would run in the notebook's loop"
            )
        cell = cell_of(self.ip, text, name)
        try:
            report = _or_usage_error(estimate_cell, code, options, self.ip.user_ns, cell, refusal=CannotEstimate)
        except UsageError:
            raise
        except BaseException as error:  # the cell's own: its traceback begins at the cell's own line
            raise error.with_traceback(from_cell(name, error))  # noqa: B904 - the same error
        showing.show(report)

    def _compare(self, options: Options, text: str) -> None:
        """``%%vram --batch`` and ``--max-batch``: run the cell at several sizes and show what they take."""
        from ipyvram.sweep.comparing import compare_cell
        from ipyvram.sweep.progress import ProgressLine

        __tracebackhide__ = True
        source, _, name = self._python(text)
        compile_ = functools.partial(self.ip.compile, filename=name, symbol="exec")
        progress = ProgressLine(showing.publish if hasattr(self.ip, "kernel") else None)
        cell = cell_of(self.ip, source, name)
        comparison, error = _or_usage_error(
            compare_cell, options, cell, self.ip.user_ns, compile_, progress, capture_output
        )
        showing.show_comparison(comparison)
        if error is not None:  # the cell's own, or the user's Ctrl-C: Run All stops
            raise error.with_traceback(from_cell(name, error))

    def _python(self, text: str) -> tuple[str, str, str]:
        info = self._current()
        return python_of(self.ip, text, None if info is None else info.raw_cell)


def _misplaced(line: str) -> None:
    """``%%vram`` below other code."""
    raise UsageError("%%vram measures the cell that it heads: put it on the first line, above the other code")


def _help() -> str:
    return help_text(usages())


def _or_usage_error(read: Callable[..., T], *arguments: Any, refusal: type[Exception] = ValueError) -> T:
    """What ``read`` gives, its refusal as the error that IPython shows in one line and without a traceback."""
    try:
        return read(*arguments)
    except refusal as error:
        said = str(error)
    # Out here it has no context, whose frames would hold the cell's tensors until the next error.
    raise UsageError(said)


def _options(arguments: str) -> Options:
    options = _or_usage_error(parse, arguments)
    if options.device is not None:
        from ipyvram.run import check_device

        _or_usage_error(check_device, options.device)
    return options


def _completer(shell: Shell, event: Any) -> list[str]:
    """Tab after ``%%vram`` or ``%vram``."""
    before = event.text_until_cursor[: len(event.text_until_cursor) - len(event.symbol)]
    magic, *words = before.split()
    if not magic.startswith("%%") and (not words or words[0] in SUBCOMMANDS):
        return offers(words) + ([] if words else complete(""))
    return complete(" ".join(words))

"""The text of a cell comes in; code goes out whose lines, in tracebacks, are those of the cell as it stands."""

from __future__ import annotations

import ast
from types import CodeType, TracebackType

from ipyvram import directive
from ipyvram.cell_names import Shell, caller_filename, numbers


def python_of(ip: Shell, text: str, raw_cell: str | None) -> tuple[str, str, str]:
    """A cell that was handed over as text: as Python, as written, and the file name for its frames.

    Parameters
    ----------
    raw_cell : str or None
        The cell as it stands, with our own line above ``text``: lines are numbered so.
    """
    found = None if raw_cell is None else directive.find(raw_cell.splitlines(keepends=True))
    above = "\n" * (0 if found is None else found[0] + 1)
    source = above + ip.transform_cell(text)
    number = numbers(ip).get(caller_filename(ip), ip.execution_count)  # "In[6]" for the frames
    return source, above + text, ip.compile.cache(source, number, raw_code=above + text)


def statements(ip: Shell, source: str, name: str) -> CodeType:
    """All of it; a coroutine's code where it awaits at its top level."""
    flags = ip.compile.flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = ip.compile.ast_parse(source, filename=name)
    code: CodeType = compile(tree, name, "exec", flags, dont_inherit=True)
    return code


def statements_and_value(ip: Shell, text: str) -> tuple[CodeType, CodeType | None]:
    """The cell as statements and, apart, its last expression: the value of the magic."""
    source = ip.transform_cell(text)
    name = ip.compile.cache(source, raw_code=text)
    tree = ip.compile.ast_parse(source, filename=name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    value = None if last is None else ip.compile(ast.Expression(last.value), name, "eval")
    return ip.compile(tree, name, "exec"), value


def from_cell(name: str, error: BaseException) -> TracebackType | None:
    """The traceback from the cell's own line on; the whole one where it is none of the cell's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != name:
        trace = trace.tb_next
    return trace or error.__traceback__

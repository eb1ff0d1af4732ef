"""``%%vram ARGS`` on a cell's first line, as a pure function: lines of a cell come in, as many lines go out.

The line becomes a call of the ``vram`` line magic, so that IPython then runs an ordinary cell: its last value, its
traceback's line numbers, its ``await`` and its interrupt are those of the cell without us. It is appended to
IPython's ``input_transformers_cleanup``.

The call's argument begins with `MARK`, which tells the magic that the line heads a cell: ``%vram last`` alone is
a subcommand, ``%vram last`` over a body is a label.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Callable, Iterator

from ipyvram.options import takes_cell, wants_help

MARK = "%%"

#: ``%%vram?`` and ``%vram??`` are IPython's help, whatever follows.
_HEAD = re.compile(r"%%?vram(?!\S)[ \t]*(.*?)\s*$")

Lines = list[str]


def find(lines: Lines) -> tuple[int, str] | None:
    """Index of the directive's line and its arguments; None when the cell has none, or nothing below it and asks no help.

    Blank lines and comments may stand above it, as they do in exported scripts and in Colab's forms.
    """
    for index, line in enumerate(lines):
        text = line.strip()
        if text and not text.startswith("#"):
            match = _HEAD.match(line)
            below = any(rest.strip() for rest in lines[index + 1 :])
            return (index, match[1]) if match and (below or wants_help(match[1])) else None
    return None


def make_transform(cell_magic: Callable[[Lines], Lines]) -> Callable[[Lines], Lines]:
    """The transformer.

    Parameters
    ----------
    cell_magic : callable
        IPython's own transformer of ``%%`` cells, applied to a body that begins with another ``%%magic``.
    """

    def vram_directive(lines: Lines) -> Lines:
        found = find(lines)
        if found is None:
            return lines
        index, arguments = found
        head, body = lines[:index], lines[index + 1 :]
        call = f"get_ipython().run_line_magic('vram', {(MARK + ' ' + arguments).rstrip()!r})"
        if wants_help(arguments):
            return [*head, call + "\n", *("\n" for _ in body)]
        if takes_cell(arguments):  # the cell's text is the argument of the cell magic, as IPython does it for any other
            return [*head, *cell_magic([f"%%vram {arguments}\n", *body])]
        first = next(i for i, line in enumerate(body) if line.strip())
        if body[first].startswith("%%"):
            return [*head, call + "\n", *body[:first], *cell_magic(body[first:])]
        return [*head, *_with_call(call, body)]

    # IPython asks "is this input complete?" without transformers that say so: a `%%vram` cell in the terminal
    # then goes on until a blank line, as every `%%` cell does.
    vram_directive.has_side_effects = True  # type: ignore[attr-defined]
    return vram_directive


def _with_call(call: str, body: Lines) -> Lines:
    """The call in the line above the body, or after its ``from __future__`` imports, which must come first."""
    place = _end_of_future_imports(body)
    if place is None:
        return [call + "\n", *body]
    row, column = place
    line = body[row]
    return ["\n", *body[:row], f"{line[:column]}; {call}{line[column:]}", *body[row + 1 :]]


def _end_of_future_imports(body: Lines) -> tuple[int, int] | None:
    """Row and column where the last of the leading ``from __future__`` statements ends; None without any."""
    if not any("__future__" in line for line in body):
        return None
    place = None
    try:
        for number, statement in enumerate(_statements(body)):
            words = [token.string for token in statement]
            if words[:2] == ["from", "__future__"]:
                place = (statement[-1].end[0] - 1, statement[-1].end[1])
            elif number > 0 or statement[0].type != tokenize.STRING:  # a docstring may stand above them
                break
    except (tokenize.TokenError, SyntaxError):
        pass  # IPython's syntax below the imports; they have been seen by then
    return place


def _statements(body: Lines) -> Iterator[list[tokenize.TokenInfo]]:
    """Tokens of each simple statement, without comments, line ends and semicolons."""
    statement: list[tokenize.TokenInfo] = []
    rows = iter(body)
    for token in tokenize.generate_tokens(lambda: next(rows, "")):
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER) or token.string == ";":
            if statement:
                yield statement
            statement = []
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            statement.append(token)


def measured_source(raw_cell: str) -> str:
    """The text whose line 1 is line 1 of the frames of a measured cell.

    IPython drops blank lines at the top; another ``%%magic`` above ours (``%%time``) runs only what is below it.
    """
    lines = raw_cell.splitlines(keepends=True)
    for start, line in enumerate(lines):
        if line.strip() and (_HEAD.match(line) or not line.startswith("%%")):
            return "".join(lines[start:])
    return raw_cell

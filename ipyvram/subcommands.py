"""``%vram last``, ``%vram history``, ``%vram export PATH``: what can be done with reports that exist already.

A line comes in; text, a DataFrame or a report to show goes out. Mistakes are ValueErrors: `magic` makes them UsageErrors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ipyvram import journal
from ipyvram.report import Report
from ipyvram.units import format_bytes


class Subcommand(NamedTuple):
    """A word after ``%vram``; ``run`` takes the rest of the line."""

    usage: str
    help: str
    run: Callable[[str], Any]


def _newest() -> Report:
    report = journal.last()
    if report is None:
        raise ValueError("there is no report yet: put %%vram on the first line of a cell and run it")
    return report


def _last(rest: str) -> Report:
    _no_more("last", rest)
    return _newest()


def _history(rest: str) -> Any:
    _no_more("history", rest)
    return journal.history()


def _no_more(name: str, rest: str) -> None:
    if rest:
        raise ValueError(f"%vram {name} takes nothing more, not {rest!r}")


def _export(rest: str) -> None:
    path = Path(rest.strip("\"'")).expanduser()
    writers = {".json": _json, ".html": _html}
    if path.suffix.lower() not in writers:
        raise ValueError(f"%vram export {rest or 'PATH'}: name a file that ends in .json or .html")
    text = writers[path.suffix.lower()](_newest())
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"%vram export {rest}: {error.strerror or error}") from None
    print(f"wrote {path} ({format_bytes(path.stat().st_size)})")


def _json(report: Report) -> str:
    return report.to_json() + "\n"


def _html(report: Report) -> str:
    from ipyvram.render.html import page

    return page(report)


SUBCOMMANDS = {
    "last": Subcommand("%vram last", "show the newest report again", _last),
    "history": Subcommand("%vram history", "this session's reports as a DataFrame", _history),
    "export": Subcommand("%vram export PATH", "write the newest report to a .json or .html file", _export),
}


def run_subcommand(line: str) -> Any:
    """Run ``%vram WORD …``.

    Returns
    -------
    Report, DataFrame or None
        A report is to be shown; a DataFrame is the magic's value.

    Raises
    ------
    ValueError
        There is no such subcommand, or its arguments are wrong.
    """
    name, _, rest = line.partition(" ")
    subcommand = SUBCOMMANDS.get(name)
    if subcommand is None:
        known = ", ".join(s.usage for s in SUBCOMMANDS.values())
        raise ValueError(
            f"%vram {name} alone in its cell is not a subcommand (there are {known}); "
            "to measure a cell, put %%vram on its first line and code below it"
        )
    return subcommand.run(rest.strip())

"""``%vram last``, ``%vram history``, ``%vram export PATH``: what can be done with reports that exist already.

A line comes in; text, a DataFrame or a report to show goes out. Mistakes are ValueErrors: `magic` makes them UsageErrors.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ipyvram import auto, journal, resident_commands
from ipyvram.report import Report
from ipyvram.units import format_bytes


class Subcommand(NamedTuple):
    """A word after ``%vram``; ``run`` takes the rest of the line, and the namespace where it ``looks``; ``offers`` is for Tab."""

    usage: str
    help: str
    run: Callable[..., Any]
    looks: bool = False
    offers: Callable[[], list[str]] = list


class Display(NamedTuple):
    """Something to show that is no report: MIME type → data."""

    data: dict[str, Any]


def _newest() -> Report:
    report = journal.last()
    if report is None:
        raise ValueError("there is no report yet: put %%vram on the first line of a cell and run it")
    return report


def _last(rest: str) -> Report:
    _no_more("last", rest)
    return _newest()


def _history(rest: str) -> Any:
    """The cells that took most first, to be read; the index still tells their order. `journal.history` is for programs."""
    _no_more("history", rest)
    _newest()
    frame = journal.history().sort_values("peak_bytes", ascending=False, kind="stable")
    frame = frame.drop(columns=[name for name in frame if name != "label" and frame[name].isna().all()])
    words: list[str] = list(frame.select_dtypes("string").columns)
    frame[words] = frame[words].fillna("")
    frame["started"] = frame["started"].dt.floor("s")
    frame.insert(1, "peak", [format_bytes(n) for n in frame["peak_bytes"]])
    frame.insert(2, "peak_when", frame.pop("peak_when"))  # a narrow terminal shows the first columns and the last
    return frame


def _note(rest: str) -> Display:
    text = rest.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not text:
        raise ValueError("%vram note TEXT: write the remark that the newest report is to have")
    _newest()
    report = journal.annotate(text)
    assert report is not None
    from ipyvram.render.bundle import MIME_TYPE, small_dict

    told = f"note on {report.label or 'the newest report'}: {text}"
    return Display({"text/plain": told, MIME_TYPE: small_dict(report)})  # so that the saved notebook has it as well


def _compare(rest: str) -> Display:
    from ipyvram.comparing import Numbered, compare_line
    from ipyvram.render.difference import bundle

    return Display(bundle(compare_line(rest, [Numbered(*pair) for pair in journal.numbered()])))


def _labels() -> list[str]:
    labels = dict.fromkeys(str(report.label) for _, report in journal.numbered() if report.label)
    return [f'"{label}"' if " " in label else label for label in labels]


def _auto(rest: str) -> None:
    print(auto.switch(rest))


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


def _who(rest: str, namespace: dict[str, Any]) -> Display:
    return Display(resident_commands.who(rest, namespace))


SUBCOMMANDS = {
    "last": Subcommand("%vram last", "show the newest report again", _last),
    "history": Subcommand("%vram history", "this session's cells as a DataFrame, the highest peak first", _history),
    "export": Subcommand(
        "%vram export PATH",
        "write the newest report to a .json or .html file",
        _export,
        offers=lambda: ["report.html", "report.json"],
    ),
    "compare": Subcommand(
        "%vram compare A B [C]",
        "what changed between reports, named by label or number; A alone: between its runs; A --steps 1 2: between steps of one",
        _compare,
        offers=lambda: [*_labels(), "--steps"],
    ),
    "note": Subcommand("%vram note TEXT", "add a remark to the newest report", _note),
    "auto": Subcommand(
        "%vram auto on|off",
        "measure every cell from now on, one line each; on --min 10MiB: only where that much changes",
        _auto,
        offers=lambda: ["on", "off", "--min"],
    ),
    "who": Subcommand("%vram who", "who holds memory now, and what releases it", _who, looks=True),
    "free": Subcommand(
        "%vram free FLAGS",
        "release --traceback, --out, --cycles, --cache: only what is named; prints what that freed",
        resident_commands.free,
        looks=True,
        offers=resident_commands.free_flags,
    ),
}


def offers(words: list[str]) -> list[str]:
    """What could come next after ``%vram`` and these words; subcommands where there are none."""
    return [offer for offer in SUBCOMMANDS[words[0]].offers() if offer not in words] if words else list(SUBCOMMANDS)


def usages() -> dict[str, str]:
    """Every line of this kind → its meaning."""
    return {"%vram": "what is in memory now, by category and by holder"} | {
        s.usage: s.help for s in SUBCOMMANDS.values()
    }


def run_subcommand(line: str, namespace: dict[str, Any] | None = None) -> Any:
    """Run ``%vram WORD …``, or ``%vram`` alone.

    Parameters
    ----------
    namespace : dict, optional
        The notebook's variables.

    Returns
    -------
    Report, Display, DataFrame or None
        A report or a `Display` is to be shown; a DataFrame is the magic's value.

    Raises
    ------
    ValueError
        There is no such subcommand, or its arguments are wrong.
    """
    if not line:
        return Display(resident_commands.now("", namespace or {}))
    name, _, rest = line.partition(" ")
    subcommand = SUBCOMMANDS.get(name)
    if subcommand is None:
        close = difflib.get_close_matches(name, SUBCOMMANDS, 1)
        guess = f": did you mean %vram {close[0]}?" if close else ""
        if name in (namespace or {}):
            guess = f", and {name} is a variable: %vram who tells what each of them holds"
        raise ValueError(
            f"%vram {name} is not a subcommand{guess} (there are {', '.join(SUBCOMMANDS)}; %vram -h tells what they do); "
            "to measure a cell, put %%vram on its first line and code below it"
        )
    return subcommand.run(rest.strip(), namespace or {}) if subcommand.looks else subcommand.run(rest.strip())

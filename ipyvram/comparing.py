"""``%vram compare A B [C]``: words of a line and this session's reports come in, a `Difference` goes out."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from ipyvram.difference import Difference, compare, compare_steps
from ipyvram.report import Report


class Numbered(NamedTuple):
    """A report and its number in the session or in a notebook."""

    number: int
    report: Report


def compare_line(line: str, reports: Sequence[Numbered]) -> Difference:
    """What a line asks for.

    ``A B [C]`` are labels (their newest report) or numbers as in ``%vram history``; a label of several words needs no
    quotes where it is known; one label alone compares all its runs; ``A --steps 1 2`` compares steps of one report, of the newest where A is left out.

    Raises
    ------
    ValueError
        A label or number is not there, or there is nothing to compare with.
    """
    words = _words(line, {n.report.label for n in reports if n.report.label})
    if "--steps" in words:
        at = words.index("--steps")
        return compare_steps(_one(words[:at], reports), _steps(words[at + 1 :]))
    if len(words) == 1:
        runs = [n.report for n in reports if n.report.label == words[0]]
        if len(runs) < 2:
            raise ValueError(
                f"%vram compare {words[0]}: {'only one report has' if runs else 'no report has'} that label; name two, "
                "as in compare A B"
            )
        return compare(*runs)
    if not words:
        raise ValueError(f"%vram compare A B: name two reports, by label or number ({_known(reports)})")
    return compare(*(find(word, reports) for word in words))


def find(word: str, reports: Sequence[Numbered]) -> Report:
    """The newest report with a label; the one with a number where no label is so.

    Raises
    ------
    ValueError
        There is none; the message lists those there are.
    """
    found = [n.report for n in reports if n.report.label == word]
    found = found or [n.report for n in reports if word.isdigit() and n.number == int(word)]
    if not found:
        labels = list(dict.fromkeys(n.report.label for n in reports if n.report.label))
        close = [label for label in labels if label.startswith(word)] or difflib.get_close_matches(word, labels, 1)
        guess = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no report is called {word!r}{guess} (there are {_known(reports)})")
    return found[-1]


def _words(line: str, labels: set[str]) -> list[str]:
    """The line's words; those that together are a label count as one."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        if not any("'" in label and label in line for label in labels):
            raise ValueError(f"%vram compare {line}: {error}") from None
        words = line.split()  # an apostrophe, and no quote
    found = []
    while words:
        most = next((n for n in range(len(words), 1, -1) if " ".join(words[:n]) in labels), 1)
        found.append(" ".join(words[:most]))
        del words[:most]
    return found


def _one(words: list[str], reports: Sequence[Numbered]) -> Report:
    if len(words) > 1:
        raise ValueError(f"--steps compares steps of one report, not of {' and '.join(words)}")
    if not reports:
        raise ValueError("there is no report yet: put %%vram on the first line of a cell and run it")
    return find(words[0], reports) if words else reports[-1].report


def _steps(words: list[str]) -> list[int]:
    if any(not re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        raise ValueError(f"--steps {' '.join(words)}: write step numbers, as in --steps 1 2")
    return [int(word) for word in words] or [1, 2]


def _known(reports: Sequence[Numbered]) -> str:
    if not reports:
        return "none yet"
    shown = [f"{n.number}" + (f" {n.report.label!r}" if n.report.label else "") for n in reports[-8:]]
    return ("… " if len(reports) > 8 else "") + ", ".join(shown)

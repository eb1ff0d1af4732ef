"""What ``%%vram?`` and Tab show: the table of options in words."""

from __future__ import annotations

import textwrap

from ipyvram.options import BY_FLAG, HELP_FLAGS, OPTIONS


def help_text(subcommands: dict[str, str] | None = None) -> str:
    """What ``%%vram?`` and ``%%vram -h`` show; ``subcommands`` maps a usage of ``%vram`` to its meaning."""
    rows = [(f"{option.flag} {option.metavar}".strip(), option.help) for option in OPTIONS]
    rows.append((", ".join(HELP_FLAGS), "show this text instead of running the cell"))
    lines = [
        "Measure the cell and show under it where every byte of memory went.",
        "",
        "    %%vram [LABEL] [options]      or %vram … on the first line of the cell",
        "",
        "LABEL is any words before the first option. Options:",
        "",
        *_table(rows),
    ]
    if subcommands:
        lines += ["", "In a line of its own:", ""]
        lines += _table(list(subcommands.items()))
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Usages and meanings side by side, in lines of at most 100 columns."""
    width = max(len(usage) for usage, _ in rows) + 2
    lines = []
    for usage, meaning in rows:
        first, *more = textwrap.wrap(meaning, 96 - width)
        lines += [f"    {usage:<{width}}{first}", *(" " * (4 + width) + line for line in more)]
    return lines


def complete(before: str) -> list[str]:
    """What could come next in a ``%%vram`` line, given its text up to the word being typed.

    After an option: its usual values. Elsewhere: the options that are not there yet.
    """
    words = before.split()
    if words and words[-1] in BY_FLAG:
        return list(BY_FLAG[words[-1]].completions)
    return [flag for flag in (*BY_FLAG, "--help") if flag not in words]

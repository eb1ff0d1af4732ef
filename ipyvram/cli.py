"""``python -m ipyvram run|show|compare|export NOTEBOOK…``: words of a command line come in; text, files and an exit code go out.

Exit codes: 0 done, 1 something failed (a cell, a notebook, a file), 2 the command line itself is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ipyvram import __version__
from ipyvram.exporting import FORMATS, TABLES, as_csv, as_json, as_page, differences, write_parquet
from ipyvram.units import format_bytes, format_duration

if TYPE_CHECKING:
    from ipyvram.comparison import Comparison
    from ipyvram.difference import Difference
    from ipyvram.notebooks import Compared, Found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.command(parsed))
    except OSError as error:
        print(f"ipyvram {parsed.name}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"ipyvram {parsed.name}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ipyvram", description="Run notebooks, and read the memory reports that they keep."
    )
    parser.add_argument("--version", action="version", version=f"ipyvram {__version__}")
    commands = parser.add_subparsers(dest="name", metavar="run|show|compare|export", required=True)

    run = commands.add_parser("run", help="execute a notebook in a real kernel and print its reports")
    run.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="it is read, and not written to")
    run.add_argument(
        "--output-dir", type=Path, default=Path("executed"), metavar="DIR",
        help="where the executed notebook and its HTML page go (executed)",
    )  # fmt: skip
    run.add_argument("--kernel", metavar="NAME", help="an installed kernel (default: this Python)")
    run.add_argument("--timeout", type=int, metavar="SECONDS", help="time a cell may take (default: no bound)")
    run.set_defaults(command=_run)

    show = commands.add_parser("show", help="print the reports of notebooks")
    _add_notebooks(show)
    show.add_argument("--full", action="store_true", help="each report whole, and not one line of a table")
    show.set_defaults(command=_told, tell=_show)

    compare = commands.add_parser("compare", help="what changed between reports, by category")
    _add_notebooks(compare)
    compare.add_argument(
        "--reports", nargs="+", metavar="A",
        help="labels, or numbers in the order found; by default all of one notebook, or equal labels of several",
    )  # fmt: skip
    compare.add_argument(
        "--format", choices=("text", "csv", "json", "html"), default="text", help="of what is written (text)"
    )
    _add_output(compare)
    compare.set_defaults(command=_told, tell=_compare)

    export = commands.add_parser("export", help="the reports of notebooks as CSV, JSON, Parquet or one HTML page")
    _add_notebooks(export)
    export.add_argument("--format", choices=FORMATS, default="csv", help="of what is written (csv)")
    export.add_argument(
        "--table", choices=tuple(TABLES), default="reports", help="which table, for CSV and Parquet (reports)"
    )
    _add_output(export)
    export.set_defaults(command=_told, tell=_export)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to a file and not to the terminal")


def _add_notebooks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK", help="executed notebooks (.ipynb)")


def _run(parsed: argparse.Namespace) -> int:
    from ipyvram.headless import execute

    done = execute(parsed.notebook, parsed.output_dir, kernel=parsed.kernel, timeout_s=parsed.timeout)
    print(f"wrote {done.notebook} and {done.page}")
    if done.error is not None:
        print(f"ipyvram run: {parsed.notebook.name} stopped at an error: {done.error}", file=sys.stderr)
        return 1
    return 0


def _told(parsed: argparse.Namespace) -> int:
    """Tell of the reports of all notebooks; what was skipped is named on stderr, and a notebook that is not there counts.

    Raises
    ------
    ValueError
        There is no report.
    """
    from ipyvram.notebooks import scan_all

    everything = scan_all(tuple(parsed.notebooks))
    for line in everything.skipped:
        print(f"ipyvram {parsed.name}: {line}", file=sys.stderr)
    if not everything.found and not (parsed.name == "show" and everything.compared):
        raise ValueError("no report found")
    parsed.tell(parsed, everything.found)
    if parsed.name == "show" and everything.compared:
        _show_compared(everything.compared, full=parsed.full, below=bool(everything.found))
    return int(everything.unread > 0)


def _show_compared(compared: tuple[Compared, ...], *, full: bool, below: bool) -> None:
    """Comparisons of batch sizes and of reports, below the reports."""
    if full:
        for one in compared:
            print(f"{one.notebook}, comparison in cell {one.cell}\n{one.made}\n")
        return
    from ipyvram.render.columns import columns

    rows = [[one.notebook, str(one.cell), *_in_short(one.made)] for one in compared]
    told = columns([["notebook", "cell", "comparison", "result"], *rows], right=(1,), widest=100)
    print("\n" * below + told)


def _in_short(made: Comparison | Difference) -> tuple[str, str]:
    """What was compared, and what came out."""
    from ipyvram.difference import Difference
    from ipyvram.render.comparison_words import put_into_words
    from ipyvram.render.difference import headline

    if isinstance(made, Difference):
        return ", ".join(side.name for side in made.sides), headline(made)
    words = put_into_words(made)
    sizes = ", ".join(str(row.batch) for row in made.rows)
    return f"{words.title}: {made.name} {sizes}", "; ".join(strong for strong, _ in words.headline) or words.fit


def _show(parsed: argparse.Namespace, found: tuple[Found, ...]) -> None:
    if not found:
        return
    if parsed.full:
        from ipyvram.render.terminal import looks
        from ipyvram.render.text import text

        for one in found:
            print(f"{one.notebook}, report {one.number}, cell {one.cell}\n{text(one.report, **looks())}\n")
    else:
        print(_table(found))


def _compare(parsed: argparse.Namespace, found: tuple[Found, ...]) -> None:
    from ipyvram.render.difference import html, text
    from ipyvram.render.html import page_of
    from ipyvram.render.terminal import looks
    from ipyvram.render.text import Pen

    made = differences(found, parsed.reports)
    if parsed.format == "html":
        told = page_of("Comparison", [("", html(d)) for d in made])
    elif parsed.format == "json":
        told = json.dumps([d.to_dict() for d in made], indent=1, ensure_ascii=False)
    elif parsed.format == "csv":
        told = "\n".join(d.to_frame().to_csv() for d in made).rstrip()
    else:
        told = "\n\n".join(text(d, Pen(**looks())) for d in made)
    _deliver(told, parsed.output)


def _export(parsed: argparse.Namespace, found: tuple[Found, ...]) -> None:
    if parsed.format == "parquet":
        if parsed.output is None:
            raise ValueError("--format parquet needs --output FILE")
        write_parquet(found, parsed.table, parsed.output)
        print(f"wrote {parsed.output}")
        return
    makers = {
        "csv": lambda: as_csv(found, parsed.table),
        "json": lambda: as_json(found),
        "html": lambda: as_page(found),
    }
    _deliver(makers[parsed.format]().rstrip("\n"), parsed.output)


def _deliver(text: str, path: Path | None) -> None:
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {path}")


def _table(found: tuple[Found, ...]) -> str:
    """One line a report."""
    from ipyvram.render.columns import columns

    head = ["notebook", "report", "cell", "label", "device", "peak", "when", "steps", "time", "error"]
    rows = [
        [
            f.notebook, str(f.number), str(f.cell), f.report.label or "", f.report.device,
            format_bytes(f.report.peak_bytes), f.report.peak_when, str(f.report.steps),
            format_duration(f.report.duration_s), f.report.error or "",
        ]
        for f in found
    ]  # fmt: skip
    return columns([head, *rows], right=(1, 2, 5, 7, 8))

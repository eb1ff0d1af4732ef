"""A report as text for a terminal: a `Report` comes in, lines of at most the given width go out.

The same facts as the HTML form, from the same `summary`; `tests/test_render_text.py` holds the two together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipyvram.render.columns import display_width
from ipyvram.render.markup import clean
from ipyvram.render.oom import oom_text
from ipyvram.render.palette import CARD_LETTERS, CARD_LETTERS_ASCII, CATEGORIES, COLOURS, LETTERS, STACK
from ipyvram.render.scene import columns
from ipyvram.render.summary import Line, Summary, group_words, summarise, tensor_words
from ipyvram.report import Report
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes, format_duration, format_share

#: Rows of the lists below the table; rows of the chart.
TENSOR_ROWS, GROUP_ROWS, CHART_ROWS = 8, 6, 8

_ASCII = str.maketrans({"·": "-", "–": "-", "→": "->", "×": "x", "≈": "~", "≥": ">=", "≤": "<=", "…": "...", "│": "|", "─": "-", "└": "`", "┬": "|", "▲": "^"})  # fmt: skip


def text(report: Report, *, width: int = 80, unicode: bool = True, colour: bool = False) -> str:
    """The report as lines of text.

    Parameters
    ----------
    width : int
        Columns; no line is longer.
    unicode : bool
        Whether the terminal has more than ASCII.
    colour : bool
        Whether it understands ANSI colours.
    """
    pen = Pen(width, unicode, colour)
    blocks = [_account(report, pen), *(_account(other, pen) for other in report.others)]
    lines = [line for i, block in enumerate(blocks) for line in ([""] if i else []) + block]
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True, slots=True)
class Pen:
    """How to write: width in columns, whether Unicode, whether colour."""

    width: int
    unicode: bool
    colour: bool

    @property
    def half_blocks(self) -> bool:
        """Whether areas can be painted, two cells a character."""
        return self.colour and self.unicode

    def plain(self, words: str) -> str:
        """``words`` without control characters, in the characters the terminal has."""
        words = clean(words)
        return words if self.unicode else words.translate(_ASCII).encode("ascii", "replace").decode()

    def bold(self, words: str) -> str:
        """Emphasis, where there is any."""
        return f"\x1b[1m{words}\x1b[0m" if self.colour else words

    def dim(self, words: str) -> str:
        """Less important."""
        return f"\x1b[2m{words}\x1b[0m" if self.colour else words

    def paint(self, words: str, category: str) -> str:
        """In the colour of a category; the card's parts have none."""
        if not self.colour or category not in COLOURS:
            return words
        return f"\x1b[38;2;{_rgb(category)}m{words}\x1b[0m"

    def blocks(self, cells: Iterable[tuple[str, str]]) -> str:
        """Pairs of categories, above and below, as characters of half blocks; runs of the same are painted at once."""
        return "".join(self._block(pair, len(list(run))) for pair, run in itertools.groupby(cells))

    def _block(self, pair: tuple[str, str], count: int) -> str:
        above, below = pair
        if not below:
            return " " * count
        if above in ("", below):
            return self.paint(("█" if above else "▄") * count, below)
        return f"\x1b[48;2;{_rgb(below)}m{self.paint('▀' * count, above)}"

    def cut(self, words: str, width: int) -> str:
        """``words`` in at most ``width`` columns."""
        words = self.plain(words)
        if display_width(words) <= width:
            return words
        dots = "…" if self.unicode else "..."
        return fitting(words, width - len(dots)) + dots if width >= len(dots) else ""

    def wrap(self, words: str, indent: str = "") -> list[str]:
        """``words`` over as many lines as they need, from the second on behind ``indent``."""
        words = self.plain(words)
        lines, line = [], " " * (len(words) - len(words.lstrip(" ")))
        for word in words.lstrip(" ").split(" "):
            joined = f"{line} {word}" if line.strip() else line + word
            if display_width(joined) <= self.width:
                line = joined
                continue
            if line.strip():
                lines.append(line)
                line = indent
            while display_width(line + word) > self.width:  # longer than a line
                head = fitting(word, self.width - display_width(line))
                lines.append(line + head)
                line, word = indent, word[len(head) :]
            line += word
        return [*lines, line] if line.strip() else lines

    def letter(self, category: str) -> str:
        """What stands for a category in the bar and the chart."""
        if category in LETTERS:
            return LETTERS[category]
        return (CARD_LETTERS if self.unicode else CARD_LETTERS_ASCII)[category]


def _rgb(category: str) -> str:
    return ";".join(str(int(COLOURS[category][i : i + 2], 16)) for i in (1, 3, 5))


def fitting(words: str, width: int) -> str:
    """The longest beginning of ``words`` that takes at most ``width`` columns."""
    taken = 0
    for i, character in enumerate(words):
        taken += display_width(character)
        if taken > width:
            return words[:i]
    return words


def _account(report: Report, pen: Pen) -> list[str]:
    s = summarise(report)
    lines = [*_head(s, report, pen), ""]
    lines += oom_text(report.oom, pen) if report.oom is not None else []
    lines += [*_bar(s, pen), *pen.wrap(s.sums), "", *_table(s, pen)]
    if s.zeros:
        lines += pen.wrap("Nothing in: " + ", ".join(s.zeros) + ".", "  ")
    chart = _chart(report, pen)
    lines += ["", *chart] if chart else []
    if s.findings:
        mark = "→ " if pen.unicode else "> "
        lines += ["", *(line for text in s.findings for line in pen.wrap(mark + text, "  "))]
    lines += _lists(report, pen)
    lines += ["", *_how(s, pen)]
    return lines


def _head(s: Summary, report: Report, pen: Pen) -> list[str]:
    first = pen.wrap(" · ".join([s.title, *s.context]), "  ")
    note = pen.wrap(report.note, "  ") if report.note else []
    how = f" ({s.how})" if s.how else ""
    peak = pen.wrap(" · ".join([f"Peak {s.peak}{how} {s.when}".rstrip(), *s.remarks]), "  ")
    title = pen.plain(s.title)
    if first[0].startswith(title):  # else it is longer than a line
        first[0] = pen.bold(title) + first[0][len(title) :]
    trouble = [line for words in (s.trouble, *s.verdicts) if words for line in pen.wrap(words, "  ")]
    return [*first, *note, *map(pen.bold, peak), *trouble]


def _bar(s: Summary, pen: Pen) -> list[str]:
    if not s.bar_total:
        return []
    inner = pen.width - 2
    cells: list[str] = []
    done = 0
    for category, size in s.bar:
        done += size
        wanted = round(inner * done / s.bar_total) - len(cells)
        cells += [category] * wanted
    painted = "".join(
        pen.paint(("█" if pen.half_blocks and c in COLOURS else pen.letter(c)) * len(list(run)), c)
        for c, run in itertools.groupby(cells)
    )
    empty = " " * (inner - len(cells))
    return [f"[{painted}{empty}]"]


#: Columns below which the table shows the peak alone.
NARROW = 64


def _table(s: Summary, pen: Pen) -> list[str]:
    if not s.lines:
        return []
    heads = ["peak"] if pen.width < NARROW else ["start", "peak", s.end_title]
    rows = [_figures(line, pen.width < NARROW) for line in s.lines]
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]
    name = max(len(line.label) for line in s.lines)
    mark = "" if s.category_title == "category" else s.category_title.removeprefix("category ")
    titles = [
        f"{mark:<{name + 4}}",
        *(h.rjust(w) for h, w in zip(heads, widths, strict=True)),
        "share",
        "largest holder",
    ]
    lines = [pen.dim(pen.cut("  ".join(titles), pen.width))]
    for line, row in zip(s.lines, rows, strict=True):
        mark = pen.letter(line.category) + (" █" if pen.unicode else "  ")
        share = format_share(line.share, 1) if line.peak else "–"
        figures = "  ".join([*(n.rjust(w) for n, w in zip(row, widths, strict=True)), share.rjust(5)])
        left = f"{line.label:<{name}}  {figures}  "
        holder = pen.cut(line.holder, pen.width - len(left) - 4)
        lines.append(f"{pen.paint(mark, line.category)} {pen.plain(left)}{holder}")
    return lines


def _figures(line: Line, narrow: bool) -> list[str]:
    sizes = (line.peak,) if narrow else (line.start, line.peak, line.end)
    return [format_bytes(n) if n else "–" for n in sizes]


# -- the timeline as a chart of letters ------------------------------------------------------------------------------------


def _chart(report: Report, pen: Pen) -> list[str]:
    """The exact account over time: rows of letters, one column for each stretch of instants that are equally many."""
    data = report.timeline_data
    if len(data.time_s) < 2 or not report.peak_bytes or pen.width < 50:
        return []
    margin = 11
    room = pen.width - margin
    total = data.allocated
    at = (
        [min(room - 1, i * room // len(total)) for i in range(len(total))]
        if len(total) > room
        else list(range(len(total)))
    )
    shown = dict(columns(at, total))
    order = [c for c in STACK if c in data.categories]
    rows = CHART_ROWS * (2 if pen.half_blocks else 1)
    filled, latest = [], 0
    for x in range(max(at) + 1):
        latest = shown.get(x, latest)
        filled.append(_cells([data.categories[c][latest] for c in order], order, report.peak_bytes, rows))
    lines = []
    for row in range(CHART_ROWS - 1, -1, -1):
        label = format_bytes(report.peak_bytes) if row == CHART_ROWS - 1 else ""
        wall = "│" if pen.unicode else "|"
        lines.append(f"{label:>{margin - 2}} {wall}{_row(filled, row, pen)}")
    base = "└" + "─" * len(filled) if pen.unicode else "`" + "-" * len(filled)
    lines.append(" " * (margin - 1) + base)
    lines += _under_chart(report, pen, at, margin, len(filled))
    return lines


def _cells(sizes: Sequence[int], order: Sequence[str], peak: int, rows: int) -> list[str]:
    """A column of the chart from the ground up: the category of each cell."""
    cells: list[str] = []
    done = 0
    for size, category in zip(sizes, order, strict=True):
        done += size
        cells += [category] * (round(rows * done / peak) - len(cells))
    return cells


def _row(filled: Sequence[Sequence[str]], row: int, pen: Pen) -> str:
    """A line of the chart: half blocks where there are colours for them, else letters."""
    if pen.half_blocks:
        return pen.blocks((_at(stack, 2 * row + 1), _at(stack, 2 * row)) for stack in filled)
    cells = [_at(stack, row) for stack in filled]
    return "".join(pen.paint(pen.letter(c), c) if c else " " for c in cells)


def _at(stack: Sequence[str], row: int) -> str:
    return stack[row] if row < len(stack) else ""


def _under_chart(report: Report, pen: Pen, at: Sequence[int], margin: int, width: int) -> Iterable[str]:
    """Where the steps begin, and over which time."""
    marks = [" "] * width
    steps: dict[int, float] = {}
    for phase in report.phases if report.steps else ():
        steps.setdefault(phase.step, phase.start_s)
    times = report.timeline_data.time_s
    for step, start in steps.items():
        index = next((i for i, t in enumerate(times) if t >= start), len(times) - 1)
        label = f"^step {step}"
        if at[index] + len(label) <= width and all(c == " " for c in marks[at[index] : at[index] + len(label)]):
            marks[at[index] : at[index] + len(label)] = label
    end = format_duration(report.timeline_data.end_s)
    part = "estimated" if report.kind == "estimated" else "exact"
    signs = "colours" if pen.half_blocks else "letters"
    told = f"{signs} as in the table; the {part} part, {end}, one column for equally many events"
    lines = [" " * margin + "".join(marks).rstrip(), *(pen.dim(line) for line in pen.wrap(told))]
    passing = [c for c in CATEGORIES if any(report.timeline_data.categories.get(c, ())) and not _in_table(report, c)]
    if passing:
        names = [pen.paint(f"{pen.letter(c)}{' █' if pen.half_blocks else ''} {LABELS[c]}", c) for c in passing]
        lines.append(f"{pen.dim('and between those:')} {', '.join(names)}")
    return lines


def _in_table(report: Report, category: str) -> bool:
    return any(account.get(category) for account in (report.start, report.peak, report.end))


# -- lists ---------------------------------------------------------------------------------------------------------------


def _lists(report: Report, pen: Pen) -> list[str]:
    lines: list[str] = []
    if report.tensors_at_peak:
        rows = []
        for t in report.tensors_at_peak[:TENSOR_ROWS]:
            name, where, shape = tensor_words(t)
            count = f" ×{t.count}" if t.count > 1 else ""
            rows.append((format_bytes(t.bytes), t.category, " · ".join(p for p in (name + count, where, shape) if p)))
        lines += ["", pen.bold("Largest tensors at the peak"), *_listed(rows, pen)]
        more = len(report.tensors_at_peak) - TENSOR_ROWS
        if more > 0:
            lines.append(pen.dim(pen.plain(f"  … and {more} more: report.tensors()")))
    for title, groups, otherwise in (
        ("By module at the peak", report.modules_at_peak, "outside any submodule"),
        ("By line at the peak", report.lines_at_peak, "no line known"),
    ):
        if any(g.key for g in groups):
            rows = [
                (format_bytes(g.bytes), max(g.categories, key=g.categories.__getitem__), group_words(g, otherwise))
                for g in groups[:GROUP_ROWS]
            ]
            lines += ["", pen.bold(title), *_listed(rows, pen)]
    return lines


def _listed(rows: Iterable[tuple[str, str, str]], pen: Pen) -> list[str]:
    return [f"{size:>10}  {pen.paint(pen.letter(c), c)} {pen.cut(words, pen.width - 14)}" for size, c, words in rows]


def _how(s: Summary, pen: Pen) -> list[str]:
    facts = [*s.measured, *([s.sources] if s.sources else [])]
    return [pen.bold("How it was measured"), *(line for fact in facts for line in pen.wrap("  " + fact, "    "))]

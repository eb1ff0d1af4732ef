"""The options of ``%%vram`` and `measure`, each declared once: a line of text comes in, `Options` go out.

`OPTIONS` is the table: flags, parsing, and in `option_help` what ``%%vram?`` and Tab show are all read from it. Nothing here knows
torch or IPython; whether a device exists is asked where torch is at hand (`run.check_device`).
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ipyvram import cards
from ipyvram import option_values as read
from ipyvram.cards import Card
from ipyvram.sweep.ranges import parse_batch, parse_name

#: Share of the card to stay within where nothing is said.
DEFAULT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked of one measured run.

    Attributes
    ----------
    label, note : str or None
        A name and a remark, shown and kept with the report.
    limit : tuple of (float or None, int or None)
        The part of the card to stay within, as a share in (0, 1] or as bytes; one of the two is None.
    card : Card or None
        The card to judge by, or to estimate for; None for the device's own.
    interval_s : float
        Seconds between two samples.
    trace_steps : int
        Optimizer steps to trace exactly.
    device : str or None
        Run the cell with this as torch's default and current device; None to leave both alone.
    quiet : bool
        Show no live meter.
    estimate : bool
        Predict instead of measuring.
    budget_bytes : int or None
        Bytes of tensors that the CPU may hold: the allocation beyond raises `torch.OutOfMemoryError`. Keeps the trace on
        to the end of the cell.
    batch : tuple of (str, tuple of int) or None
        A variable and the batch sizes to compare.
    max_batch : str or None
        The variable of which the largest size that fits is searched.
    multiple, effective, steps, rule
        Of such a comparison: sizes are multiples of the first; samples per optimizer step to make up by accumulating;
        timed steps of each trial; ``"fit"`` or ``"tutorial"``.
    """

    label: str | None = None
    note: str | None = None
    limit: tuple[float | None, int | None] = (DEFAULT_SHARE, None)
    card: Card | None = None
    interval_s: float = 0.05
    trace_steps: int = 3
    device: str | None = None
    quiet: bool = False
    estimate: bool = False
    budget_bytes: int | None = None
    batch: tuple[str, tuple[int, ...]] | None = None
    max_batch: str | None = None
    multiple: int = 1
    effective: int | None = None
    steps: int = 3
    rule: str = "fit"

    @property
    def card_bytes(self) -> int | None:
        """Memory of the card to judge by; None for the device's own."""
        return None if self.card is None else self.card.total_bytes

    @property
    def card_name(self) -> str:
        """Name of the card to judge by; empty for the device's own, or where only a size was given."""
        return "" if self.card is None else self.card.given_name

    @property
    def card_note(self) -> str:
        """How a name that several cards have was taken; empty where it is the name of one."""
        return "" if self.card is None else self.card.note


class Option(NamedTuple):
    """One row of the table.

    ``parse`` raises ValueError with what would be right; ``words``: the value runs on to the next option. A row without
    ``metavar`` is a switch: it takes no value, and ``parse`` is given ``"True"``. ``takes_cell``: the cell is handed over
    as text (it may run several times, or not at all) instead of running as an ordinary cell.
    """

    flag: str
    metavar: str
    field: str
    help: str
    parse: Callable[[str], Any]
    completions: tuple[str, ...] = ()
    words: bool = False
    takes_cell: bool = False

    @property
    def keyword(self) -> str:
        """The name as an argument of `measure`: ``--trace-steps`` is ``trace_steps``."""
        return self.flag[2:].replace("-", "_")


OPTIONS = (
    Option(
        "--note", "TEXT", "note",
        "a remark kept with the report; runs on to the next option",
        read.text, words=True,
    ),
    Option(
        "--limit", "LIMIT", "limit",
        "stay within this part of the card: 80% (the default), 0.8, or a size such as 8GiB",
        read.limit, ("80%", "90%", "95%", "8GiB", "16GiB"),
    ),
    Option(
        "--card", "CARD", "card",
        "judge by this card instead of your own: a name such as RTX 4090 or T4, or a size such as 24GiB",
        cards.find, cards.SUGGESTIONS, words=True,
    ),
    Option(
        "--interval", "MS", "interval_s",
        "milliseconds between two samples (50)",
        read.milliseconds, ("20", "50", "200", "1000"),
    ),
    Option(
        "--trace-steps", "N", "trace_steps",
        "optimizer steps to trace exactly (3)",
        read.steps, ("1", "3", "5", "10"),
    ),
    Option(
        "--device", "DEV", "device",
        "run the cell with this as torch's default and current device",
        read.device, ("cpu", "cuda", "cuda:0", "mps"),
    ),
    Option(
        "--quiet", "", "quiet",
        "show no live meter while the cell runs",
        read.switch,
    ),
    Option(
        "--estimate", "", "estimate",
        "predict what the cell would take, on --card or a card of 24 GiB, without running it on a GPU",
        read.switch, takes_cell=True,
    ),
    Option(
        "--budget", "SIZE", "budget_bytes",
        "run out of memory on the CPU beyond this many bytes of tensors, as a card of that size would (slower: traced to the end)",
        read.budget, ("64MiB", "512MiB", "2GiB"),
    ),
    Option(
        "--batch", "NAME=SIZES", "batch",
        "run the cell at these batch sizes (8,16,32 or 8..128 or 8:128:*2 or 8:128:+8) and compare them; NAME is the cell's"
        " variable, or an argument in its calls, and may be another size: an image's side, a sequence's length, a layer's"
        " width; all variables are afterwards as before",
        parse_batch, ("batch_size=8,16,32", "batch_size=8..128"), words=True, takes_cell=True,
    ),
    Option(
        "--max-batch", "NAME", "max_batch",
        "find the largest batch size (or other size: see --batch) that stays within --limit",
        parse_name, ("batch_size",), takes_cell=True,
    ),
    Option(
        "--multiple", "N", "multiple",
        "with --batch or --max-batch: answers are multiples of N (1)",
        read.whole, ("8", "16", "32"),
    ),
    Option(
        "--effective", "N", "effective",
        "with --batch or --max-batch: say how to make up N samples per optimizer step by accumulating gradients",
        read.whole, ("256", "512"),
    ),
    Option(
        "--steps", "N", "steps",
        "with --batch or --max-batch: optimizer steps to time in each trial, after 2 to warm up (3)",
        read.steps, ("3", "5", "10"),
    ),
    Option(
        "--rule", "RULE", "rule",
        "with --max-batch: fit (predict, run, correct) or tutorial (start at 16, add 16 until the limit is crossed)",
        read.rule, ("fit", "tutorial"),
    ),
)  # fmt: skip

#: What only means something beside one of the options on the right.
_COMPANIONS = {
    "--multiple": ("batch", "max_batch"),
    "--effective": ("batch", "max_batch"),
    "--steps": ("batch", "max_batch"),
    "--rule": ("max_batch",),
}

BY_FLAG = {option.flag: option for option in OPTIONS}
_BY_KEYWORD = {option.keyword: option for option in OPTIONS}
_KEYWORDS = [o.keyword for o in OPTIONS if not o.takes_cell and o.flag not in _COMPANIONS]
HELP_FLAGS = ("-h", "--help")


class _Token(NamedTuple):
    text: str
    quoted: bool


def _tokens(line: str) -> list[_Token]:
    """Words of a line; quotes count where a word or a value after ``=`` begins: ``John's model`` is two words."""
    tokens, position = [], 0
    word = re.compile(r"""\s*(?:(--[\w-]+)=(?=["']))?(?:"([^"]*)"|'([^']*)'|(\S+))(?=\s|$)""")
    while line[position:].strip():
        match = word.match(line, position)
        flag, double, single, bare = match.groups() if match else (None, None, None, None)
        if match is None or (bare is not None and bare[0] in "\"'"):
            raise ValueError(f"{line[position:].strip()!r} begins with a quote that is not closed before a space")
        if flag is not None:
            tokens.append(_Token(flag, False))
        if bare is None:
            tokens.append(_Token(double if double is not None else single or "", True))
        elif bare.startswith("--") and "=" in bare:
            tokens += [_Token(part, i == 1) for i, part in enumerate(bare.split("=", 1))]
        else:
            tokens.append(_Token(bare, False))
        position = match.end()
    return tokens


def _is_flag(token: _Token) -> bool:
    return not token.quoted and len(token.text) > 1 and token.text.startswith("-")


def wants_help(line: str) -> bool:
    """Whether the line asks for help and nothing else is to happen."""
    try:
        return any(not token.quoted and token.text in HELP_FLAGS for token in _tokens(line))
    except ValueError:
        return False


def takes_cell(line: str) -> bool:
    """Whether an option of the line wants the cell as text; a line that cannot be read does not."""
    try:
        return any(not t.quoted and t.text in BY_FLAG and BY_FLAG[t.text].takes_cell for t in _tokens(line))
    except ValueError:
        return False


def parse(line: str) -> Options:
    """Read what follows ``%%vram``: the label's words, then options.

    Raises
    ------
    ValueError
        Names the option, its value and what would be right.
    """
    tokens = _tokens(line)
    first = next((i for i, token in enumerate(tokens) if _is_flag(token)), len(tokens))
    values: dict[str, Any] = {"label": " ".join(token.text for token in tokens[:first]) or None}
    position = first
    while position < len(tokens):
        option = _option(tokens[position].text)
        if option.field in values:
            raise ValueError(f"{option.flag} is given twice")
        end = next((i for i in range(position + 1, len(tokens)) if _is_value_end(option, tokens[i])), len(tokens))
        words = [token.text for token in tokens[position + 1 : end]]
        if not option.metavar:
            if text := " ".join(words):
                raise ValueError(f"{text!r} after {option.flag}, which takes no value: {_place_of(text)}")
            words = ["True"]
        if not words:
            raise ValueError(f"{option.flag} needs a value: {option.flag} {option.metavar}, {option.help}")
        values[option.field] = _parse_words(option, words)
        position = end
    _check_together(values)
    return Options(**values)


def _place_of(text: str) -> str:
    """Where words belong that stand behind a switch: people write ``--estimate T4``."""
    with contextlib.suppress(ValueError):
        cards.find(text)
        return f"write --card {text}"
    return "the label goes first"


def _parse_words(option: Option, words: Sequence[str]) -> Any:
    """The value, as ``80 %`` too; of one that goes wrong by a label behind it, that is said (a card's name has a figure)."""
    try:
        return _parse_value(option, " ".join(words))
    except ValueError:
        for count in range(len(words) - 1, 0, -1):
            begin, rest = " ".join(words[:count]), " ".join(words[count:])
            with contextlib.suppress(ValueError):
                if (not option.words or any(c.isdigit() for c in begin)) and _parse_value(option, begin) is not None:
                    break
        else:
            raise
    raise ValueError(f"{rest!r} after {option.flag} {begin}: the label goes before the first option")


def _check_together(values: dict[str, Any]) -> None:
    if "batch" in values and "max_batch" in values:
        raise ValueError("--batch compares the sizes it is given and --max-batch searches for one: take either")
    if "budget_bytes" in values and any(field in values for field in ("estimate", "batch", "max_batch")):
        raise ValueError(
            "--budget is for a cell that runs once, on the CPU: here --limit and --card say how much there is"
        )
    for flag, fields in _COMPANIONS.items():
        if BY_FLAG[flag].field in values and not any(field in values for field in fields):
            raise ValueError(f"{flag} goes with {' or '.join('--' + field.replace('_', '-') for field in fields)}")


def _is_value_end(option: Option, token: _Token) -> bool:
    # A negative number is a (wrong) value and not an option: the message should be about the value.
    return _is_flag(token) and (option.words or not re.fullmatch(r"-[0-9.]+%?\w*", token.text))


def from_keywords(label: str | None = None, **values: Any) -> Options:
    """Options from Python arguments: the table's names, values as text or as the obvious Python object.

    Raises
    ------
    ValueError
        A value is wrong; the message says what would be right.
    TypeError
        There is no such option.
    """
    fields: dict[str, Any] = {}
    for keyword, value in values.items():
        option = _BY_KEYWORD.get(keyword)
        if option is not None and (option.takes_cell or option.flag in _COMPANIONS):
            raise TypeError(
                f"{keyword!r} needs code that can run again: ipyvram.estimate() or ipyvram.compare_batches()"
            )
        if option is None:
            raise TypeError(f"{keyword!r} is not an option{_guess(keyword, _KEYWORDS)}")
        if value is not None:
            fields[option.field] = _parse_value(option, str(value))
    return Options(label=None if label is None else str(label), **fields)


def _option(text: str) -> Option:
    try:
        return BY_FLAG[text]
    except KeyError:
        raise ValueError(f"{text} is not an option of %%vram{_guess(text, list(BY_FLAG))}") from None


def _guess(text: str, known: list[str]) -> str:
    close = difflib.get_close_matches(text, known, 1)
    return f": did you mean {close[0]}?" if close else f": there are {', '.join(known)}"


def _parse_value(option: Option, value: str) -> Any:
    try:
        return option.parse(value)
    except ValueError as error:
        raise ValueError(f"{option.flag} {value}: {error}") from None

"""Each option is declared once: what its text means, what a mistake is told, what help and completion show."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.cards import named, of_size
from ipyvram.options import (
    _COMPANIONS,
    OPTIONS,
    Options,
    from_keywords,
    parse,
    takes_cell,
    wants_help,
)
from ipyvram.units import GIB, MIB


def test_nothing_written_means_the_defaults():
    assert parse("") == Options()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bs64-amp", {"label": "bs64-amp"}),
        ("batch of 64, with AMP", {"label": "batch of 64, with AMP"}),
        ('"a  label"', {"label": "a  label"}),
        ("John's model", {"label": "John's model"}),
        ("--note grew the head --limit 90%", {"note": "grew the head", "limit": (0.9, None)}),
        ("--note='x --limit 3%'", {"note": "x --limit 3%"}),
        ("--limit 0.5", {"limit": (0.5, None)}),
        ("--limit 8GiB", {"limit": (None, 8 * GIB)}),
        ("--limit 8589934592", {"limit": (None, 8 * GIB)}),
        ("--limit=75%", {"limit": (0.75, None)}),
        ("--card 24GiB", {"card": of_size(24 * GIB)}),
        ("--card RTX 4090 --limit 90%", {"card": named("RTX 4090"), "limit": (0.9, None)}),
        ("label --estimate --card T4", {"label": "label", "estimate": True, "card": named("T4")}),
        ("--interval 20", {"interval_s": 0.02}),
        ("--interval 20 ms", {"interval_s": 0.02}),
        ("label --limit 80 % --quiet", {"label": "label", "limit": (0.8, None), "quiet": True}),
        ("--budget 64 MiB", {"budget_bytes": 64 * MIB}),
        ("--batch bs=8, 16", {"batch": ("bs", (8, 16))}),
        ("--interval 20ms", {"interval_s": 0.02}),
        ("--trace-steps 5", {"trace_steps": 5}),
        ("--device cuda:1", {"device": "cuda:1"}),
        ("label --trace-steps 1 --device cpu", {"label": "label", "trace_steps": 1, "device": "cpu"}),
    ],
)
def test_what_a_line_means(line, expected):
    assert parse(line) == Options(**expected)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--limit", "--limit needs a value"),
        ("--limit 0%", "--limit 0%: write a share"),
        ("--limit 101%", "--limit 101%: write a share"),
        ("--limit -5%", "--limit -5%: write a share"),
        ("--limit much", "--limit much: write a share"),
        ("--card 24", "--card 24: "),
        ("--interval 0", "--interval 0: write milliseconds"),
        ("--interval nan", "--interval nan: write milliseconds"),
        ("--trace-steps 0", "--trace-steps 0: write a whole number"),
        ("--trace-steps 2.5", "--trace-steps 2.5: write a whole number"),
        ("--device GPU0", "--device GPU0: write a device"),
        ("--limit 80% --limit 90%", "--limit is given twice"),
        ("--estimate baseline", "'baseline' after --estimate, which takes no value: the label goes first"),
        ("--estimate RTX 4090 --quiet", "'RTX 4090' after --estimate, which takes no value: write --card RTX 4090"),
        ("--estimate=T4", "'T4' after --estimate, which takes no value: write --card T4"),
        ("--limit 80% late label", "the label goes before the first option"),
        ("--card RTX 4090 late label", "'late label' after --card RTX 4090: the label goes before the first option"),
        ("--card 8GiB late", "'late' after --card 8GiB: the label goes before the first option"),
        ("--card GTX 960 2GB", "no card is known as 'GTX 960 2GB'"),
        ("--limt 80%", "did you mean --limit?"),
        ("--zzz", "there are --note"),
        ("--device cpu late", "'late' after --device cpu: the label goes before the first option"),
        ('"open', "a quote that is not closed"),
        ("--estimate --budget 1GiB", "--budget is for a cell that runs once"),
        ("--max-batch n --budget 1GiB", "here --limit and --card say how much there is"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(line, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        parse(line)


def test_every_option_parses_each_of_its_completions():
    for option in OPTIONS:
        for value in option.completions:
            beside = "" if option.flag not in _COMPANIONS else "--max-batch n "
            parsed = parse(f"{beside}{option.flag} {value}")
            assert getattr(parsed, option.field) == option.parse(value.strip('"'))
            if not option.takes_cell and not beside:
                assert parsed == from_keywords(**{option.keyword: value})


@pytest.mark.parametrize(("line", "expected"), [("-h", True), ("x --help", True), ("'-h'", False), ("x-h", False)])
def test_asking_for_help(line, expected):
    assert wants_help(line) is expected


def test_an_ordinary_line_leaves_the_cell_to_ipython():
    assert not takes_cell("label --limit 80%")
    assert not takes_cell('"unclosed')


def test_keywords_are_the_same_options():
    assert from_keywords("x", limit="90%", trace_steps=2) == parse("x --limit 90% --trace-steps 2")
    assert from_keywords(limit=0.5).limit == (0.5, None)
    assert from_keywords(note=None) == Options()
    with pytest.raises(TypeError, match="did you mean trace_steps"):
        from_keywords(trace_step=2)
    with pytest.raises(ValueError, match="--limit 7: write"):
        from_keywords(limit=7)


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=60))
def test_any_text_is_understood_or_refused_what_is_wrong(line):
    try:
        options = parse(line)
    except ValueError:
        return
    assert options.trace_steps >= 1
    assert 0 < options.interval_s <= 60


# -- batch sizes -----------------------------------------------------------------------------------------------------


def test_batch_sizes_and_what_goes_with_them():
    options = parse("sweep --batch bs=8, 16,32 --steps 5 --limit 2GiB --effective 256 --multiple 8")
    assert options.batch == ("bs", (8, 16, 32))
    assert (options.steps, options.effective, options.multiple, options.label) == (5, 256, 8, "sweep")
    assert parse("--max-batch bs --rule tutorial").max_batch == "bs"
    assert takes_cell("--batch bs=8,16")
    assert takes_cell("--max-batch bs")
    assert not takes_cell("--steps 5")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--batch 8,16", "--batch 8,16: write the variable and its sizes, such as batch_size=8,16,32"),
        ("--batch bs=8", "--batch bs=8: one size cannot be compared"),
        ("--batch bs=8,many", "'many' is not a batch size"),
        ("--batch if=8,16", "'if' cannot be a variable"),
        ("--max-batch 2x", "'2x' cannot be a variable"),
        ("--max-batch bs --multiple 0", "--multiple 0: write a whole number, 1 or more"),
        ("--max-batch bs --effective half", "--effective half: write a whole number, 1 or more"),
        ("--max-batch bs --rule guess", "--rule guess: write fit"),
        ("--max-batch bs --batch bs=8,16", "take either"),
        ("--steps 5", "--steps goes with --batch or --max-batch"),
        ("--multiple 8", "--multiple goes with --batch or --max-batch"),
        ("--batch bs=8,16 --rule fit", "--rule goes with --max-batch"),
    ],
)
def test_mistakes_in_batch_sizes_are_said(line, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(line)


def test_batch_sizes_are_not_for_measure():
    with pytest.raises(TypeError, match="'batch' needs code that can run again"):
        from_keywords(batch="bs=8,16")

"""``%vram WORD``: what each word does with the reports there are, and what a mistake is told."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from ipyvram import journal
from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from ipyvram.subcommands import SUBCOMMANDS, offers, run_subcommand


@pytest.fixture(autouse=True)
def one_report():
    journal.clear()
    account = dict.fromkeys(CATEGORIES, 0)
    report = Report(0, account, account, account, label="<b>bold</b>")
    journal.add(report)
    yield report
    journal.clear()


def test_tab_offers_what_a_subcommand_takes(one_report):
    """And none of the options of ``%%vram``, which it would refuse."""
    journal.add(replace(one_report, label="two words"))
    assert offers([]) == list(SUBCOMMANDS)
    assert offers(["compare"]) == ["<b>bold</b>", '"two words"', "--steps"]
    assert offers(["free", "--out"]) == ["--traceback", "--cycles", "--cache"]
    assert offers(["who"]) == []
    for word in offers(["export"]):
        assert word.endswith((".html", ".json"))


def test_last_is_the_newest(one_report):
    assert run_subcommand("last") is one_report


def test_history_is_a_table():
    assert run_subcommand("history").label.tolist() == ["<b>bold</b>"]


def test_history_of_nothing_says_how_to_begin():
    journal.clear()
    with pytest.raises(ValueError, match="put %%vram on the first line"):
        run_subcommand("history")


def test_history_is_for_reading():
    account = dict.fromkeys(CATEGORIES, 0)
    journal.add(Report(3 * 2**20, account | {"parameters": 3 * 2**20}, account, account, started_at=1e9 + 0.123))
    table = run_subcommand("history")
    assert table.label.tolist() == ["", "<b>bold</b>"]
    assert table.peak.tolist() == ["3.00 MiB", "0 B"]
    assert "card_bytes" not in table  # there is no card
    assert "NA" not in table.to_string()
    assert str(table.started.iloc[0]) == "2001-09-09 01:46:40+00:00"
    assert journal.history().label.isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("note good", "good"),
        ('note "good"', "good"),
        ("note it's good'", "it's good'"),
        ('note "a" and b', '"a" and b'),
    ],
)
def test_a_note_keeps_the_quotes_that_are_not_around_it(line, kept):
    run_subcommand(line)
    assert journal.last().note == kept


@pytest.mark.parametrize("name", ["a report.json", "report.html"])
def test_export_writes_a_file_that_can_be_read(tmp_path, capsys, name, one_report):
    run_subcommand(f'export "{tmp_path / name}"')
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert name in capsys.readouterr().out
    if name.endswith("json"):
        assert Report.from_dict(json.loads(text)) == one_report
    else:
        assert "<b>bold" not in text
        assert "&lt;b&gt;bold" in text


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lst", "%vram lst is not a subcommand: did you mean %vram last?"),
        ("my label", "to measure a cell, put %%vram on its first line"),
        ("last 3", "takes nothing more"),
        ("export", "ends in .json or .html"),
        ("export report.png", "ends in .json or .html"),
        ("export /no/such/folder/x.json", "No such file"),
    ],
)
def test_mistakes_are_told(line, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        run_subcommand(line)


def test_the_name_of_a_variable_is_told_from_a_subcommand():
    with pytest.raises(ValueError, match="%vram model is not a subcommand, and model is a variable: %vram who tells"):
        run_subcommand("model", {"model": object()})


def test_without_a_report_it_says_how_to_make_one():
    journal.clear()
    with pytest.raises(ValueError, match="put %%vram on the first line"):
        run_subcommand("last")


def test_every_word_has_a_usage_that_begins_with_it():
    for word, subcommand in SUBCOMMANDS.items():
        assert subcommand.usage.startswith(f"%vram {word}")
        assert subcommand.help

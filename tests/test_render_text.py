"""The text form: as wide as asked, in the characters that there are, and as complete as the HTML form."""

from __future__ import annotations

import re

import pytest

from ipyvram.render.text import text
from tests import reports

CASES = {
    "training": reports.training,
    "cpu": reports.cpu,
    "long": reports.long,
    "retraced": reports.retraced,
    "empty": reports.empty,
}


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_too_long(case, width):
    assert max(map(len, text(CASES[case](), width=width).splitlines())) <= width


@pytest.mark.parametrize("case", CASES)
def test_without_unicode_it_is_ascii(case):
    report = CASES[case](label="Größe · 模型")
    assert text(report, unicode=False).isascii()


@pytest.mark.parametrize("case", CASES)
def test_colour_changes_no_word(case):
    coloured = text(CASES[case](), colour=True, unicode=False)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == text(CASES[case](), unicode=False)


def test_a_label_cannot_move_the_cursor():
    assert "\x1b" not in text(reports.training(label="\x1b[2Jgone\r", note="a\nb"))


def test_golden(golden):
    golden("report-training.txt", text(reports.training()) + "\n")
    golden("report-cpu-ascii.txt", text(reports.cpu(), unicode=False) + "\n")

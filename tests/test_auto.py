"""``%vram auto``: what the one line says and when there is one."""

from __future__ import annotations

import pytest

from ipyvram import auto
from ipyvram.render.oneline import oneline
from tests.made import MIB, account, report


@pytest.fixture(autouse=True)
def off():
    yield
    auto.switch("off")


def test_on_off_and_a_threshold():
    assert auto.minimum() is None
    auto.switch("on")
    assert auto.minimum() == 0
    auto.switch("on --min 10MiB")
    assert auto.minimum() == 10 * MIB
    auto.switch("off")
    assert auto.minimum() is None


@pytest.mark.parametrize("words", ["", "yes", "on --min", "on --min much", "on 10MiB", "off now"])
def test_mistakes_change_nothing(words):
    auto.switch("on --min 3MiB")
    with pytest.raises(ValueError, match="%vram auto"):
        auto.switch(words)
    assert auto.minimum() == 3 * MIB


def cell(start: int, peak: int, end: int, **fields):
    sizes = {"start": account(other=start * MIB), "end": account(other=end * MIB)}
    return report({"other": peak * MIB}, **sizes | fields)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (cell(10, 30, 15, steps=3), "+5.00 MiB kept · peak 30.0 MiB (+20.0 MiB) on cpu · 3 steps · 1.5 s"),
        (cell(10, 10, 4), "-6.00 MiB freed · peak 10.0 MiB (+0 B) on cpu · 1.5 s"),
        (cell(0, 0, 0), "nothing kept · peak 0 B (+0 B) on cpu · 1.5 s"),
        (cell(0, 1, 0, error="KeyError: 'x'"), "nothing kept · peak 1.00 MiB (+1.00 MiB) on cpu · 1.5 s · KeyError"),
    ],
)
def test_the_line(made, said):
    assert auto.line(made) == said


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (cell(10, 20, 10), True),  # the peak rose by the least change
        (cell(10, 19, 10), False),
        (cell(20, 20, 10), True),  # it freed as much
        (cell(10, 10, 10, others=(cell(0, 50, 0),)), True),  # on another device
    ],
)
def test_least_change(made, shown):
    assert not auto.worth_a_line(made)  # off
    auto.switch("on --min 10MiB")
    assert auto.worth_a_line(made) is shown


def test_the_line_unfolds_and_carries_the_report():
    made = report(label="<b>x</b>")
    data = oneline(made, auto.line(made))
    assert data["text/plain"] == auto.line(made)
    assert "<details" in data["text/html"]
    assert "<b>x" not in data["text/html"]
    assert data["application/vnd.ipyvram.report.v1+json"]["label"] == "<b>x</b>"

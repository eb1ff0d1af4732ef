"""Every form in HTML on pages of any width, light and dark: nothing sticks out and everything reads."""

from __future__ import annotations

import pytest

from tests.browser.contrast import graphics, inside, texts
from tests.browser.forms import FORMS

WIDTHS = (420, 600, 940, 1600)
PAGE = (
    "<!DOCTYPE html><meta charset=utf-8><style>:root{color-scheme:light dark}body{margin:10px;background:light-dark(#fff,#111);"
    "color:light-dark(#1c1c1c,#e4e4e4)}</style>"
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("form", FORMS)
def test_it_reads_and_fits_the_page(browser, file_page, form, scheme):
    shown = file_page(PAGE + FORMS[form](), color_scheme=scheme)
    root = shown.locator(".ipyvram")
    root.evaluate("e => e.querySelectorAll('details').forEach(d => d.open = true)")
    measured = texts(root)
    assert len(measured) > 8
    assert [pair for pair in measured if pair[1] < 4.5] == []
    assert [pair for pair in graphics(root) if pair[1] < 3] == []
    for picture in root.locator("img").all():
        told, drawn, _ = inside(browser, picture, scheme)
        assert [pair for pair in told if pair[1] < 4.5] == []
        assert [pair for pair in drawn if pair[1] < 3] == []
    for width in WIDTHS:
        shown.set_viewport_size({"width": width, "height": 900})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width, width


@pytest.mark.parametrize(
    ("form", "first"), [("out of memory", "Out of memory: 512 MiB asked for"), ("report", "Peak 3.13 GiB")]
)
def test_the_conclusion_is_the_first_large_thing(file_page, form, first):
    shown = file_page(PAGE + FORMS[form]())
    large = "e => [...e.querySelectorAll('*')].find(c => parseFloat(getComputedStyle(c).fontSize) > 15).textContent"
    assert shown.locator(".ipyvram").evaluate(large).startswith(first)


def test_a_verdict_stands_right_below_the_peak(file_page):
    shown = file_page(PAGE + FORMS["does not fit"]())
    lines = [line for line in shown.locator(".ipyvram").inner_text().split("\n") if line.strip()]
    peak = next(i for i, line in enumerate(lines) if line.startswith("Peak"))
    assert "over the" in lines[peak]
    assert lines[peak + 1].startswith("Does not fit")

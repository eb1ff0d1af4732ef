"""The HTML form: complete, small, safe, and whole after JupyterLab's sanitizer."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ipyvram.render.html
from ipyvram.render.html import html, page
from tests import reports

CASES = {
    "training": reports.training,
    "cpu": reports.cpu,
    "long": reports.long,
    "retraced": reports.retraced,
    "empty": reports.empty,
}
HOSTILE = '<script>alert(1)</script> "onload=x" \x1b[31m </style> $x$ &amp;'


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between."""

    VOID = ("img", "br", "hr", "meta")

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("case", CASES)
def test_it_is_well_formed_and_small(case):
    markup = html(CASES[case]())
    assert Tags(markup).open == []
    assert len(markup.encode()) <= 60_000


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_loaded_and_nothing_is_global(case):
    markup = html(CASES[case]())
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w[\w.]*\.\w", markup)
    ids = [a["id"] for _, a in Tags(markup).tags if "id" in a]
    assert len(ids) == 1
    sheet = re.search(r"<style>(.*?)</style>", markup, re.S)[1]
    for rule in re.findall(r"([^{}]+)\{", sheet):
        for selector in rule.split(","):
            assert selector.strip().startswith("#" + ids[0]) or selector.strip().startswith("@"), selector


def test_equal_reports_are_equal_markup_and_others_have_other_ids():
    one, same, other = html(reports.training()), html(reports.training()), html(reports.cpu())
    assert one == same
    assert Tags(one).tags[0][1]["id"] != Tags(other).tags[0][1]["id"]


def test_what_users_write_is_only_text():
    report = reports.training(label=HOSTILE, note=HOSTILE, error="RuntimeError: " + HOSTILE, device_name=HOSTILE)
    for markup in (html(report), page(report)):
        tags = Tags(markup)
        assert [t for t, _ in tags.tags].count("script") == 1
        assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
        assert "\x1b" not in markup
        assert tags.text.count("<script>alert(1)</script>") >= 3


def test_a_page_stands_alone():
    markup = page(reports.training())
    assert markup.startswith("<!DOCTYPE html>")
    assert html(reports.training()) in markup


def test_assets_are_small_and_hand_written():
    folder = Path(ipyvram.render.html.__file__).parent / "assets"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {"report.css", "report.js"}
    assert sum(sizes.values()) <= 8192

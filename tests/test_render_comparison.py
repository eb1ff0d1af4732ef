"""A comparison as text, HTML and picture: the same facts in each, nothing that a front end refuses, nothing of the user's run."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from ipyvram.comparison import Comparison
from ipyvram.render.comparison import MIME_TYPE, bundle
from ipyvram.render.comparison_chart import chart
from ipyvram.render.comparison_html import html
from ipyvram.render.comparison_text import text
from ipyvram.render.comparison_words import accumulation_words, put_into_words, sentence, speed
from tests.comparisons import CASES, HOSTILE, interrupted, measured, on_cpu
from tests.sanitizer import Sanitizer


class Tags(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data + " "


def facts(c: Comparison) -> list[str]:
    words = put_into_words(c)
    cells = [cell for row in words.cells for cell in row]
    sizes = [size for _, label, sizes in words.categories for size in (label, *sizes)]
    headline = [part for pair in words.headline for part in pair]
    return [
        words.title,
        *words.context,
        *headline,
        words.fit,
        *cells,
        *words.remarks,
        *sizes,
        *words.notes,
        words.trouble,
    ]


@pytest.mark.parametrize("case", CASES)
def test_text_and_html_hold_the_same_facts(case):
    made = CASES[case]()
    shown = " ".join(Tags(html(made)).text.split())
    told = " ".join(text(made, width=400).split())
    for fact in facts(made):
        assert fact in shown
        assert fact in told


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_longer_than_the_terminal(case, width, unicode):
    made = text(CASES[case](), width=width, unicode=unicode)
    assert all(len(line) <= width for line in made.split("\n"))
    assert unicode or made.isascii()


@pytest.mark.parametrize("case", CASES)
def test_an_untrusted_notebook_loses_nothing(case):
    assert set(Sanitizer(html(CASES[case]())).removed) <= {"color:inherit"}


@pytest.mark.parametrize("case", CASES)
def test_three_forms_and_no_others(case):
    made = CASES[case]()
    data = bundle(made)
    assert list(data) == ["text/plain", "text/html", MIME_TYPE]
    assert Comparison.from_dict(data[MIME_TYPE]) == made
    assert made._repr_mimebundle_() == data
    assert str(made) == text(made)
    assert len(data["text/html"]) < 60_000


@pytest.mark.parametrize("of_samples", [True, False])
def test_what_users_write_is_only_text(of_samples):
    made = measured(
        label=HOSTILE, note=HOSTILE, name=HOSTILE, device_name=HOSTILE, ended=HOSTILE, notes=(HOSTILE,), of_samples=of_samples
    )  # fmt: skip
    tags = Tags(html(made))
    assert "script" not in [tag for tag, _ in tags.tags]
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert "\x1b" not in html(made) + text(made)
    assert "\u202e" not in html(made) + text(made)
    assert tags.text.count("<script>alert(1)</script>") >= 5
    assert HOSTILE[:8] not in chart(made)
    ElementTree.fromstring(chart(made))


def picture(c: Comparison) -> ElementTree.Element:
    source = next(a["src"] for tag, a in Tags(html(c)).tags if tag == "img")
    return ElementTree.fromstring(base64.b64decode(source.partition(",")[2]))


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_has_every_size_the_limit_the_fit_and_the_knee():
    root = picture(measured())
    words = [t.text for t in root.iter(SVG + "text")]
    assert {"8", "100", "128", "limit 1.37 GiB", "OOM", "knee 64", "samples/s", "batch size"} <= set(words)
    assert len(list(root.iter(SVG + "polygon"))) == 6  # a category each
    assert not any("id" in e.attrib or e.tag == SVG + "defs" for e in root.iter())


def test_nothing_is_drawn_outside_the_picture():
    for make in CASES.values():
        svg = chart(make())
        numbers = [float(n) for n in re.findall(r'(?:cx|x)="([\d.-]+)"', svg)]
        assert all(0 <= n <= 860 for n in numbers)
        heights = [float(n) for n in re.findall(r'(?:cy|y)="([\d.-]+)"', svg)]
        assert all(0 <= n <= 270 for n in heights)


def test_areas_end_at_the_measured_peaks():
    """The highest area goes through the peaks: its corners are proportional to them."""
    made = measured(limit_bytes=None)
    top = next(picture(made).iter(SVG + "polygon")).attrib["points"].split()
    corners = [tuple(map(float, corner.split(","))) for corner in top]
    rows = [r for r in made.rows if r.categories]
    ground = corners[-1][1]
    scale = [(ground - y) / r.peak_bytes for (_, y), r in zip(corners, rows, strict=False)]
    assert max(scale) == pytest.approx(min(scale), rel=0.01)


def test_without_a_second_size_there_is_no_picture():
    assert chart(interrupted()) == ""
    assert "<img" not in html(interrupted())


def test_the_picture_in_words():
    assert sentence(measured()).startswith("Peak memory and speed against batch_size; 8: 444 MiB; 16: 489 MiB")
    assert "128: out of memory" in sentence(measured())
    assert "Largest that fits: 100" in sentence(measured())


def test_columns_without_figures_are_left_out():
    assert "reserved" not in text(on_cpu())
    assert "reserved" in text(measured())
    assert "samples/s" not in text(CASES["estimated"]())


def test_an_interrupt_is_said():
    assert "Interrupted: 1 trial had ended by then." in text(interrupted())
    assert "contaminated" in text(interrupted())


@pytest.mark.parametrize(("value", "words"), [(0.123, "0.123"), (9.876, "9.88"), (99.6, "100"), (12345.6, "12,346")])
def test_speeds(value, words):
    assert speed(value) == words


def test_accumulation_in_words():
    made = measured()
    assert accumulation_words(made.accumulation).startswith(
        "4 batches of 64 before each optimizer step, each loss divided by 4"
    )


def test_golden(golden):
    golden("comparison.txt", text(measured()) + "\n")
    golden("comparison.html", html(measured()) + "\n")


def test_what_counts_against_the_limit_is_shown_where_it_is_more_than_what_is_reserved():
    assert "needs" in text(measured())
    assert "884 MiB" in text(measured())  # 484 MiB reserved and 400 MiB outside torch
    assert "needs is" in html(measured())
    assert "needs is" not in text(on_cpu())


def test_where_nothing_fits_the_smallest_says_why():
    made = measured(largest=None, limit_bytes=600 * 2**20, accumulation=None)
    assert "No size fits · into 600 MiB: 8 needs 884 MiB" in text(made)


def test_a_gap_that_a_search_left_is_told():
    assert "128 does not fit, between them none was tried" in " ".join(text(measured(rule="largest")).split())
    assert "none was tried" not in text(measured())  # the sizes were given


def test_of_very_many_sizes_some_stand_for_all():
    first = measured().rows[0]
    many = measured(
        rows=tuple(replace(first, batch=16 * i, seen=16 * i) for i in range(1, 65)), largest=None, knee=None
    )
    sizes = put_into_words(many).sizes
    assert len(sizes) == 10
    assert (sizes[0], sizes[-1]) == ("16", "1024")
    assert len(put_into_words(measured()).sizes) == 5
    assert text(many).count("at peak") == 2
    assert html(many).count(">1024<") == html(many).count(">16<")


def test_sizes_beyond_the_data_are_drawn_as_what_the_data_filled():
    first = measured().rows[0]
    rows = tuple(replace(first, batch=16 * i, seen=16) for i in (1, 2))
    assert "timed at one size only" in chart(measured(rows=rows, largest=None, knee=None))


def test_a_narrow_page_leaves_out_what_follows_from_another_column():
    assert "share of best" in text(measured(), width=80)
    assert "share of best" not in text(measured(), width=66)
    assert "verified" in text(measured(), width=66)

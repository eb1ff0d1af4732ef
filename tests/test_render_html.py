"""The HTML form: complete, small, safe, and whole after JupyterLab's sanitizer."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import ipyvram.render.html
from ipyvram.render.html import FOLDED_FROM, MAX_BYTES, MIN_OTHER_BYTES, html, page
from ipyvram.render.summary import summarise, tensor_words
from ipyvram.render.text import TENSOR_ROWS as TEXT_ROWS
from ipyvram.render.text import text
from ipyvram.report_rows import Finding, TensorRow
from ipyvram.units import format_bytes
from tests import reports
from tests.sanitizer import GITHUB, JUPYTERLAB, Sanitizer

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
        self.rows = re.findall(r"<tr.*?</tr>", markup, re.S)
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


def test_a_huge_report_leaves_out_detail_until_it_is_small():
    rows = tuple(TensorRow(10**6 - i, "activations", f"tensor {i} " * 40, "module." * 40) for i in range(500))
    report = reports.long(tensors_at_peak=rows, lifetimes=reports.lifetimes("name " * 40) * 40)
    markup = html(report)
    assert len(markup.encode()) <= MAX_BYTES
    assert "tensor 0 " in markup


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8, 16])
def test_many_devices_stay_within_a_size_and_lose_no_account(devices):
    others = tuple(reports.long(device=f"cuda:{i}", label=None) for i in range(1, devices))
    report = reports.long(others=others)
    markup = html(report)
    assert Tags(markup).open == []
    assert len(markup.encode()) <= MAX_BYTES + max(MAX_BYTES, MIN_OTHER_BYTES * (devices - 1)) * (devices > 1)
    text = " ".join(Tags(markup).text.split())
    for other in others:
        s = summarise(other)
        assert markup.count(f'<summary style="cursor:pointer">{other.device} · peak {s.peak}') == (
            devices > FOLDED_FROM
        )
        assert text.count(s.sums) == devices
        assert all(text.count(line.label) >= devices for line in s.lines)
    assert markup.count("data:image/svg") == devices


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_loaded_and_nothing_is_global(case):
    markup = html(CASES[case]())
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w[\w.]*\.\w", markup)
    ids = [a["id"] for _, a in Tags(markup).tags if "id" in a]
    assert len(ids) == 1
    for sheet in re.findall(r"<style>(.*?)</style>", markup, re.S):
        depth = 0
        for rule, brace in re.findall(r"([^{}]*)([{}])", sheet):
            assert (
                depth or brace == "}" or rule.strip() == "#" + ids[0]
            )  # everything is nested in the report's own rule
            depth += 1 if brace == "{" else -1
        assert depth == 0


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


def test_code_in_a_finding_is_shown_as_code():
    finding = Finding("old_model", "The previous `<model>` is alive: del `opt`.", 10)
    markup = html(reports.training(findings=(finding,)))
    assert re.search(r"The previous <code[^>]*>&lt;model&gt;</code> is alive: del <code[^>]*>opt</code>\.", markup)


def test_a_page_stands_alone():
    markup = page(reports.training())
    assert markup.startswith("<!DOCTYPE html>")
    assert html(reports.training()) in markup


def test_assets_are_small_and_hand_written():
    folder = Path(ipyvram.render.html.__file__).parent / "assets"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {"report.css", "report.js", "theme.css"}
    assert sum(sizes.values()) <= 8192


@pytest.mark.parametrize("case", CASES)
def test_an_untrusted_notebook_loses_nothing_but_the_script_and_its_sheet(case):
    assert set(Sanitizer(html(CASES[case]())).removed) <= {"color:inherit"}


@pytest.mark.parametrize("rules", [JUPYTERLAB, GITHUB], ids=["untrusted", "github"])
def test_what_is_left_by_others_still_tells_everything(rules):
    report = reports.training()
    left = Tags(Sanitizer(html(report), rules).kept)
    s = summarise(report)
    words = " ".join(left.text.split())
    for fact in (
        s.title,
        f"Peak {s.peak}",
        s.how,
        s.when,
        *s.remarks,
        s.sums,
        *s.verdicts,
        *s.findings,
        *s.measured,
        s.sources,
    ):
        assert fact in words
    image = next(attributes for tag, attributes in left.tags if tag == "img")
    assert format_bytes(report.peak_bytes) in image["alt"]
    assert image.get("src", "").startswith("data:image/svg+xml;base64,") == (rules is JUPYTERLAB)
    assert [tag for tag, _ in left.tags].count("details") == 4
    for line in s.lines:  # in a row of the table, with nothing but spaces between
        figures = (format_bytes(n) if n else "–" for n in (line.start, line.peak, line.end))
        row = re.sub(r"<[^>]*>", " ", next(r for r in left.rows if line.label in r))
        assert " ".join([line.label, *figures]) in " ".join(row.split())
    assert "{" not in words.replace(" ".join(s.measured), "")  # nothing of a style sheet or a script


@pytest.mark.parametrize("case", CASES)
def test_the_text_and_the_html_form_hold_the_same_facts(case):
    report = CASES[case]()
    s = summarise(report)
    shown = " ".join(Tags(Sanitizer(html(report)).kept).text.split())
    told = " ".join(text(report, width=400).split())
    sizes = [format_bytes(n) for line in s.lines for n in (line.start, line.peak, line.end) if n]
    holders = [line.holder for line in s.lines]
    facts = [
        s.title, *s.context, f"Peak {s.peak}", s.how, s.when, *s.remarks, s.sums, s.trouble, s.sources,
        *s.zeros, *(line.label for line in s.lines), *sizes, *holders, *s.verdicts, *s.findings, *s.measured,
    ]  # fmt: skip
    facts += [part for row in report.tensors_at_peak[:TEXT_ROWS] for part in tensor_words(row)]
    facts += [row.key for row in (*report.modules_at_peak[:4], *report.lines_at_peak[:4])]
    for fact in facts:
        assert fact in shown, fact
        assert fact in told, fact


def test_what_is_not_exact_is_marked_where_it_stands():
    report = reports.training()
    report = replace(report, provenance=report.provenance | {"categories": "inferred", "peak": "sampled"})
    for told in (Tags(html(report)).text, text(report)):
        assert "(inferred)" in told.split("largest holder")[0].split("share")[0]
        assert "CUDA context 410 MiB (inferred)" in " ".join(told.split())
        assert "Other processes 300 MiB (sampled)" in " ".join(told.split())
    assert "Peak 3.13 GiB (sampled)" in text(report)
    assert ">sampled</span>" in html(report)


def readable(markup: str) -> str:
    """Markup for a diff: a tag a line, the picture as SVG, without the assets and the id that is made from the rest."""
    markup = re.sub(r"<(style|script)>.*?</\1>", "", markup, flags=re.S)
    markup = re.sub(r"ipyvram-[0-9a-f]{10}", "ipyvram-ID", markup)
    markup = re.sub(r"base64,([\w+/=]+)", lambda m: "\n" + base64.b64decode(m[1]).decode() + "\n", markup)
    return markup.replace("><", ">\n<") + "\n"


def test_golden(golden):
    golden("report-training.html", readable(html(reports.training())))
    golden("report-cpu.html", readable(html(reports.cpu())))

"""Comparisons: every change is told, they add up to the peak's, the largest comes first, and names are inert."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram import difference
from ipyvram.comparing import Numbered, compare_line
from ipyvram.recording import CATEGORIES
from ipyvram.render.difference import bundle, headline, html, text
from ipyvram.render.text import Pen
from ipyvram.report_rows import Measurement, StepAccount
from tests.made import MIB, account, report

PEN = Pen(80, True, False)
accounts = st.dictionaries(st.sampled_from(CATEGORIES), st.integers(0, 2**40), max_size=6)


@given(st.lists(accounts, min_size=2, max_size=4))
def test_changes_add_up_to_those_of_the_peak(made):
    d = difference.compare(*(report(peak) for peak in made))
    for i, change in enumerate(d.peak_changes):
        assert sum(row.changes[i] for row in d.rows) == change
    assert [abs(row.largest) for row in d.rows] == sorted((abs(row.largest) for row in d.rows), reverse=True)
    held = {c for peak in made for c, n in peak.items() if n}
    assert {row.category for row in d.rows} == held
    frame = d.to_frame()
    assert frame.loc["peak"].tolist()[: len(made)] == [sum(peak.values()) for peak in made]
    assert len(set(frame.columns)) == len(frame.columns)


@pytest.fixture
def pair():
    small = report(
        {"parameters": 10 * MIB, "activations": 30 * MIB}, label="bs32", steps=3, peak_when="step 3, forward"
    )
    large = report({"parameters": 10 * MIB, "activations": 60 * MIB, "outputs": MIB}, label="bs64", steps=3)
    return small, large


@pytest.mark.parametrize(("steps", "traced", "told"), [(20, 3, 0.5), (6, 3, 8.5 / 3), (5, 3, None), (3, 3, None)])
def test_the_time_of_a_step_is_that_of_the_untraced_ones(steps, traced, told):
    measurement = Measurement("storage trace", traced_s=1.5)  # making the model, the first steps
    made = report({"parameters": MIB}, steps=steps, traced_steps=traced, duration_s=10.0, measurement=measurement)
    facts = difference.compare(made, made).sides[0].facts
    assert facts.get("seconds_per_step") == told


def test_an_estimate_has_no_time_of_a_step():
    made = report({"parameters": MIB}, kind="estimated", steps=20, duration_s=10.0)
    assert "seconds_per_step" not in difference.compare(made, made).sides[0].facts


def test_text_and_html_tell_every_figure(pair):
    d = difference.compare(*pair)
    shown, markup = text(d, PEN), html(d)
    for part in (
        "+31.0 MiB (+77 %)",
        "+30.0 MiB",
        "60.0 MiB",
        "71.0 MiB",
        "bs32",
        "bs64",
        "no change",
        "step 3, forward",
    ):
        assert part in shown
        assert part in markup
    assert [line.split()[1] for line in shown.splitlines()[3:6]] == ["Activations", "Outputs", "Parameters"]
    assert max(map(len, shown.splitlines())) <= 80


def test_three_sides_fit_the_width(pair):
    third = report({"parameters": 5 * MIB, "activations": 15 * MIB}, label="a label that is much too long for a column")
    shown = text(difference.compare(*pair, third), PEN)
    assert max(map(len, shown.splitlines())) <= 80
    assert "-15.0 MiB" in shown


def test_the_bundle_is_versioned_and_has_no_json_that_front_ends_prefer(pair):
    data = bundle(difference.compare(*pair))
    assert list(data) == ["text/plain", "text/html", "application/vnd.ipyvram.difference.v1+json"]
    assert json.dumps(data["application/vnd.ipyvram.difference.v1+json"], allow_nan=False)


def test_names_are_inert(pair):
    hostile = "<img src=x onerror=alert(1)>\x1b[2J"
    d = difference.compare(pair[0], report(label=hostile, error=f"{hostile}: x", device_name=hostile))
    assert "<img" not in html(d)
    assert "\x1b" not in text(d, PEN)
    assert not re.search(r"<script|onerror=(?!alert\(1\)&gt;)", html(d))


def test_the_same_label_is_told_apart(pair):
    assert [s.name for s in difference.compare(pair[0], pair[0], report()).sides] == ["bs32", "bs32 (2)", "unlabelled"]


def test_what_makes_sides_unlike_is_said(pair):
    other = report(label="x", kind="estimated", device="cuda:0", device_name="T4", error="OutOfMemoryError: CUDA")
    remarks = difference.compare(pair[0], other).remarks
    assert [r.split(" (")[0] for r in remarks] == [
        "x did not end well",
        "x ran on T4, bs32 on cpu",
        "x is estimated, bs32 is measured",
    ]
    assert difference.compare(*pair).remarks == ()


def test_from_nothing_there_is_no_percentage(pair):
    assert "(–)" in headline(difference.compare(report({}), pair[0]))


def test_one_report_is_no_comparison(pair):
    with pytest.raises(ValueError, match="two reports or more"):
        difference.compare(pair[0])


def test_steps_of_one_report():
    accounts = tuple(
        StepAccount(i, i - 1.0, float(i), i * MIB, 0, {"activations": i * MIB}, {}, "forward") for i in (1, 2, 3)
    )
    made = report(step_accounts=accounts)
    d = difference.compare_steps(made)
    assert [side.name for side in d.sides] == ["step 1", "step 2"]
    assert d.rows[0].changes == (MIB,)
    assert difference.compare_steps(made, (3, 1)).peak_changes == (-2 * MIB,)
    with pytest.raises(ValueError, match=r"step 4 of this report was not traced \(traced: 1, 2, 3\)"):
        difference.compare_steps(made, (1, 4))


# -- by label or number ------------------------------------------------------------------------------------------------


@pytest.fixture
def numbered(pair):
    again = report({"activations": 50 * MIB}, label="bs32")
    return [Numbered(i, r) for i, r in enumerate([*pair, again, report(label="mixed precision")], 1)]


@pytest.mark.parametrize(
    ("line", "peaks"),
    [
        ("bs32 bs64", [50, 71]),  # the newest of a label
        ("1 3", [40, 50]),
        ("bs64 'mixed precision' 1", [71, 100, 40]),
        ("bs64 mixed precision 1", [71, 100, 40]),  # as it stands in the cell
        ("bs32", [40, 50]),  # its runs
    ],
)
def test_labels_and_numbers(numbered, line, peaks):
    assert [side.peak_bytes // MIB for side in compare_line(line, numbered).sides] == peaks


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "name two reports, by label or number"),
        ("bs32 bs65", r"no report is called 'bs65': did you mean 'bs64'\? \(there are 1 'bs32', 2 'bs64'"),
        ("bs64", "only one report has that label"),
        ("9 1", "no report is called '9'"),
        ("mixed bs64", "no report is called 'mixed': did you mean 'mixed precision'"),
        ("'bs32", "No closing quotation"),
        ("bs32 --steps 1 x", "write step numbers"),
        ("bs32 --steps 1 2", r"step 1 of bs32 was not traced \(traced: none\)"),
        ("bs32 bs64 --steps 1 2", "steps of one report"),
    ],
)
def test_mistakes_are_told(numbered, line, told):
    with pytest.raises(ValueError, match=told):
        compare_line(line, numbered)


def test_an_account_lacks_nothing():
    assert set(difference.compare(report(), report()).sides[0].account) == set(account())

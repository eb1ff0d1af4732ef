"""A report goes to JSON and back, to pandas, and to a smaller one; its sums survive all of it."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.recording import CATEGORIES
from ipyvram.render.text import text
from ipyvram.report import Report
from ipyvram.report_rows import LABELS, GroupRow, TensorRow
from ipyvram.thinning import merge_tensors
from ipyvram.units import format_bytes
from tests.made import MIB, report
from tests.measured import measured
from tests.networks import perceptron


@pytest.fixture(scope="module")
def trained() -> Report:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters())

    def cell() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(64, 256)).pow(2).mean().backward()
            optimizer.step()

    return measured(cell, {"model": model, "optimizer": optimizer}, label="<b>é</b>", note="a note")


def test_json_gives_the_same_report(trained):
    again = Report.from_json(trained.to_json())
    assert again == trained
    assert again.to_json() == trained.to_json()


def sorted_keys(report):
    """As a notebook that was saved: its format sorts all keys."""
    return json.loads(json.dumps(report.to_dict(), sort_keys=True))


def test_categories_come_back_in_their_order_out_of_a_saved_notebook(trained):
    back = Report.from_dict(sorted_keys(trained))
    assert list(back.peak) == list(trained.peak) == list(CATEGORIES)
    assert list(back.timeline_data.categories) == list(trained.timeline_data.categories)
    assert text(back) == text(trained)
    assert back == trained


def test_a_report_prints_as_its_peak_and_the_parts(trained):
    head, parts = str(trained).splitlines()
    assert f"peak {format_bytes(trained.peak_bytes)} ({trained.peak_provenance}), {trained.peak_when}" in head
    assert [LABELS[c] for c, n in trained.peak.items() if n] == [" ".join(p.split()[:-2]) for p in parts.split(" · ")]
    assert str(report({})) == "report on cpu: peak 0 B"


def test_a_list_of_reports_takes_a_line_each():
    assert repr([report(label="a"), report({}, label="b")]) == (
        "[<Report a on cpu: peak 100 MiB>, <Report b on cpu: peak 0 B>]"
    )


def test_text_says_for_which_steps_a_peak_is_exact():
    unseen = report(provenance={"peak": "exact", "end": "end of trace"}, steps=10, traced_steps=3)
    assert "(exact for 3 of 10 steps)" in str(unseen)


def test_json_is_plain_and_has_no_nan(trained):
    json.loads(trained.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', "nonsense", '{"peak_bytes": 1'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ValueError, match="report"):
        Report.from_json(text)


def test_a_report_whose_sum_does_not_close_is_refused(trained):
    data = trained.to_dict()
    data["peak_bytes"] += 1
    with pytest.raises(ValueError, match="peak"):
        Report.from_dict(data)


def test_the_frame_has_every_category_and_the_card():
    frame = report(card={"cache": 1, "context": 2, "other_processes": 3, "free": 4}).to_frame()
    assert list(frame.index) == [*CATEGORIES, "cache", "context", "other_processes", "free"]
    assert frame.loc["parameters", "peak"] == 100 * MIB
    assert frame.loc["parameters", "share"] == 1.0
    assert frame.loc["free", "start"] is pd.NA


def test_the_frame_of_nothing_has_no_share():
    assert report(peak={}).to_frame()["share"].tolist() == [0.0] * len(CATEGORIES)


def test_the_timeline_adds_up_in_every_row(trained):
    frame = trained.timeline()
    exact = frame.dropna(subset=["parameters"])
    assert (exact[list(CATEGORIES)].sum(axis=1) == exact["allocated"]).all()
    assert exact["allocated"].max() == trained.peak_bytes
    assert frame.index.is_monotonic_increasing


def test_tensors_modules_and_lines_add_up_to_the_peak(trained):
    assert trained.tensors()["bytes"].sum() == trained.peak_bytes
    assert trained.by_module()["bytes"].sum() == trained.peak_bytes
    assert trained.by_line()["bytes"].sum() == trained.peak_bytes
    by_category = trained.tensors().groupby("category")["bytes"].sum().to_dict()
    assert by_category == {category: count for category, count in trained.peak.items() if count}


def test_a_smaller_report_says_the_same_in_fewer_rows(trained):
    small = trained.trimmed(tensors=5, groups=2, points=20)
    assert (small.peak, small.peak_bytes) == (trained.peak, trained.peak_bytes)
    assert small.tensors()["bytes"].sum() == small.by_module()["bytes"].sum() == trained.peak_bytes
    assert len(small.modules_at_peak) == 3
    assert small.tensors()["count"].sum() == trained.tensors()["count"].sum()
    assert len(small.timeline_data.time_s) <= 20
    assert max(small.timeline_data.allocated) == trained.peak_bytes
    assert Report.from_json(small.to_json()) == small


rows = st.lists(
    st.builds(TensorRow, bytes=st.integers(1, 1000), category=st.sampled_from(CATEGORIES), count=st.integers(1, 3)),
    max_size=30,
).map(lambda found: tuple(sorted(found, key=lambda r: -r.bytes)))


@given(rows, st.integers(0, 20))
def test_merged_rows_keep_every_category_sum(found, keep):
    merged = merge_tensors(found, keep)
    for category in CATEGORIES:
        assert sum(r.bytes for r in merged if r.category == category) == sum(
            r.bytes for r in found if r.category == category
        )
        assert sum(r.count for r in merged if r.category == category) == sum(
            r.count for r in found if r.category == category
        )
    assert len(merged) <= keep + len(CATEGORIES)


def test_lines_keep_their_text():
    line = GroupRow("line 3", 10, {"activations": 10}, 1, "y = f(x)")
    frame = report(lines_at_peak=(line,)).by_line()
    assert frame.loc["line 3", "source"] == "y = f(x)"
    assert frame.loc["line 3", "activations"] == 10

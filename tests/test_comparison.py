"""The value: JSON and back, the frame, the fit in words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.comparison import STATUSES, Comparison, Row, describe_fit
from ipyvram.recording import CATEGORIES
from ipyvram.sweep.fit import Point, fit
from tests.comparisons import CASES, measured

MIB = 2**20
SIZES = st.one_of(st.none(), st.integers(0, 2**45))
SPEEDS = st.one_of(st.none(), st.floats(0, 1e9))

ROWS = st.builds(
    Row,
    batch=st.integers(1, 10**6),
    status=st.sampled_from(STATUSES),
    seen=st.one_of(st.none(), st.integers(1, 10**6)),
    peak_bytes=SIZES,
    categories=st.dictionaries(st.sampled_from(CATEGORIES), st.integers(0, 2**45)),
    reserved_bytes=SIZES,
    samples_per_s=SPEEDS,
    step_s=SPEEDS,
    contaminated=st.booleans(),
    note=st.text(),
)


@pytest.mark.parametrize("case", CASES)
def test_json_and_back(case):
    made = CASES[case]()
    assert Comparison.from_json(made.to_json()) == made


@given(st.lists(ROWS, max_size=5), st.text(), st.one_of(st.none(), st.text()))
def test_any_comparison_comes_back(rows, name, label):
    made = Comparison(name, tuple(rows), label=label)
    assert Comparison.from_json(made.to_json()) == made
    assert list(made.to_frame().index) == [row.batch for row in rows]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(schema=99), "newer than 1: update ipyvram"),
        (lambda d: d.pop("rows"), "not a readable"),
        (lambda d: d.pop("schema"), "not a readable"),
        (lambda d: d["rows"][0].update(status="great"), "a row has no status"),
        (lambda d: d["rows"][0].update(wrong=1), "not a readable"),
        (lambda d: d.update(fit=3), "not a readable"),
        (lambda d: d.update(rows="x"), "not a readable"),
    ],
)
def test_what_is_no_comparison_is_said(change, says):
    data = measured().to_dict()
    data = json.loads(json.dumps(data))
    change(data)
    with pytest.raises(ValueError, match=says):
        Comparison.from_dict(data)


@pytest.mark.parametrize("text", ["", "[1]", "null", "{}", "{"])
def test_other_text_is_no_comparison(text):
    with pytest.raises(ValueError, match="not a readable ipyvram comparison"):
        Comparison.from_json(text)


def test_keys_of_later_versions_are_passed_over():
    assert Comparison.from_dict(measured().to_dict() | {"invented": 1}) == measured()


def test_the_frame_has_figures_of_one_kind_a_column():
    made = measured()
    frame = made.to_frame()
    assert list(frame.index) == [8, 16, 32, 64, 100, 128]
    assert frame.index.name == "batch"
    assert frame.loc[64, "peak"] == made.rows[3].peak_bytes
    assert frame.loc[64, list(CATEGORIES)].sum() == frame.loc[64, "peak"]
    assert frame["peak"].isna().tolist() == [False] * 5 + [True]
    assert frame["share_of_best"].max() == 1
    assert frame.loc[128, "status"] == "OOM"
    assert {str(frame[c].dtype) for c in ("peak", "seen", "activations")} == {"Int64"}


def test_the_fit_in_words():
    line = [Point(b, {"parameters": 1802 * MIB, "activations": round(56.6 * MIB) * b}) for b in (8, 16, 32)]
    assert describe_fit(fit(line)) == "fixed 1.76 GiB + 56.6 MiB/sample, no residual"
    assert describe_fit(fit(line[:2])) == "fixed 1.76 GiB + 56.6 MiB/sample"
    noisy = [
        Point(b, {"activations": p.bytes + n * MIB})
        for (b, p), n in zip([(p.batch, p) for p in line], (9, -9, 3), strict=True)
    ]
    assert "residual ≤ 0.4 %" in describe_fit(fit(noisy))
    bent = fit([Point(b, {"activations": b * b}) for b in (8, 16, 32)])
    assert describe_fit(bent).startswith("not linear in the batch, so nothing is extrapolated: ")
    small = fit(
        [Point(4, {"activations": 900 * MIB}), *(Point(b, {"activations": 100 * MIB * b}) for b in (16, 32, 64))]
    )
    assert "(without 4, where the peak is another moment of the step)" in describe_fit(small)

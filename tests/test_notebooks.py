"""Reports read back out of saved notebooks; what cannot be read is named and the rest is kept."""

from __future__ import annotations

import json
import warnings

import pytest

from ipyvram.notebooks import frame, read_notebook, read_notebooks, scan, scan_all
from tests.made import MIB, REPORT_TYPE, cell, notebook, output, report


@pytest.fixture
def two(tmp_path):
    """A notebook with two good reports."""
    return notebook(
        tmp_path / "two.ipynb",
        cell(source="x = 1"),
        cell(output(report(label="a").to_dict()), count=2),
        cell(output({"not": "ours"}, kind="application/json"), output(report(label="b").to_dict()), count=3),
    )


def test_reports_come_back_in_order_and_whole(two):
    assert read_notebook(two) == [report(label="a"), report(label="b")]
    assert [(f.number, f.cell, f.execution_count) for f in scan(two).found] == [(1, 2, 2), (2, 3, 3)]


@pytest.mark.parametrize("text", [json.dumps, lambda d: json.dumps(d).splitlines(keepends=True)])
def test_payloads_stored_as_text_are_read(tmp_path, text):
    path = notebook(tmp_path / "n.ipynb", cell(output(text(report(label="a").to_dict()))))
    assert read_notebook(path) == [report(label="a")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "not JSON"),
        ("\0\1", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no cells"),
        ("3", "no cells"),
        ('{"cells": 3, "nbformat": 4}', "no cells"),
        ('{"cells": []}', "no cells"),
    ],
)
def test_what_is_not_a_notebook_is_named(tmp_path, content, why):
    path = tmp_path / "odd.ipynb"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"odd.ipynb is not a notebook: .*{why}"):
        read_notebook(path)


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "odd.ipynb"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not JSON"):
        read_notebook(path)


def damaged():
    good = report().to_dict()
    yield "no schema", {}
    yield "newer", good | {"schema": 99}
    yield "text of nothing", "{"
    yield "a number", 3
    yield "null", None
    yield "account lacks categories", good | {"peak": {"parameters": 1}}
    yield "account of text", good | {"peak": dict.fromkeys(good["peak"], "1")}
    yield "label is an object", good | {"label": {"x": 1}}
    yield "duration is text", good | {"duration_s": "long"}
    yield "rows of unequal length", good | {"findings": {"n": 2, "kind": ["a"], "text": ["b", "c"]}}
    yield "endless rows", good | {"findings": {"n": 10**12}}
    yield "timeline is a list", good | {"timeline_data": [1]}
    yield "sum does not close", good | {"peak_bytes": good["peak_bytes"] + 1}


@pytest.mark.parametrize("data", [pytest.param(d, id=name.replace(" ", "-")) for name, d in damaged()])
def test_a_damaged_report_is_skipped_and_the_rest_read(tmp_path, data):
    path = notebook(tmp_path / "n.ipynb", cell(output(data), output(report(label="good").to_dict())))
    with pytest.warns(UserWarning, match=r"n\.ipynb, cell 1: skipped a report"):
        assert [r.label for r in read_notebook(path)] == ["good"]


@pytest.mark.parametrize("odd", [3, None, {"cell_type": "code"}, {"outputs": 3}, {"outputs": [3, {"data": 4}]}])
def test_odd_cells_are_passed_over(tmp_path, odd):
    path = notebook(tmp_path / "n.ipynb", odd, cell(output(report().to_dict())))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_notebook(path)) == 1


def test_a_report_of_an_older_schema_is_read(tmp_path):
    """Fields that it lacks have their defaults; fields that are gone are passed over."""
    old = {
        k: v
        for k, v in report(label="old").to_dict().items()
        if k in ("schema", "peak_bytes", "peak", "start", "end", "label")
    }
    path = notebook(
        tmp_path / "n.ipynb", cell(output(old | {"was_there_once": 1}, kind=REPORT_TYPE.replace("v1", "v0")))
    )
    assert [r.label for r in read_notebook(path)] == ["old"]


def test_format_3_is_a_notebook_without_reports(tmp_path):
    path = tmp_path / "old.ipynb"
    path.write_text(json.dumps({"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "outputs": []}]}]}))
    assert read_notebook(path) == []


def test_several_notebooks_in_one_frame(two, tmp_path):
    other = notebook(tmp_path / "other.ipynb", cell(output(report({"activations": 7 * MIB}, label="c").to_dict())))
    broken = tmp_path / "broken.ipynb"
    broken.write_text("no")
    with pytest.warns(UserWarning, match="broken.ipynb is not a notebook"):
        table = read_notebooks(two, broken, other)
    assert table["label"].tolist() == ["a", "b", "c"]
    assert table["notebook"].tolist() == ["two.ipynb", "two.ipynb", "other.ipynb"]
    assert table["peak_activations"].tolist() == [0, 0, 7 * MIB]


def test_a_missing_notebook_is_named_and_skipped(two, tmp_path):
    everything = scan_all((tmp_path / "gone.ipynb", two))
    assert len(everything.found) == 2
    assert everything.skipped == ("gone.ipynb: skipped: No such file or directory",)


@pytest.mark.parametrize("found", [(), None])
def test_every_column_is_a_scalar_that_parquet_can_hold(two, found):
    table = frame(scan(two).found if found is None else found)
    assert {str(t) for t in table.dtypes} <= {
        "Int64",
        "string",
        "str",
        "float64",
        "datetime64[ns, UTC]",
        "datetime64[us, UTC]",
    }


def test_the_same_report_is_the_same_text():
    """Stable key order: git shows no change where no figure changed."""
    first = report(label="a").to_json()
    assert report(label="a").to_json() == first
    assert report(label="a").from_json(first).to_json() == first
    assert list(json.loads(first)) == ["schema", *report().__dataclass_fields__]

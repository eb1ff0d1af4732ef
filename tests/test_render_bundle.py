"""The MIME bundle: three forms of one report, and nothing that a front end would prefer to the HTML."""

from __future__ import annotations

import json

from ipyvram.render.bundle import MAX_JSON_BYTES, MIME_TYPE, bundle, small_dict
from ipyvram.report import Report
from ipyvram.report_rows import TensorRow
from tests import reports


def test_it_holds_three_types_and_no_others():
    assert list(bundle(reports.training())) == ["text/plain", "text/html", MIME_TYPE]


def test_the_json_reads_back_with_every_sum():
    report = reports.training()
    back = Report.from_dict(json.loads(json.dumps(bundle(report)[MIME_TYPE], allow_nan=False)))
    assert (back.peak, back.start, back.end, back.card) == (report.peak, report.start, report.end, report.card)
    assert sum(t.bytes for t in back.tensors_at_peak) == report.peak_bytes


def test_a_report_at_the_end_of_a_cell_shows_itself():
    report = reports.training()
    assert report._repr_mimebundle_() == bundle(report)


def test_a_huge_report_is_thinned_until_it_is_small():
    rows = tuple(TensorRow(10**6 - i, "activations", f"tensor {i} " * 40, "module." * 30) for i in range(4000))
    report = reports.long(tensors_at_peak=rows)
    data = small_dict(report)
    assert len(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()) <= MAX_JSON_BYTES
    assert sum(t.bytes for t in Report.from_dict(data).tensors_at_peak) == sum(t.bytes for t in rows)


def test_golden(golden):
    golden("report-training.json", json.dumps(small_dict(reports.training()), indent=1, ensure_ascii=False) + "\n")

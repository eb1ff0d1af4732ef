"""The reports of a session: newest last, older ones trimmed, a table of all."""

from __future__ import annotations

import threading

import pytest

from ipyvram import journal
from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from ipyvram.report_rows import TensorRow


def report(label: str, peak: int = 0, tensors: int = 0) -> Report:
    account = dict.fromkeys(CATEGORIES, 0) | {"other": peak}
    rows = tuple(TensorRow(1, "other", f"t{i}") for i in range(tensors))
    return Report(peak, account, account, account, label=label, started_at=1.7e9, tensors_at_peak=rows)


@pytest.fixture(autouse=True)
def empty():
    journal.clear()
    yield
    journal.clear()


def test_before_the_first_report_there_is_none():
    assert journal.last() is None
    assert journal.history().empty
    assert "label" in journal.history().columns


def test_the_table_has_a_row_a_report_numbered_from_one():
    journal.add(report("a", 10))
    journal.add(report("b", 20))
    table = journal.history()
    assert table.index.tolist() == [1, 2]
    assert table.label.tolist() == ["a", "b"]
    assert table.peak_bytes.tolist() == [10, 20]
    assert str(table.started.dt.tz) == "UTC"
    last = journal.last()
    assert last is not None
    assert last.label == "b"


def test_only_the_newest_is_kept_whole():
    journal.add(report("old", tensors=500))
    assert len(journal.reports()[0].tensors_at_peak) == 500
    journal.add(report("new", tensors=500))
    old, new = journal.reports()
    assert sum(t.count for t in old.tensors_at_peak) == 500
    assert len(old.tensors_at_peak) < 100
    assert len(new.tensors_at_peak) == 500


def test_numbers_go_on_where_the_oldest_are_dropped():
    for i in range(journal.LENGTH + 3):
        journal.add(report(str(i)))
    assert journal.history().index[-1] == journal.LENGTH + 3
    assert len(journal.reports()) == journal.LENGTH


def test_reports_from_several_threads_all_arrive():
    threads = [threading.Thread(target=lambda: [journal.add(report("t")) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(journal.history().index) == list(range(1, 81))

"""`measure` for scripts: it measures the block, lets every exception pass, and never fails itself."""

from __future__ import annotations

import logging

import pytest
import torch

import ipyvram
from ipyvram import journal, measuring
from ipyvram.measuring import fault, measure


@pytest.fixture(autouse=True)
def nothing_left():
    journal.clear()
    yield
    assert measuring._current is None
    journal.clear()


def train(steps: int = 2) -> torch.nn.Module:
    model = torch.nn.Linear(100, 10)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(8, 100)).sum().backward()
        optimizer.step()
    return model


def test_a_block_is_measured():
    with measure("a block", note="why") as m:
        model = train()
    report = m.report
    assert report is not None
    assert (report.label, report.note, report.steps) == ("a block", "why", 2)
    assert report.peak["parameters"] == sum(p.nbytes for p in model.parameters()) == 4040
    assert report.peak["gradients"] == 4040
    assert report.peak["optimizer_state"] == 4040
    assert sum(report.peak.values()) == report.peak_bytes
    assert ipyvram.last is report


def test_the_report_shows_the_lines_of_the_block():
    with measure() as m:
        kept = torch.ones(1000, 1000)
    row = m.report.tensors_at_peak[0]
    assert row.bytes == kept.nbytes
    assert "torch.ones(1000, 1000)" in row.source


def test_an_exception_passes_and_the_report_tells_it():
    with pytest.raises(KeyError, match="mine"), measure("broken") as m:
        raise KeyError("mine")
    assert m.report.error == "KeyError: 'mine'"


def test_a_block_inside_a_block_belongs_to_it(caplog):
    with measure("outer") as outer, measure("inner") as inner:
        torch.ones(10)
    assert inner.report is None
    assert outer.report.label == "outer"
    assert "'outer'" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"), [({"limit": "90%"}, True), ({"limit": "80%"}, False), ({"limit": "1GiB"}, False),
                          ({"limit": "90%", "card": "8GiB"}, False)]
)  # fmt: skip
def test_a_share_of_no_card_is_said_to_be_none(caplog, options, said):
    with measure(**options):
        torch.zeros(3)
    if torch.cuda.is_available():
        said = False
    assert ("is a share of a card, and there is none here" in caplog.text) is said


def test_it_can_be_used_again():
    again = measure("twice")
    for _ in range(2):
        with again:
            torch.ones(10)
        assert again.report.label == "twice"
    assert len(journal.reports()) == 2


@pytest.mark.parametrize("target", ["ipyvram.run.Run.start", "ipyvram.run.Run.stop", "ipyvram.analysis.analyse"])
def test_a_fault_of_ours_is_one_line_in_the_log(monkeypatch, caplog, target):
    import importlib

    owner_name, _, name = target.rpartition(".")
    module_name, _, class_name = owner_name.rpartition(".")
    owner = importlib.import_module("ipyvram.analysis") if name == "analyse" else None
    owner = owner or getattr(importlib.import_module(module_name), class_name)

    original = getattr(owner, name)

    def broken(*args, **kwargs):
        if name == "stop":
            original(*args, **kwargs)  # else its probes would outlive this test
        raise RuntimeError("injected\nfault")

    monkeypatch.setattr(owner, name, broken)
    with caplog.at_level(logging.WARNING), measure() as m:
        value = 6 * 7
    assert value == 42
    assert m.report is None
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert "injected fault" in caplog.text


def test_a_mistake_is_told_before_the_block_runs():
    with pytest.raises(ValueError, match="--limit 300%: write"), measure(limit="300%"):
        pytest.fail("the block ran")
    with pytest.raises(ValueError, match=r"no CUDA device|there are"), measure(device="cuda:77"):
        pytest.fail("the block ran")
    with pytest.raises(TypeError, match="did you mean note"):
        measure(notes="x")


def test_no_tensor_of_the_block_is_kept_alive():
    import gc
    import weakref

    with measure():
        tensor = torch.ones(10)
        seen = weakref.ref(tensor.untyped_storage())
        del tensor
    gc.collect()
    assert seen() is None


def test_a_fault_reads_as_one_line():
    assert fault("could not start", KeyError("x\ny")) == "ipyvram could not start: KeyError: 'x\\ny'"
    assert len(fault("x", ValueError("y" * 1000))) < 330


def test_an_evaluation_after_the_last_step_is_no_step():
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with measure(trace_steps=9) as m:
        for _ in range(2):
            model(torch.ones(4, 64)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            model(torch.ones(4096, 64))
    assert m.report.steps == 2
    assert m.report.peak_when.startswith("after step 2, ")

    def fail():
        model(torch.ones(4, 64)).sum().backward()
        optimizer.step()
        model(torch.ones(4096, 64))
        raise KeyError

    with pytest.raises(KeyError), measure(trace_steps=9) as m:
        fail()
    assert m.report.peak_when.startswith("step 2, ")  # it was on its way


def test_a_report_names_the_card_that_it_is_judged_by():
    with measure(card="T4") as judged:
        torch.ones(1000)
    with measure(card="24GiB") as sized:
        torch.ones(1000)
    assert (judged.report.card_name, sized.report.card_name) == ("Tesla T4", "")
    assert ipyvram.Report.from_json(judged.report.to_json()).card_name == "Tesla T4"


def test_a_report_says_how_the_name_of_several_cards_was_taken():
    with measure(card="A100") as m:
        torch.ones(1000)
    assert any("write A100 80GB" in note for note in m.report.measurement.notes)

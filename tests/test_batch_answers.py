"""The benchmark of batch answers: its bisection, what it makes of rows, and one small program on the stub from end to end."""

from __future__ import annotations

import pytest

from benchmarks.batch_answers import _largest, summary


@pytest.mark.parametrize("largest", [0, 1, 2, 37, 1000])
@pytest.mark.parametrize("guess", [1, 16, 37, 5000])
def test_bisection_finds_the_end_of_what_fits_from_any_guess(largest, guess):
    asked = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= largest

    assert _largest(fits, guess) == largest
    assert len(asked) <= 40


def test_a_summary_counts_what_is_exact_and_what_lies_within(capsys):
    first = {"program": "a", "card_gib": 4, "true": 100, "search_batch": 100, "search_trials": 4, "estimate_batch": 98}
    second = {
        "program": "b",
        "card_gib": 8,
        "true": 50,
        "search_batch": 49,
        "search_trials": 6,
        "estimate_failed": "no",
    }
    bounds = {"report_low": 80, "report_high": 120}
    summary([first | bounds, second | bounds])
    said = capsys.readouterr().out
    assert "search: 2 answers, exact 1, median -1.00%, lowest (-0.02" in said
    assert "estimate: 1 answers, exact 0" in said
    assert "trials: median 5" in said
    assert "report: 2 pairs of bounds, 1 with the truth inside, from -20% to +140%" in said
    assert "b 8 estimate_failed no" in said


def test_one_program_from_end_to_end(run_on_stub):
    row = run_on_stub(
        '''
from benchmarks import batch_answers
from benchmarks.batch_programs import Program

text = """
import torch
from torch import nn
net = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).cuda()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for step in range(steps):
    optimizer.zero_grad()
    net(torch.randn(batch_size, 256, device="cuda")).sum().backward()
    optimizer.step()
"""
batch_answers.PROGRAMS["small"] = Program(text, 2048)
result = batch_answers.answers("small", 1, ("search", "report", "estimate"), {})
''',
        BYTES=1 << 30,
    )
    assert not [key for key in row if key.endswith("failed")], row
    assert row["true"] > 500
    assert 0.95 * row["true"] < row["search_batch"] <= row["true"]
    assert 0.95 * row["true"] < row["estimate_batch"] <= row["true"]
    assert row["report_at"] == 2048
    assert row["report_low"] <= row["true"] <= row["report_high"]

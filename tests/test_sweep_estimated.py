"""Trials of a sweep that are estimates."""

import pytest
import torch
from torch import nn

from ipyvram import cards
from ipyvram.comparison import Comparison
from ipyvram.simulated.refusal import CannotEstimate
from ipyvram.sweep.bodies import FunctionBody
from ipyvram.sweep.engine import Question, Sweep
from ipyvram.sweep.estimated import EstimatedTrials

CARD = cards.find("T4")


def make(width=512):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(batch_size):
        model.to("cuda")
        for _ in range(5):
            x = torch.randn(batch_size, 256, device="cuda")
            model(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    return model, train


def ask(train, **question) -> Comparison:
    body = FunctionBody(train)
    return Sweep(
        Question("batch_size", estimated=True, card_bytes=CARD.total_bytes, **question), EstimatedTrials(body, CARD)
    ).run()


def test_a_table_of_sizes_without_a_run():
    model, train = make()
    before = [p.clone() for p in model.parameters()]
    found = ask(train, sizes=(1024, 2048, 4096), limit_bytes=CARD.total_bytes // 2)
    peaks = [row.peak_bytes for row in found.rows]
    assert found.kind == "estimated"
    assert "400 MiB are counted for the CUDA context, and nothing for other programs" in " ".join(found.notes)
    assert [row.batch for row in found.rows] == [1024, 2048, 4096]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == 3
    assert all(torch.equal(a, b) and b.device.type == "cpu" for a, b in zip(before, model.parameters(), strict=True))


def test_what_cudnn_works_in_is_named_as_not_counted():
    def train(batch: int) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(7200, 1)).cuda()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            model(torch.randn(batch, 3, 32, 32, device="cuda")).sum().backward()
            optimizer.step()

    notes = " ".join(ask(train, sizes=(8, 16), limit_bytes=2**30).notes)
    assert "nothing for other programs or what cuDNN works in (at 16 up to about " in notes


def test_the_largest_size_stays_within_the_limit_and_the_next_does_not():
    limit = 2 << 30
    _, train = make()
    trials = EstimatedTrials(FunctionBody(train), CARD)
    found = ask(train, rule="largest", limit_bytes=limit, multiple=256)
    assert found.largest is not None
    assert trials(found.largest.batch, 1).needed_bytes <= limit < trials(found.largest.batch + 512, 1).needed_bytes


def test_a_program_that_keeps_off_the_card_is_refused_before_it_computes_at_larger_sizes():
    seen = []

    def train(batch_size):
        seen.append(batch_size)
        nn.Linear(8, 8)(torch.randn(batch_size, 8))

    with pytest.raises(CannotEstimate, match=r"\.to\('cuda'\)"):
        ask(train, rule="largest", limit_bytes=CARD.total_bytes // 2)
    assert seen == [16]


def test_a_model_called_with_keywords_shows_that_the_data_have_no_more():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(256, 64)

        def forward(self, *, features):
            return self.body(features)

    model, data = Net(), torch.randn(100, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(batch_size):
        model.to("cuda")
        for _ in range(3):
            model(features=data[:batch_size].to("cuda")).sum().backward()
            optimizer.step()

    found = ask(train, rule="largest", limit_bytes=CARD.total_bytes // 2)
    assert [row.seen for row in found.rows] == [*(row.batch for row in found.rows[:-1]), 100]
    assert any("the data have no more" in note for note in found.notes)


def test_a_search_ends_where_the_memory_does_not_grow_and_nothing_shows_the_batch():
    weights, data = torch.randn(256, 256, requires_grad=True), torch.randn(100, 256)
    optimizer = torch.optim.SGD([weights], lr=0.1)

    def train(batch_size):
        for _ in range(3):
            (data[:batch_size].to("cuda") @ weights.to("cuda")).sum().backward()
            optimizer.step()

    found = ask(train, rule="largest", limit_bytes=CARD.total_bytes // 2)
    assert found.largest is not None
    assert any("nothing shows that the batch really changed" in note for note in found.notes)


def test_a_batch_that_the_cell_leaves_on_the_cpu_is_told_once():
    model = nn.Linear(256, 10)

    def train(batch_size):
        model.to("cuda")
        for _ in range(3):
            model(torch.randn(batch_size, 256)).sum().backward()

    found = ask(train, sizes=(8, 16))
    assert [note for note in found.notes if "on the CPU" in note] == [
        "The cell leaves a tensor (16×256) on the CPU and uses it with tensors on the card, first in addmm: on a card that is an "
        "error. Move it with .to(device): here it counts only while in use."
    ]

"""Models whose data have time first: how many samples they were given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.measured import measured

TIME, SAMPLES, WIDTH = 13, 5, 8


class Words(nn.Module):
    def __init__(self, layer: nn.Module, flip: bool) -> None:
        super().__init__()
        self.embed, self.layer, self.flip = nn.Embedding(10, WIDTH), layer, flip

    def forward(self, words):
        inside = self.embed(words.T if self.flip else words)
        found = self.layer(inside)
        return found[0] if isinstance(found, tuple) else found


def layers():
    transformer = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 16), 1, enable_nested_tensor=False)
    return {"GRU": nn.GRU(WIDTH, WIDTH), "transformer": transformer}


@pytest.mark.parametrize("kind", ["GRU", "transformer"])
@pytest.mark.parametrize("flip", [False, True])
def test_the_layers_tell_which_dimension_counts_samples(kind, flip):
    model = Words(layers()[kind], flip)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def cell() -> None:
        for _ in range(2):
            words = torch.randint(10, (SAMPLES, TIME) if flip else (TIME, SAMPLES))
            optimizer.zero_grad()
            model(words).sum().backward()
            optimizer.step()

    report = measured(cell, {"model": model})
    assert report.batch == SAMPLES
    assert {step.batch for step in report.step_accounts} == {SAMPLES}


def test_layers_with_samples_first_leave_it_at_dimension_0():
    model = Words(nn.GRU(WIDTH, WIDTH, batch_first=True), flip=False)
    report = measured(lambda: model(torch.randint(10, (SAMPLES, TIME))).sum().backward(), {"model": model})
    assert report.batch == SAMPLES

"""What libraries keep for the whole process has a name, in the cell that made it and in later ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ipyvram

pytestmark = pytest.mark.gpu
NAME = "cuDNN dropout state"


def test_the_state_of_dropout_is_known_in_later_cells(card):
    layers = nn.GRU(64, 64, 2, dropout=0.2).to(card.device)
    with ipyvram.measure("makes it") as first:
        layers(torch.zeros(10, 8, 64, device=card.device))[0].sum().backward()
    with ipyvram.measure("has it still") as second:
        torch.zeros(1000, device=card.device)
    states = [r.tensors().query("name == @NAME") for r in (first.report, second.report)]
    assert [set(found["category"]) for found in states] == [{"workspaces"}] * 2
    # Of an earlier test there may be one, which a new seed replaces.
    assert states[0]["bytes"].sum() >= states[1]["bytes"].sum() > 0
    assert second.report.peak["other"] < states[1]["bytes"].sum()

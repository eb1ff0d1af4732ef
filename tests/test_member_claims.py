"""What models and optimizers own: parameters, buffers, gradients, state, each claimed once by its path."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.test_owners import new_owners, said


@pytest.fixture
def owners():
    return new_owners({})


def test_a_model_is_claimed_by_its_paths_once(owners):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    owners.members.module(model, "net")
    owners.members.module(model, "net")
    assert said(owners) == [
        ("parameters", "0.weight"), ("parameters", "0.bias"), ("parameters", "1.weight"), ("parameters", "1.bias"),
        ("buffers", "1.running_mean"), ("buffers", "1.running_var"), ("buffers", "1.num_batches_tracked"),
    ]  # fmt: skip
    assert {claim.module for claim in owners.claims} == {"net"}
    assert owners.claims[0].shape == (3, 2)


def test_another_storage_of_the_same_parameter_is_claimed_anew(owners):
    layer = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1)
    owners.members.optimizer(optimizer)
    layer.weight.data = torch.zeros(2, 2)
    owners.members.optimizer(optimizer)
    assert len({claim.address for claim in owners.claims}) == len(owners.claims) == 2


def test_tied_parameters_are_one(owners):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    owners.members.module(model, "net")
    assert [name for _, name in said(owners)] == ["0.weight", "0.bias", "1.bias"]


def test_state_has_the_parameters_name_and_model(owners):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    owners.members.module(model, "net")
    owners.members.optimizer(optimizer)
    state = [claim for claim in owners.claims if claim.category == "optimizer_state"]
    assert {claim.name for claim in state} == {
        f"{p}.{k}" for p in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")
    }
    assert {claim.module for claim in state} == {"net"}


def test_state_is_named_without_printing_tensors(owners, monkeypatch):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    monkeypatch.setattr(torch.Tensor, "__repr__", lambda self: pytest.fail("printed a tensor"))
    owners.members.optimizer(optimizer)
    assert len(owners.claims) == 8


def test_gradients_have_their_parameters_name(owners):
    model = nn.Linear(2, 1)
    owners.members.module(model, "net")
    model(torch.ones(1, 2)).sum().backward()
    owners.members.gradients(model.parameters())
    assert said(owners)[-2:] == [("gradients", "weight.grad"), ("gradients", "bias.grad")]

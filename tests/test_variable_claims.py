"""What variables hold: models, optimizers, copies, results, and names for everything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipyvram.probes.clock import Clock
from ipyvram.probes.copies import COPY
from ipyvram.probes.owners import Owners
from tests.test_owners import new_owners, said


def test_variables_give_names():
    model = nn.Linear(2, 1)
    owners = new_owners(
        {"head": model, "x": torch.ones(2), "w": torch.ones(2, requires_grad=True), "_": torch.ones(9), "n": 3}
    )
    owners.variables.claim(before=True)
    assert set(said(owners)) == {("parameters", "weight"), ("parameters", "bias"), ("", "x"), ("parameters", "w")}
    assert str(owners.place_of(model)) == "head"


def test_a_gradient_that_a_result_retains_is_one():
    hidden = torch.ones(2, requires_grad=True) * 2
    hidden.retain_grad()
    hidden.sum().backward()
    owners = new_owners({"hidden": hidden})
    owners.variables.claim(before=True)
    assert {("outputs", "hidden"), ("gradients", "hidden.grad")} <= set(said(owners))


def test_a_part_of_a_model_does_not_shorten_its_paths():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 1)))
    owners = new_owners({"head": model[1], "model": model})
    owners.variables.claim(before=True)
    assert ("parameters", "1.0.weight") in said(owners)
    assert ("parameters", "0.weight") in said(owners)
    assert len([1 for category, _ in said(owners) if category == "parameters"]) == 4


def test_an_object_that_raises_costs_only_its_own_name():
    class Broken(nn.Module):
        def named_parameters(self, *args, **kwargs):
            raise RuntimeError("no")

    owners = new_owners({"broken": Broken(), "x": torch.ones(2)})
    owners.variables.claim(before=True)
    assert said(owners) == [("", "x")]


def test_what_autograd_computed_from_the_parameters_is_no_copy_of_them():
    model = nn.Linear(3, 2)
    fast = {name: p - 0.1 for name, p in model.named_parameters()}
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    owners = new_owners({"model": model, "fast": fast, "average": average})
    owners.variables.claim()
    kinds = {claim.name: claim.category for claim in owners.claims}
    assert (kinds["fast['weight']"], kinds["average['weight']"]) == ("", COPY)


class Average:
    def __init__(self, parameters):
        self.shadow = [p.detach().clone() for p in parameters]


def test_a_list_with_all_parameters_in_their_order_is_a_copy_of_them():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    variables = {
        "average": Average(model.parameters()),
        "trained": Average(p for p in model.parameters() if p.requires_grad),
        "turned": Average(reversed(list(model.parameters()))),
        "few": Average(model[1].parameters()),
        "batches": [torch.zeros(2, 3), torch.zeros(2)],
    }
    owners = new_owners({"model": model, "layer": model[1], **variables})
    owners.variables.claim(before=True)
    kinds: dict[str, set[str]] = {}
    for claim in owners.claims:
        kinds.setdefault(claim.name.partition("[")[0], set()).add(claim.category)
    assert kinds["average.shadow"] == kinds["trained.shadow"] == {COPY}
    assert kinds["turned.shadow"] == kinds["few.shadow"] == kinds["batches"] == {""}


@pytest.mark.parametrize("move", [nn.Module.half, lambda net: net.apply(replace_storages)])
def test_a_model_that_was_moved_is_claimed_where_it_is_now(move):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    owners = new_owners({"net": net})
    owners.variables.claim(before=True)
    move(net)
    owners.claims.clear()
    owners.members.module(net, "net")  # a forward
    assert len(owners.claims) >= len(list(net.parameters()))
    owners.claims.clear()
    owners.members.module(net, "net")
    assert owners.claims == []


def replace_storages(module: nn.Module) -> None:
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        tensor.data = tensor.data.clone()


def test_a_part_that_was_moved_is_found_at_the_end():
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 3, bias=False))
    owners = new_owners({"net": net})
    owners.variables.claim(before=True)
    net[1].half()
    owners.claims.clear()
    owners.variables.claim()
    assert said(owners) == [("parameters", "1.weight")]


def test_gradients_of_a_model_that_only_its_optimizer_knows():
    layer = nn.Linear(2, 2, bias=False)
    layer(torch.ones(1, 2)).sum().backward()
    owners = new_owners({"optimizer": torch.optim.SGD(layer.parameters(), lr=1)})
    del layer
    owners.variables.claim(before=True)
    assert said(owners) == [("parameters", "parameter 0"), ("gradients", "parameter 0.grad")]


def test_sixty_thousand_tensors_all_have_their_name():
    many = [torch.empty(1) for _ in range(60_000)]
    owners = Owners(Clock(), lambda storage, before: ("cpu", storage._cdata), {"many": many})
    owners.variables.claim(before=True)
    assert [claim.name for claim in owners.claims] == [f"many[{i}]" for i in range(60_000)]
    assert owners.variables.notes == []


def test_more_objects_than_are_looked_at_are_a_note(monkeypatch):
    monkeypatch.setattr("ipyvram.probes.variable_claims.DEEP", (6, 10))
    owners = Owners(
        Clock(), lambda storage, before: ("cpu", storage._cdata), {"many": [torch.empty(1) for _ in range(60)]}
    )
    owners.variables.claim(before=True)
    assert len(owners.claims) == 9
    assert owners.variables.notes == [
        "the variables hold more than 10 objects: tensors that were not looked at are counted as other"
    ]

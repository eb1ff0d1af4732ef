"""Claims: who says what about which storage, and that saying it costs the program nothing."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ipyvram.probes.clock import Clock
from ipyvram.probes.owners import Owners


@pytest.fixture
def owners():
    return new_owners({})


def new_owners(namespace) -> Owners:
    numbers: dict[int, int] = {}

    def identify(storage, before):
        return ("cpu", numbers.setdefault(storage._cdata, len(numbers) + 1)) if storage.nbytes() else None

    return Owners(Clock(), identify, namespace)


def said(owners: Owners) -> list[tuple[str, str]]:
    return [(claim.category, claim.name) for claim in owners.claims]


def test_inputs_are_what_has_no_history(owners):
    layer = nn.Bilinear(2, 2, 1)
    x = torch.ones(1, 2)
    owners.inputs(layer, (x, x * torch.ones(1, requires_grad=True)), {"extra": torch.ones(3), "flag": True})
    assert said(owners) == [("inputs", "input1"), ("inputs", "extra")]


def test_nothing_is_kept_alive(owners):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.ones(1, 2)
    owners.members.module(model, "net")
    owners.inputs(model, (x,), {})
    y = model(x).sum()
    leaves = owners.graphs.read([y], backward=True)
    y.backward()
    owners.graphs.released()
    owners.members.gradients(leaves)
    optimizer.step()
    owners.members.optimizer(optimizer)
    references = [weakref.ref(o) for o in (model, model.weight, optimizer, x, y, model.weight.grad)]
    del model, optimizer, x, y, leaves
    gc.collect()
    assert [reference() for reference in references] == [None] * 6


class Cache:
    """As of keys and values that generation keeps: an object with one of its own for each layer."""

    def __init__(self, *layers):
        self.layers = [SimpleNamespace(keys=keys) for keys in layers]


def test_what_an_object_among_the_results_holds_is_claimed_by_its_path(owners):
    result = {"logits": torch.zeros(4), "cache": Cache(torch.zeros(2), torch.zeros(3))}
    owners.outputs(result, "output of model")
    owners.outputs(torch.zeros(1), "loss")
    assert [(claim.name, claim.category) for claim in owners.claims] == [
        ("output of model['logits']", "outputs"),
        ("output of model['cache'].layers[0].keys", "outputs"),
        ("output of model['cache'].layers[1].keys", "outputs"),
        ("loss", "outputs"),
    ]

"""What earlier cells left beside a notebook's variables."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from ipyvram.probes import keeping, roots
from ipyvram.probes import leftovers as module
from ipyvram.probes.clock import Clock
from ipyvram.probes.graph_claims import DATA
from ipyvram.probes.leftovers import left_by, leftovers
from ipyvram.probes.owners import Owners
from ipyvram.probes.variable_claims import KEPT

pytestmark = pytest.mark.usefixtures("read_graphs")


def found(namespace):
    return list(leftovers(namespace, list(namespace.items())))


def test_a_graph_that_a_variable_keeps():
    layer, x = nn.Linear(4, 4), torch.zeros(2, 4)
    out = layer(x).exp()
    (result,) = [left for left in found({"out": out, "x": x}) if left.category == "activations"]
    assert (result.name, result.graph_of, result.tensor.data_ptr()) == ("graph of out", "out", out.data_ptr())
    (given,) = [left for left in found({"out": out, "x": x}) if left.category == "data"]
    assert given.tensor.data_ptr() == x.data_ptr()


def test_a_graph_that_was_used_keeps_nothing_but_its_leaves():
    layer = nn.Linear(4, 4)
    out = layer(torch.zeros(2, 4)).exp().sum()
    out.backward()
    left = found({"out": out})
    assert {id(one.tensor): one.category for one in left} == (
        {id(p): "parameters" for p in layer.parameters()} | {id(p.grad): "gradients" for p in layer.parameters()}
    )
    assert {one.name for one in left} == {"graph of out", "graph of out.grad"}


def test_a_model_that_only_its_loss_leads_to_has_parameters_and_gradients():
    layer, mixed = nn.Linear(4, 4), torch.zeros(2, 4, requires_grad=True)
    out = layer(mixed).sum()
    out.backward()
    addresses = {p.data_ptr(): "parameters" for p in layer.parameters()}
    addresses |= {p.grad.data_ptr(): "gradients" for p in (*layer.parameters(), mixed)} | {mixed.data_ptr(): ""}
    del layer
    owners = Owners(Clock(), lambda storage, before: ("cpu", storage.data_ptr()), {"out": out})
    owners.variables.claim(before=True)
    claimed = {c.address: c.category for c in owners.claims if c.address in addresses}
    assert claimed == addresses


def test_a_model_in_the_frames_of_an_error_is_one(monkeypatch):
    def train():
        net = nn.BatchNorm1d(3)
        net(torch.zeros(2, 3)).sum().backward()
        raise ValueError("not ready")

    with pytest.raises(ValueError, match="not ready") as caught:
        train()
    categories = {left.name: left.category for left in left_by(caught.value, {})}
    assert categories["net in train().weight"] == "parameters"
    assert categories["net in train().weight.grad"] == "gradients"
    assert categories["net in train().running_mean"] == "buffers"


def test_an_earlier_model_that_no_variable_holds(monkeypatch):
    """As in a reference cycle, which every parametrized one has."""
    monkeypatch.setattr(keeping, "_models", {})
    model = nn.Linear(4, 4)
    elsewhere = [model]
    model(torch.zeros(2, 4)).sum().backward()
    keeping.remember({"model": model})
    assert found({"model": model}) == []
    addresses = {p.data_ptr(): "parameters" for p in model.parameters()}
    addresses |= {p.grad.data_ptr(): "gradients" for p in model.parameters()}
    del model
    left = found({"model": nn.Linear(2, 2)})
    assert {one.tensor.data_ptr(): one.category for one in left} == addresses
    assert {one.name for one in left} == {"previous model", "previous model.grad"}
    elsewhere.clear()


def test_values_that_were_displayed():
    shown = torch.zeros(3)
    (left,) = found({"_oh": {7: shown}})
    assert left.tensor is shown
    assert left.name == "Out[7]"


def test_what_the_last_error_keeps(monkeypatch):
    def step():
        batch = torch.zeros(5)
        raise ValueError(batch.shape)

    with pytest.raises(ValueError, match="5") as caught:
        step()
    monkeypatch.setattr(sys, "last_value", caught.value, raising=False)
    monkeypatch.setattr(sys, "last_traceback", caught.tb, raising=False)
    told = [(left.name, left.graph_of, left.in_error, tuple(left.tensor.shape)) for left in found({})]
    assert ("traceback: batch in step()", "", True, (5,)) in told


def test_a_walk_over_graphs_ends(monkeypatch):
    monkeypatch.setattr(module, "MAX_NODES", 3)
    out = torch.zeros(2, requires_grad=True)
    for _ in range(20):
        out = out.exp()
    assert len(found({"out": out})) == 3


def test_they_are_claimed_as_there_before_and_never_as_a_batch():
    layer, x = nn.Linear(4, 4), torch.zeros(2, 4)
    namespace = {"out": layer(x).exp()}
    before = []

    def identify(storage, there_before):
        before.append(there_before)
        return "cpu", storage.data_ptr()

    owners = Owners(Clock(), identify, namespace)
    owners.variables.claim(before=True)
    assert all(before)
    of_out = {c.category for c in owners.claims if c.address == namespace["out"].data_ptr()}
    assert of_out == {"", "outputs", KEPT}
    assert {c.category for c in owners.claims if c.address == x.data_ptr()} == {DATA}


def test_a_look_at_threads_keeps_nothing_of_the_function_that_asked():
    """Python 3.12 kept its frame in a cycle, and with it the batch of the step after which a trace began."""

    def step():
        batch = torch.zeros(4)
        list(roots.threads())
        return weakref.ref(batch)

    gc.disable()
    try:
        assert step()() is None
    finally:
        gc.enable()

"""What graphs keep for backward is claimed by what saved it, once, and let go when the engine frees it."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ipyvram.probes import graph_claims
from ipyvram.probes.graph_claims import DATA, RELEASED
from tests.networks import needs_saved_tensors
from tests.test_owners import new_owners, said

pytestmark = pytest.mark.usefixtures("read_graphs")


@pytest.fixture
def owners():
    return new_owners({})


def test_a_graph_says_what_it_saved_and_when_it_let_go(owners):
    w, x = torch.ones(3, requires_grad=True), torch.ones(3)
    y = (w * x).exp().sum()
    leaves = owners.graphs.read([y], backward=True)
    assert leaves == [w]
    y.backward()
    owners.graphs.released()
    assert (DATA, "MulBackward0.other") in said(owners)
    assert ("activations", "ExpBackward0.result") in said(owners)
    released = [claim.address for claim in owners.claims if claim.category == RELEASED]
    saved = [claim.address for claim in owners.claims if claim.category in (DATA, "activations")]
    assert sorted(released) == sorted(set(saved))


def test_a_graph_that_is_kept_is_not_let_go(owners):
    w = torch.ones(3, requires_grad=True)
    y = w.exp().sum()
    owners.graphs.read([y], backward=True)
    y.backward(retain_graph=True)
    owners.graphs.released()
    assert RELEASED not in {category for category, _ in said(owners)}


def test_no_version_is_touched_and_no_operator_runs(owners):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(f"ran {func}")

    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.ones(1, 2)
    y = model(x).sum()
    versions = [t._version for t in itertools.chain(model.parameters(), [x, y])]
    with Refuses():
        owners.members.module(model, "net")
        owners.inputs(model, (x,), {})
        owners.outputs(y, "y")
        owners.graphs.read([y], backward=True)
        owners.graphs.released()
        owners.members.optimizer(optimizer)
        owners.variables.claim()
    assert [t._version for t in itertools.chain(model.parameters(), [x, y])] == versions


def test_of_a_kept_graph_only_the_part_that_was_not_read_is_claimed():
    layer = nn.Linear(2, 2)
    number = torch._C._autograd._get_sequence_nr
    before = layer(torch.ones(1, 2)).exp()
    begin = number()
    out = layer(torch.ones(1, 2)).sigmoid()
    end = number()
    kept = {"before": before, "out": out, "losses": [out.exp(), out.tanh().exp()], "plain": torch.ones(1)}
    owners = new_owners(kept)
    owners.graphs.kept([])
    assert said(owners) == []
    owners.graphs.kept([(0, begin), (begin, end)])
    assert sorted(said(owners)) == [
        ("", "losses[0]"), ("", "losses[1]"),
        ("activations", "ExpBackward0.result"), ("activations", "ExpBackward0.result"), ("activations", "TanhBackward0.result"),
    ]  # fmt: skip


def test_what_a_forward_saved_is_used_and_released_by_the_backward(owners):
    layer = nn.Linear(2, 2)
    begin = torch._C._autograd._get_sequence_nr()
    out = layer(torch.ones(3, 2).exp().requires_grad_() * 2)
    owners.graphs.read([out], since=begin)
    read = [(c.category, c.address) for c in owners.claims if c.category in ("activations", DATA)]
    loss = out.sigmoid().sum()
    owners.claims.clear()
    leaves = owners.graphs.read([loss], backward=True)
    again = [(c.category, c.address) for c in owners.claims if c.name != "SigmoidBackward0.result"]
    assert sorted(again) == sorted(read)
    assert len(leaves) == 3  # weight, bias and what was made to want a gradient
    loss.backward()
    owners.graphs.released()
    released = {c.address for c in owners.claims if c.category == RELEASED}
    assert {address for _, address in read} < released


def test_a_backward_of_a_part_releases_only_that_part(owners):
    x, layer = torch.ones(3, 2), nn.Linear(2, 2)
    begin = torch._C._autograd._get_sequence_nr()
    trunk = layer(x).exp()
    heads = trunk.sin(), trunk.sigmoid()
    owners.graphs.read(heads, since=begin)
    where = {c.name: c.address for c in owners.claims}
    owners.graphs.read([heads[0].sum()], backward=True)
    heads[0].sum().backward()
    owners.graphs.released()
    released = {c.address for c in owners.claims if c.category == RELEASED}
    assert {where["SinBackward0.self"], where["ExpBackward0.result"]} <= released
    assert where["SigmoidBackward0.result"] not in released


def test_a_graph_that_a_backward_keeps_is_released_by_the_next(owners):
    layer = nn.Linear(2, 2)
    begin = torch._C._autograd._get_sequence_nr()
    out = layer(torch.ones(3, 2))
    owners.graphs.read([out], since=begin)
    for retain in (True, False):
        loss = out.sum()
        owners.graphs.read([loss], backward=True)
        loss.backward(retain_graph=retain)
        owners.graphs.released()
        assert (RELEASED in {c.category for c in owners.claims}) is not retain


@needs_saved_tensors
def test_nodes_of_another_thread_may_have_the_same_numbers(owners):
    layer = nn.Linear(2, 2)
    owners.graphs.read([layer(torch.ones(1, 2))])
    with ThreadPoolExecutor(1) as pool:
        out = pool.submit(layer, torch.ones(1, 2)).result()
        pool.submit(owners.graphs.read, [out]).result()
    claimed = len(owners.claims)
    owners.graphs.read([out], backward=True)
    assert len(owners.claims) > claimed


@pytest.fixture
def read_nodes(monkeypatch):
    """The numbers of nodes whose saved tensors were looked at."""
    numbers = []
    original = graph_claims.saved_by
    monkeypatch.setattr(graph_claims, "saved_by", lambda node: numbers.append(node._sequence_nr()) or original(node))
    return numbers


def step(owners, layer, x, keep=False):
    """A forward and its backward, read as `phases` has them read."""
    begin = torch._C._autograd._get_sequence_nr()
    out = layer(x)
    owners.graphs.read([out], since=begin)
    loss = out.sum()
    owners.graphs.read([loss], backward=True)
    loss.backward(retain_graph=keep)
    owners.graphs.released()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_node_is_read_once(device, owners, read_nodes):
    step(owners, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(device), torch.ones(3, 2, device=device))
    *in_order, sample = read_nodes  # the last tells whether the graph was freed
    assert len(in_order) == len(set(in_order))
    assert sample in in_order


@pytest.mark.parametrize(("device", "again"), [("cpu", False), ("meta", True)])
def test_where_the_engine_may_have_made_nodes_numbers_are_not_trusted(device, again, owners, read_nodes):
    layer, x = nn.Linear(2, 2).to(device), torch.ones(3, 2, device=device)
    step(owners, layer, x, keep=True)
    read_nodes.clear()
    step(owners, layer, x)
    assert (len(read_nodes[:-1]) > len(set(read_nodes[:-1]))) is again

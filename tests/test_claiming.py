"""One claim after the other."""

from __future__ import annotations

import torch
from torch import nn

from ipyvram.probes.claiming import Claiming
from ipyvram.probes.clock import Clock


def claiming(followed=lambda storage: True):
    return Claiming(Clock(), lambda storage, before: ("cpu", storage._cdata) if followed(storage) else None)


def test_a_sparse_tensor_is_claimed_once_with_all_its_parts():
    c, layer = claiming(), nn.Embedding(10, 4, sparse=True)
    layer(torch.tensor([1, 2])).sum().backward()
    for _ in range(2):
        c.claim_once(layer.weight.grad, "gradients", "weight.grad")
    assert [(claim.category, claim.name) for claim in c.made] == [
        ("gradients", "weight.grad")
    ] * 2  # indices and values


def test_a_claim_says_what_lies_where():
    c, x = claiming(), torch.ones(3, 4)
    where = c.claim(x, "outputs", "y", module="net")
    (claim,) = c.made
    assert where == (claim.device, claim.address) == ("cpu", x.untyped_storage()._cdata)
    assert (claim.nbytes, claim.category, claim.name, claim.module) == (48, "outputs", "y", "net")
    assert (claim.shape, claim.dtype) == ((3, 4), "float32")


def test_what_no_trace_follows_is_passed_over():
    c = claiming(followed=lambda storage: False)
    assert c.claim(torch.ones(2), "outputs", "y") is None
    c.claim_once(torch.ones(2), "outputs", "y")
    assert c.made == []


def test_what_no_trace_follows_is_asked_for_once_unless_it_is_empty():
    asked = []
    c, x, sharded = claiming(followed=asked.append), torch.ones(2), torch.ones(2)
    sharded.untyped_storage().resize_(0)
    for _ in range(2):
        c.claim_once(x, "optimizer_state", "weight.step")
        c.claim_once(sharded, "parameters", "weight")
    assert [storage.nbytes() for storage in asked] == [8, 0, 0]
    c.forget()
    c.claim_once(x, "optimizer_state", "weight.step")
    assert len(asked) == 4


def test_once_is_once_for_a_tensor_its_storage_and_a_category():
    c, x = claiming(), torch.ones(2)
    c.claim_once(x, "outputs", "y")
    c.claim_once(x, "outputs", "y")
    assert len(c.made) == 1
    c.claim_once(x, "gradients", "x.grad")
    x.data = torch.zeros(2)
    c.claim_once(x, "outputs", "y")
    assert len(c.made) == 3
    c.forget()
    c.claim_once(x, "outputs", "y")
    assert len(c.made) == 4


def test_the_first_name_of_a_leaf_stays():
    c, leaf = claiming(), nn.Parameter(torch.ones(1))
    assert (c.name_of(leaf), c.model_of(leaf, "otherwise")) == ("", "otherwise")
    assert c.give_name(leaf, "weight", "net") == "weight"
    assert c.give_name(leaf, "else", "other") == "weight"
    assert (c.name_of(leaf), c.model_of(leaf)) == ("weight", "net")

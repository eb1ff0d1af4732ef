"""What an autograd graph keeps, read without unpacking, re-running or keeping anything."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ipyvram.probes.graph import kept_by_context, leaf_of, nodes_below, saved_by
from tests.networks import needs_saved_tensors

pytestmark = pytest.mark.usefixtures("read_graphs")


def saved(*roots) -> dict[str, torch.Tensor]:
    return {f"{s.node.name()}.{s.field}": s.tensor for node in nodes_below(roots) for s in saved_by(node)}


def test_saved_operands_and_results_are_the_very_storages():
    w, x = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    y = (w * x).exp()
    found = saved(y)
    assert found["MulBackward0.other"].data_ptr() == x.data_ptr()
    assert found["ExpBackward0.result"].data_ptr() == y.data_ptr()


def test_only_what_was_handed_in_is_data():
    w, x = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    h = w * x
    y = (h * h).exp().sum()
    data = {f"{s.node.name()}.{s.field}" for node in nodes_below([y]) for s in saved_by(node) if s.data}
    assert data == {"MulBackward0.other"}


def test_leaves_are_found_through_their_accumulators():
    layer = nn.Linear(3, 2)
    leaves = {id(leaf) for node in nodes_below([layer(torch.ones(1, 3))]) if (leaf := leaf_of(node)) is not None}
    assert leaves == {id(layer.weight), id(layer.bias)}


def test_each_node_once_and_none_made_before():
    w = torch.ones(3, requires_grad=True)
    h = w.exp()
    first = h.grad_fn._sequence_nr()
    y = (h * h + h).sum()
    every = list(nodes_below([y]))
    assert len(every) == len(set(every)) == 5  # sum, add, mul, exp and w's accumulator
    later = [node.name() for node in nodes_below([y], since=first + 1)]
    assert sorted(later) == ["AddBackward0", "MulBackward0", "SumBackward0"]


def test_a_freed_graph_keeps_nothing():
    w = torch.ones(3, requires_grad=True)
    y = w.exp().sum()
    y.backward()
    assert saved(y) == {}


def test_a_kept_graph_keeps_all():
    w = torch.ones(3, requires_grad=True)
    y = w.exp().sum()
    y.backward(retain_graph=True)
    assert "ExpBackward0.result" in saved(y)


def test_reading_does_not_run_a_checkpoint_again():
    runs = []

    class Block(nn.Module):
        def forward(self, x):
            runs.append(1)
            return x.exp()

    y = checkpoint(Block(), torch.ones(3, requires_grad=True), use_reentrant=False).sum()
    saved(y)
    assert len(runs) == 1


def test_reading_hides_no_error_of_the_users():
    w = torch.ones(3, requires_grad=True)
    h = w * 1
    y = h.pow(2).sum()
    h.add_(1)
    saved(y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_nothing_is_kept_alive():
    w = torch.ones(3, requires_grad=True)
    y = w.exp()
    alive = weakref.ref(y.untyped_storage())
    saved(y.sum())
    del y
    gc.collect()
    assert alive() is None


def test_what_a_function_keeps_on_its_context():
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.extra = x + 1
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    y = Keeps.apply(torch.ones(3, requires_grad=True))
    assert [s.field for s in saved_by(y.grad_fn)] == ["tensors"]
    assert [(s.field, s.tensor.tolist()) for s in kept_by_context(y.grad_fn)] == [("extra", [2.0, 2.0, 2.0])]


@needs_saved_tensors
def test_what_hooks_packed_is_seen():
    with torch.autograd.graph.save_on_cpu():
        y = torch.ones(3, requires_grad=True).exp()
    assert any(tensor.numel() == 3 for tensor in saved(y).values())

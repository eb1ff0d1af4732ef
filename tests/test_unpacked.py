"""Where torch shows what a graph saved only unpacked: what no hook packed is read all the same, and nothing is run again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from ipyvram.probes import graph, phases
from ipyvram.probes.unpacked import Unpacked
from tests.test_phases import watched


@pytest.fixture
def unpacked(monkeypatch):
    """As an older torch, whichever is here."""
    known = Unpacked()
    monkeypatch.setattr(graph, "SHOWN", False)
    monkeypatch.setattr(phases, "SHOWN", False)
    for module in (graph, phases):
        monkeypatch.setattr(module, "UNPACKED", known)
    return known


def kept(root):
    return {f"{s.node.name()}.{s.field}" for node in graph.nodes_below([root]) for s in graph.saved_by(node)}


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


def test_what_was_made_while_a_cell_is_traced_is_read(unpacked):
    w, x = torch.ones(3, requires_grad=True), torch.full((3,), 2.0)
    before = (w * x).exp()
    seen = watched()
    y = (w * x).exp()
    stacked = torch.stack([y, y]).prod()
    cube = Cube.apply(y)
    seen.phases.stop()
    after = (w * x).exp()
    assert kept(y) == {"MulBackward0.other", "ExpBackward0.result"}
    assert "ProdBackward0.self" in kept(stacked)
    assert "CubeBackward.tensors" in kept(cube)
    assert kept(before) == kept(after) == set()
    (result,) = [s for node in graph.nodes_below([y]) for s in graph.saved_by(node) if s.field == "result"]
    assert result.tensor.data_ptr() == y.data_ptr()
    (data,) = [s for node in graph.nodes_below([y]) for s in graph.saved_by(node) if s.data]
    assert data.tensor.data_ptr() == x.data_ptr()


def test_a_checkpoint_does_not_run_again(unpacked):
    runs = []
    layer = nn.Linear(3, 3)

    def part(x):
        runs.append(1)
        return layer(x).exp().sin()

    seen = watched()
    y = checkpoint(part, torch.ones(2, 3, requires_grad=True), use_reentrant=False).tanh().sum()
    found = kept(y)
    seen.phases.stop()
    assert runs == [1]
    assert found == {"TanhBackward0.result"}
    y.backward()
    assert runs == [1, 1]


def test_hooks_within_hooks_end_with_the_outer_ones(unpacked):
    hooks = torch.autograd.graph.saved_tensors_hooks
    seen = watched()
    w = torch.ones(3, requires_grad=True)

    def same(tensor):
        return tensor

    with hooks(same, same):
        with hooks(same, same):
            inner = w.exp()
        outer = w.exp()
    plain = w.exp()
    seen.phases.stop()
    assert kept(inner) == kept(outer) == set()
    assert kept(plain) == {"ExpBackward0.result"}


def test_nothing_is_read_where_hooks_were_there_before(unpacked):
    with torch.autograd.graph.save_on_cpu():
        seen = watched()
        y = torch.ones(3, requires_grad=True).exp()
        seen.phases.stop()
    assert kept(y) == set()


def test_what_was_written_to_since_is_passed_over(unpacked):
    seen = watched()
    w = torch.ones(3, requires_grad=True)
    y = w.exp()
    z = y.sin()
    y.mul_(2)
    found = kept(z)
    seen.phases.stop()
    assert found == set()  # torch would say so in the backward
    with pytest.raises(RuntimeError, match="inplace"):
        z.sum().backward()


def test_no_operator_runs(unpacked):
    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(f"ran {func}")

    seen = watched()
    y = torch.ones(3, requires_grad=True).exp().tanh()
    version = y._version
    with Refuses():
        assert kept(y) == {"ExpBackward0.result", "TanhBackward0.result"}
    seen.phases.stop()
    assert y._version == version


def test_nothing_is_left_in_place(unpacked):
    owner = torch._C._autograd
    before = owner._push_saved_tensors_default_hooks, owner._pop_saved_tensors_default_hooks
    seen = watched()
    assert owner._push_saved_tensors_default_hooks is not before[0]
    seen.phases.stop()
    assert (owner._push_saved_tensors_default_hooks, owner._pop_saved_tensors_default_hooks) == before

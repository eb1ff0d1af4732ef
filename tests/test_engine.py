"""What autograd does differently under a dispatch mode, asked from inside one."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ipyvram.probes.engine import ADD, OUTSIDE, current_node, may_reuse


class Asks(TorchDispatchMode):
    """Notes the node of every operator, and for every sum whether torch would reuse its first operand."""

    def __init__(self):
        super().__init__()
        self.sums, self.nodes, self.made_by = [], [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.nodes.append(current_node())
        if func is ADD:
            self.sums.append(may_reuse(func, args[0], self.made_by.get(id(args[0]), OUTSIDE), newest=False))
        result = func(*args, **(kwargs or {}))
        self.made_by[id(result)] = current_node()
        return result


def test_the_second_gradient_of_a_tensor_is_summed_over_the_first():
    w = torch.ones(3, requires_grad=True)
    with Asks() as asks:
        h = w * 2
        (h.exp() + h.sin()).sum().backward()
    assert asks.sums == [False, True]  # the program's sum, and the engine's


def test_with_a_history_the_first_gradient_is_kept():
    w = torch.ones(3, requires_grad=True)
    with Asks() as asks:
        h = w * 2
        (h.exp() + h.sin()).sum().backward(create_graph=True)
    assert True not in asks.sums


def test_nodes_are_known_in_backward_and_nowhere_else():
    w = torch.ones(3, requires_grad=True)
    with Asks() as asks:
        y = (w * 2).sum()
        forward = len(asks.nodes)
        y.backward()
    assert set(asks.nodes[:forward]) == {OUTSIDE}
    assert set(asks.nodes[forward + 1 :]) - {OUTSIDE}


def test_outside_the_engine_nothing_may_be_reused():
    assert not may_reuse(ADD, torch.ones(3), OUTSIDE, newest=True)
    with torch.no_grad():
        assert not may_reuse(ADD, torch.ones(3), OUTSIDE, newest=True)

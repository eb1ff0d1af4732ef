"""What a notebook's variables lead to, by the shortest path, without running anybody's code."""

from __future__ import annotations

import functools
import sys
import weakref
from collections import UserDict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ipyvram.probes.namespace import holdings


def names(namespace, depth=6, limit=1000) -> dict[str, type]:
    return {name: type(value) for name, value in holdings(namespace, depth, limit)}


def test_variables_containers_and_objects():
    data = TensorDataset(torch.ones(4, 2), torch.ones(4))
    model = nn.Linear(2, 1)
    found = names({
        "x": torch.ones(1), "pair": [torch.ones(1), torch.ones(2)], "state": {"fc.weight": torch.ones(3)},
        "loader": DataLoader(data, 2), "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1), "n": 3,
    })  # fmt: skip
    assert {"x", "pair[0]", "pair[1]", "state['fc.weight']", "model", "optimizer"} <= set(found)
    assert {"loader.dataset.tensors[0]", "loader.dataset.tensors[1]"} <= set(found)
    assert "n" not in found


def test_each_is_found_once_by_its_shortest_path():
    x = torch.ones(1)
    assert list(names({"deep": {"a": [x]}, "x": x})) == ["x"]


def test_names_that_begin_with_an_underscore_are_ipythons():
    assert names({"_": torch.ones(1), "__": torch.ones(1), "_oh": {1: torch.ones(1)}}) == {}


class Store(UserDict):
    """As of a graph's data or a tokenizer's output: items by name, kept in a dict of its own."""


class Data:
    def __init__(self, **items):
        self._store, self._other = Store(items), torch.ones(1)

    def __getitem__(self, key):
        raise AssertionError("code of the user's")


def test_items_that_an_object_keeps_to_itself_are_its_own():
    found = names({"data": Data(x=torch.ones(2)), "batch": Store(ids=torch.ones(3))})
    assert set(found) == {"data['x']", "data._other", "batch['ids']"}


def test_closures_and_partials_lead_on():
    hidden = torch.ones(1)

    def function():
        return hidden

    assert list(names({"f": function})) == ["hidden"]
    assert list(names({"g": functools.partial(print, torch.ones(2))})) == ["g.args[0]"]


def test_depth_and_limit_hold():
    nested = {"a": {"b": {"c": torch.ones(1)}}}
    assert names({"nested": nested}, depth=2) == {}
    assert list(names({"nested": nested}, depth=3)) == ["nested['a']['b']['c']"]
    assert len(names({"many": [torch.ones(1) for _ in range(50)]}, limit=20)) <= 20


def test_what_was_left_out_is_said():
    def cut(items, limit):
        said = []
        found = list(holdings({"many": [torch.ones(1) for _ in range(items)]}, 6, limit, lambda: said.append(True)))
        return len(found), said

    assert cut(50, 51) == (50, [])
    assert cut(50, 50) == (49, [True])


def test_a_loop_of_references_ends():
    a: list = [torch.ones(1)]
    a.append(a)
    assert list(names({"a": a})) == ["a[0]"]


def test_modules_of_python_and_proxies_are_left_alone():
    class Proxy:
        @property
        def __class__(self):
            raise AssertionError("asked a proxy for its class")

        def __getattr__(self, name):
            raise AssertionError(f"asked a proxy for {name}")

    assert names({"sys": sys, "torch": torch, "proxy": Proxy(), "cls": nn.Linear}) == {}


@dataclass(slots=True)
class Seen:
    state: torch.Tensor
    reward: float


def test_a_replay_memory_and_what_else_keeps_tensors():
    def steps():
        model = nn.Linear(2, 1)
        while True:
            yield model

    training = steps()
    next(training)
    memory = deque([Seen(torch.ones(4), 1.0), Seen(torch.ones(4), 0.0)], maxlen=100)
    found = names({"memory": memory, "bank": {torch.ones(1)}, "training": training})
    assert set(found) == {"memory[0].state", "memory[1].state", "bank[…]", "model"}


def test_objects_that_a_model_keeps_lead_on_in_a_search_that_goes_deep():
    model = nn.Linear(2, 1)
    model.trainer = SimpleNamespace(loader=DataLoader(TensorDataset(torch.ones(4, 2)), 2), model=model)
    assert set(names({"model": model})) == {"model", "model.trainer.loader.dataset.tensors[0]"}
    assert set(names({"model": model}, depth=1)) == {"model"}


def test_a_generator_that_has_been_looked_at_lets_go_of_what_it_held():
    def batches():
        while True:
            x = torch.ones(2)
            held = weakref.ref(x)
            yield held
            x = None
            yield held

    found = batches()
    held = next(found)
    assert set(names({"found": found})) == {"x"}
    next(found)
    assert held() is None


def test_data_that_holds_no_tensor_is_not_walked_through():
    frames = [{"name": "train", "filename": "train.py", "line": n} for n in range(100)]
    snapshot = {"device_traces": [[{"action": "alloc", "addr": n, "frames": frames} for n in range(1000)]]}
    cut: list[str] = []
    found = dict(holdings({"snapshot": snapshot, "x": {"y": torch.ones(1)}}, 6, 2500, lambda: cut.append("cut")))
    assert (set(found), cut) == ({"x['y']"}, [])


def test_containers_of_tensors_are_handed_over_whole():
    """Also where a variable of a loop has the shorter path to one of their tensors."""
    last = torch.ones(2)
    variables = {
        "v": last, "velocity": [torch.ones(3), last], "pairs": [(torch.ones(2), torch.ones(2))], "by_name": {"w": torch.ones(2)},
        "losses": [torch.tensor(1.0)], "words": ["a"], "empty": [],
    }  # fmt: skip
    containers: list = []
    found = dict(holdings(variables, 2, 1000, containers=containers))
    assert found["v"] is last
    assert "velocity[1]" not in found
    names = [name for name, _ in containers]
    assert names[:3] == ["velocity", "pairs", "by_name"]
    assert containers[0][1] is variables["velocity"]
    assert "losses" not in names

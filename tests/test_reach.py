"""What objects reach, and what is not worth being looked into."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipyvram.devices import since
from ipyvram.probes.reach import MAX_OBJECTS, Walk


def entered(walk: Walk) -> int:
    return MAX_OBJECTS - walk._left


def test_paths_are_what_one_would_write():
    class Loader:
        __slots__ = ("batch",)

        def __init__(self):
            self.batch = torch.zeros(3)

    class Trainer:
        def __init__(self):
            self.model, self.seen, self.loader, self.rate = nn.Linear(2, 2), {"last": [torch.zeros(4)]}, Loader(), 0.1

    walk = Walk()
    walk.root(Trainer(), "trainer")
    paths = {path: walk.categories[storage] for storage, path in walk.storages.items()}
    assert paths == {
        "trainer.model.weight": "parameters",
        "trainer.model.bias": "parameters",
        "trainer.seen['last'][0]": "other",
        "trainer.loader": "other",  # slots have no names here
    }


def test_numbers_and_texts_are_not_walked_through():
    few, many = ({"names": ["a"] * n, "steps": dict.fromkeys(range(n), 1.5), "x": torch.zeros(2)} for n in (2, 60))
    walks = []
    for data in (few, many):
        walks.append(Walk())
        assert len(walks[-1].root(data, "data")) == 1
    assert entered(walks[0]) == entered(walks[1])


def test_an_error_in_compiled_code_does_not_lead_into_the_compiler(monkeypatch):
    """Its frames have tens of thousands of symbols, guards and nodes, which were walked through under every later cell."""
    from torch._inductor import config
    from torch._inductor.graph import GraphLowering

    def fail(*args, **kwargs):
        raise RuntimeError("no kernel")

    torch._dynamo.reset()  # it does not compile what many tests before have compiled in other ways
    monkeypatch.setattr(GraphLowering, "codegen", fail)
    monkeypatch.setattr(config, "force_disable_caches", True)  # what an earlier run compiled does not fail
    net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(8)])

    def run(x):  # torch 2.6 compiles no module once one ran under a dispatch mode
        return net(x)

    def evaluate():
        batch = torch.zeros(3, 4)
        torch.compile(run)(batch)

    with pytest.raises(Exception, match="no kernel") as caught:
        evaluate()
    walk = Walk()
    walk.root(caught.value, "error")
    # The frames of torch 2.6 have more of it, and more still after others were compiled.
    assert entered(walk) < (2000 if since(2, 9) else 20_000)
    assert "batch in evaluate()" in walk.storages.values()
    torch.compiler.reset()

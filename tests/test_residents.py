"""Who holds memory now: every storage once, by the holder one would name; `free` frees what it says and no more."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
import torch

from ipyvram.probes import freeing, keeping, residents
from ipyvram.probes.cycles import in_cycles
from ipyvram.probes.leftovers import leftovers
from ipyvram.render.resident import bundle, text
from ipyvram.render.text import Pen
from ipyvram.resident import Holding, Resident
from ipyvram.resident_commands import free
from tests.networks import needs_saved_tensors
from tests.test_findings_programs import BROKEN, Notebook, notebook  # noqa: F401

CYCLE = """
class Node:
    pass
node = Node()
node.itself, node.tensor = node, torch.zeros(500_000)
del node
"""


def holders(notebook: Notebook) -> dict[str, int]:  # noqa: F811
    (cpu,) = [r for r in residents.look(notebook.names) if r.device == "cpu"]
    assert sum(h.bytes for h in cpu.holdings) == cpu.bytes == sum(cpu.by_category().values())
    return {row.holder: row.bytes for row in cpu.by_holder()}


def test_a_model_and_its_optimizer(notebook):  # noqa: F811
    notebook.run("train(1)")
    size = sum(p.nbytes for p in notebook.names["model"].parameters())
    (cpu,) = residents.look(notebook.names)
    found = {(h.holder, h.category): h.bytes for h in cpu.holdings}
    assert found["model", "parameters"] == found["model", "gradients"] == size
    assert found["optimizer", "optimizer_state"] == 2 * size + 6 * 4  # and step counters
    assert found["x", "inputs"] == 64 * 64 * 4


def test_containers_objects_closures_and_views(notebook):  # noqa: F811
    notebook.run(
        "class Bag: pass\n"
        "bag = Bag(); bag.inside = {'deep': [torch.zeros(1000)]}\n"
        "def outer():\n    hidden = torch.zeros(2000)\n    return lambda: hidden\n"
        "keep = outer()\n"
        "whole = torch.zeros(3000); part = whole[:10]"
    )
    found = holders(notebook)
    assert (found["bag"], found["keep"], found["whole"]) == (4000, 8000, 12000)
    assert "part" not in found  # it takes nothing of its own
    (cpu,) = residents.look(notebook.names)
    assert "bag.inside['deep'][0]" in {h.example for h in cpu.holdings}


@needs_saved_tensors
def test_out_traceback_graphs_old_models_and_cycles(notebook):  # noqa: F811
    notebook.measure("train(1)")
    notebook.run("kept = torch.zeros(1_000_000)")
    notebook.display("kept")
    notebook.run("del kept")
    notebook.fail(BROKEN)
    notebook.run("losses = [model(x).mean() for _ in range(3)]\nmodel = new_model()")
    gc.collect()
    gc.disable()
    try:
        notebook.run(CYCLE)
        found = holders(notebook)
    finally:
        gc.enable()
    size = sum(p.nbytes for p in notebook.names["model"].parameters())
    assert found["Out[4], _4, _"] == 4_000_000
    assert found["traceback of KeyError"] == 4_000_000
    assert found["a reference cycle"] == 2_000_000
    assert found["previous model, held by optimizer"] == 2 * size
    assert found["graph of losses"] == 3 * 2 * 64 * 256 * 4  # what two ReLUs keep


def test_gradients_of_a_model_that_kept_losses_hold_are_theirs(notebook):  # noqa: F811
    notebook.measure("losses = []\nfor _ in range(2):\n    losses.append(model(x).mean())\n    losses[-1].backward()")
    notebook.run("del optimizer\nmodel = new_model()")
    gc.collect()
    size = sum(p.nbytes for p in notebook.names["model"].parameters())
    found = holders(notebook)
    assert found["previous model, held by graph of losses"] == 2 * size  # its parameters and their gradients
    (graphs,) = [o for o in keeping.observe(notebook.names) if o.kind == "graphs"]
    assert graphs.bytes == 2 * size


def named(found):
    """What the notebook holds; other tests leave things elsewhere."""
    return [h for r in found for h in r.holdings if h.kind not in ("elsewhere", "cycle")]


def test_the_shortest_path_names_a_holder_and_an_average_is_parameters(notebook):  # noqa: F811
    notebook.run("""
from collections import UserDict
from types import SimpleNamespace
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
optimizer = torch.optim.Adam(model.parameters())
model(torch.ones(1, 64)).sum().backward()
optimizer.step()
trainer = SimpleNamespace(optimizer=optimizer, scheduler=SimpleNamespace(optimizer=optimizer))
average = SimpleNamespace(shadow=[p.detach().clone() for p in model.parameters()])
batch = UserDict(ids=torch.zeros(10))
del optimizer
""")
    (cpu,) = residents.look(notebook.names)
    rows = {(h.holder, h.category): h.example for h in cpu.holdings}
    assert rows["trainer", "optimizer_state"].startswith("trainer.optimizer.state[0]")
    assert rows["average", "parameters"] == "average.shadow[0]"
    assert rows["batch", "inputs"] == "batch['ids']"


OWN_OPTIMIZER = """
class Momentum:
    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.state = {p: {"average": torch.zeros_like(p)} for p in self.parameters}
    def step(self): ...
    def zero_grad(self): ...
learner = type("Learner", (), {})()
learner.net = torch.nn.Linear(64, 64)
learner.opt = Momentum(learner.net.parameters())
"""


def test_what_an_optimizer_of_the_programs_own_keeps_is_its_state(notebook):  # noqa: F811
    notebook.run(OWN_OPTIMIZER)
    (cpu,) = residents.look(notebook.names)
    size = 4 * (64 * 64 + 64)
    assert {h.category: h.bytes for h in cpu.holdings if h.holder == "learner"} == {
        "parameters": size,
        "optimizer_state": size,
    }


GENERATING = """
class Cache:
    def __init__(self, keys): self.layers = [keys]
class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 64)
    def forward(self, x):
        return {"logits": self.fc(x), "cache": Cache(self.fc(x))}
class Same(torch.nn.Module):
    def forward(self, x):
        return x
decoder, same = Decoder(), Same()
data = torch.zeros(1000, 64)
"""


def test_what_a_model_returned_is_a_result_and_data_is_data(notebook):  # noqa: F811
    notebook.run(GENERATING)
    notebook.measure("with torch.no_grad():\n    out = decoder(data)\n    logits, cache, back = out['logits'][:5], out['cache'], same(data)\n    del out")  # fmt: skip
    (cpu,) = residents.look(notebook.names)
    rows = {h.holder: h.category for h in cpu.holdings if h.kind == "variable"}
    assert (rows["logits"], rows["cache"], rows["data"]) == ("outputs", "outputs", "inputs")
    report = notebook.measure("(logits.sum() + cache.layers[0].sum() + data.sum()).item()")
    assert report.start["outputs"] == 2 * 1000 * 64 * 4
    assert report.start["inputs"] == 1000 * 64 * 4
    again = notebook.measure("with torch.no_grad():\n    decoder(cache.layers[0])")  # now it is what a model is given
    assert again.start["inputs"] == 1000 * 64 * 4


def test_what_a_thread_holds_is_named_by_it(notebook):  # noqa: F811
    """As of a loader whose loop ended early: its thread waits for room in the queue, and nobody has its name."""
    code = """
def begin(ready, wait):
    batch = torch.zeros(4000)
    ready.set()
    wait.wait()
"""
    exec(compile(code, "<ipython-input-1-thread>", "exec"), notebook.names)
    ready, wait = threading.Event(), threading.Event()
    thread = threading.Thread(target=notebook.names["begin"], args=(ready, wait))
    thread.start()
    try:
        assert ready.wait(10)
        (cpu,) = residents.look(notebook.names)
        assert [(h.kind, h.category, h.bytes) for h in cpu.holdings if h.holder == "a thread, batch in begin()"] == [
            ("thread", "inputs", 16_000)
        ]
        assert "batch in begin()" in [left.name for left in leftovers(notebook.names, ())]
    finally:
        wait.set()
        thread.join()
    assert all(h.kind != "thread" for r in residents.look(notebook.names) for h in r.holdings)


def test_an_underscore_that_the_user_has_set_is_a_variable(notebook):  # noqa: F811
    """``out, _ = model(x)``: from then on IPython leaves it alone, and what it displayed is no matter of it."""

    class Hook:
        _ = __ = ___ = ""

    shell = type("Shell", (), {"displayhook": Hook()})()
    notebook.names |= {"_oh": {}, "get_ipython": lambda: shell, "_": torch.zeros(3000)}
    (cpu,) = residents.look(notebook.names)
    assert [(h.kind, h.category) for h in cpu.holdings if h.holder == "_"] == [("variable", "inputs")]
    assert ("_", 12_000) in [(left.name, left.tensor.nbytes) for left in leftovers(notebook.names, ())]
    Hook._ = notebook.names["_"]
    (cpu,) = residents.look(notebook.names)
    assert [h.kind for h in cpu.holdings if h.holder == "_"] == ["out"]


def test_looking_changes_nothing(notebook):  # noqa: F811
    notebook.run("train(1)")
    before = set(notebook.names)
    gc.disable()  # Python's own collections count, too
    try:
        generation = gc.get_stats()[2]["collections"]
        assert named(residents.look(notebook.names)) == named(residents.look(notebook.names))
        assert gc.get_stats()[2]["collections"] == generation
    finally:
        gc.enable()
    assert set(notebook.names) == before


def test_tensors_of_a_library_are_elsewhere_and_no_cycle(notebook):  # noqa: F811
    module = type(sys)("library")
    module.cache = [torch.zeros(700_000)]
    sys.modules["library_of_a_test"] = module
    try:
        found = holders(notebook)
    finally:
        del sys.modules["library_of_a_test"]
    assert found["elsewhere"] >= 2_800_000


def test_in_cycles_is_what_the_collector_would_free():
    gc.disable()
    try:
        free_list: list = []
        free_list += [free_list, torch.zeros(3)]
        held = [torch.zeros(4)]
        ids = id(free_list[1]), id(held[0])
        tensors = [free_list[1], held[0]]
        del free_list
        assert in_cycles(tensors) == {ids[0]}
    finally:
        gc.enable()


# -- free --------------------------------------------------------------------------------------------------------------


def freed(notebook: Notebook, *flags: str) -> list[int]:  # noqa: F811
    return [one.tensor_bytes for one in freeing.free(list(flags), notebook.names)]


def test_free_frees_what_it_is_told_to_and_says_how_much(notebook):  # noqa: F811
    gc.collect()  # cycles of other tests
    notebook.run("kept = torch.zeros(1_000_000)")
    notebook.display("kept")
    notebook.run("del kept")
    notebook.fail(BROKEN)
    gc.collect()
    gc.disable()
    try:
        notebook.run(CYCLE)
        assert freed(notebook, "--out") == [4_000_000]
        assert notebook.names["_oh"] == {}
        assert freed(notebook, "--cycles") == [2_000_000]
        assert sys.last_value is not None
        assert freed(notebook, "--traceback") == [4_000_000]
        assert freed(notebook, "--traceback", "--out", "--cycles") == [0, 0, 0]
    finally:
        gc.enable()


def test_out_that_a_variable_holds_as_well_frees_nothing(notebook):  # noqa: F811
    notebook.run("kept = torch.zeros(1_000_000)")
    notebook.display("kept")
    assert freed(notebook, "--out") == [0]
    assert notebook.names["kept"].numel() == 1_000_000


def test_a_chain_of_errors_lets_go(notebook):  # noqa: F811
    notebook.fail(
        "def f():\n    first = torch.zeros(1_000_000)\n    raise KeyError('x')\n"
        "def g():\n    second = torch.zeros(1_000_000)\n    try:\n        f()\n"
        "    except KeyError as error:\n        raise ValueError('y') from error\ng()"
    )
    gc.collect()  # what other tests left is theirs
    assert freed(notebook, "--traceback") == [8_000_000]


@pytest.mark.parametrize(
    ("rest", "told"), [("", "only what it is told to"), ("--all", "--all: there are"), ("x", "by del")]
)
def test_free_wants_to_be_told_what(notebook, rest, told):  # noqa: F811
    with pytest.raises(ValueError, match=told):
        free(rest, notebook.names)


def test_free_prints_what_it_freed(notebook, capsys):  # noqa: F811
    notebook.fail(BROKEN)
    gc.collect()
    free("--traceback", notebook.names)
    assert capsys.readouterr().out == "the frames of the last error, with reference cycles: freed 3.81 MiB of tensors\n"


# -- shown -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("everyone", [True, False])
def test_text_and_html_tell_the_same(notebook, everyone):  # noqa: F811
    notebook.run("train(1)")
    notebook.names["<img src=x>"] = torch.zeros(1_000_000)
    data = bundle(residents.look(notebook.names), everyone=everyone)
    for part in ("cpu now: ", "3.81 MiB", "Optimizer state", "optimizer", "model"):
        assert part in data["text/plain"]
        assert part in data["text/html"]
    assert "<img" not in data["text/html"]
    assert max(map(len, data["text/plain"].splitlines())) <= 80


def test_what_releases_a_holder_is_never_cut_off():
    long = Holding("the_traceback_of_the_error_" * 3, "traceback", "activations", 10 << 20, 145, "x in _forward_impl()")
    told = text(Resident("cpu", (long,)), Pen(80, True, False), everyone=True).splitlines()
    assert max(map(len, told)) <= 80
    assert told[-1].strip() == "→ %vram free --traceback"


def test_a_device_that_holds_next_to_nothing_is_only_mentioned():
    """The steps that an optimizer counts on the CPU, beside its state on the card."""
    card = Resident("cuda:0", (Holding("optimizer", "variable", "optimizer_state", 10 << 20, 4),))
    host = Resident("cpu", (Holding("optimizer", "variable", "optimizer_state", 644, 161),))
    data = bundle((card, host), everyone=False)
    for kind in ("text/plain", "text/html"):
        assert "besides: 644 B on cpu" in data[kind]
        assert "cpu now" not in data[kind]
    assert "cpu now" in bundle((host,), everyone=False)["text/plain"]


@pytest.mark.parametrize("everyone", [True, False])
def test_where_nothing_is_there_no_holders_are_announced(everyone):
    data = bundle((Resident("cpu", ()),), everyone=everyone)
    assert data["text/plain"] == "cpu now: 0 B in tensors"
    assert "<table" not in data["text/html"]


def test_more_holders_than_rows_are_counted(notebook):  # noqa: F811
    notebook.run("\n".join(f"v{i} = torch.zeros({1000 + i})" for i in range(20)))
    assert "more holders of" in bundle(residents.look(notebook.names), everyone=False)["text/plain"]

"""After `restore` everything is what it was, bit for bit and in place."""

from __future__ import annotations

import ast
import collections
import gc
import io
import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from ipyvram.code_names import top_level_names
from ipyvram.sweep.reachable import CannotRestore
from ipyvram.sweep.saved_state import SavedState
from tests.sweep_programs import OUTER_CELL, OUTER_SETUP, fingerprint


def space(setup: str = "") -> dict:
    namespace = {"__name__": "__main__", "torch": torch, "nn": nn, "np": np, "collections": collections, "io": io}
    exec(setup, namespace)
    return namespace


def save(namespace: dict, cell: str, **options) -> SavedState:
    read, replaced = top_level_names(ast.parse(cell))
    return SavedState(namespace, read, replaced, **options)


def test_a_whole_training_run_is_undone():
    namespace = space(OUTER_SETUP)
    before = fingerprint(namespace)
    saved = save(namespace, OUTER_CELL)
    exec(OUTER_CELL, namespace)
    assert fingerprint(namespace) != before
    saved.restore()
    assert fingerprint(namespace) == before


def test_a_graph_of_an_earlier_cell_can_still_run_backward():
    """It saved the weights, which a trial wrote to in place and which are as before."""
    namespace = space(
        "net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))\noptimizer = torch.optim.SGD(net.parameters(), 0.1)\n"
        "loss = net(torch.ones(2, 4)).sum()"
    )
    cell = "net(torch.ones(3, 4)).sum().backward()\noptimizer.step()"
    saved = save(namespace, cell)
    exec(cell, namespace)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        namespace["loss"].backward(retain_graph=True)
    saved.restore()
    namespace["loss"].backward()
    assert namespace["net"][0].weight.grad is not None


def test_it_can_be_undone_again_and_again():
    namespace = space(OUTER_SETUP)
    before = fingerprint(namespace)
    saved = save(namespace, OUTER_CELL)
    for _ in range(3):
        exec(OUTER_CELL, namespace)
        saved.restore()
    assert fingerprint(namespace) == before


@pytest.mark.parametrize(
    ("setup", "cell"),
    [
        ("x = torch.zeros(3)", "x += 1"),
        ("x = torch.zeros(3)", "x.data.add_(1)"),
        ("x = torch.zeros(3)\ny = x[1:]", "y.fill_(2)"),
        ("x = torch.arange(6).reshape(2, 3)", "x.t_(); x.resize_(1)"),
        ("x = torch.full((3,), float('nan'))", "x.zero_()"),
        ("x = torch.zeros(3, requires_grad=True)", "x.sum().backward()"),
        ("x = torch.zeros(3, requires_grad=True)\nx.sum().backward()", "x.grad = None"),
        ("x = torch.zeros(3, requires_grad=True)\nx.sum().backward()", "x.grad.add_(1)"),
        ("x = torch.zeros(3, requires_grad=True)\nx.sum().backward()\ng = x.grad", "x.grad = None; g"),
        ("x = torch.zeros(3)", "x.requires_grad_()"),
        ("x = torch.zeros(3)", "x.note = 1"),
        ("x = torch.eye(3).to_sparse()", "x.mul_(2)"),
        ("x = np.zeros(3)", "x += 1"),
        ("x = np.zeros(3); x.flags.writeable = False", "x"),
        ("x = np.array([[], None], dtype=object)", "x[0].append(1); x[1] = 3"),
        ("x = [1, [2]]", "x.append(3); x[1].clear()"),
        ("x = {'a': 1, 'b': {2}}", "x['b'].add(3); del x['a']; x['a'] = 1"),
        ("x = collections.OrderedDict(a=1, b=2)", "x.move_to_end('a'); x['c'] = 3"),
        ("x = collections.defaultdict(list)", "x['new'].append(1)"),
        ("x = collections.Counter('ab')", "x['a'] += 1"),
        ("x = collections.deque([1, 2], maxlen=2)", "x.append(3)"),
        ("x = bytearray(b'ab')", "x[0] = 0; x.append(1)"),
        ("x = io.StringIO('ab'); x.read(1)", "x.write('cdef'); x.seek(0)"),
        ("x = torch.Generator()", "torch.rand(3, generator=x)"),
        ("x = np.random.default_rng(1)", "x.normal()"),
        ("import random\nx = random.Random(1)", "x.random()"),
        ("class C:\n    count = 0\n    def __init__(self):\n        self.a = [1]\nx = C()", "x.a.append(2); x.b = 3; C.count += 1"),
        ("class C:\n    __slots__ = ('a', 'b')\nx = C(); x.a = 1", "x.a = 2; x.b = 3"),
        ("def f(seen=[]):\n    seen.append(1)", "f(); f.calls = 1"),
        ("def outer():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n        return n\n    return f\nf = outer()", "f()"),
        ("total = [0]\ndef f():\n    total[0] += 1", "f()"),
        ("n = 0\ndef f():\n    global n\n    n += 1", "f()"),
        ("model = nn.Linear(2, 2)", "model.half()"),
        ("model = nn.Linear(2, 2)", "model.weight = nn.Parameter(torch.ones(2, 2))"),
        ("model = nn.Linear(2, 2)", "model.extra = nn.Linear(1, 1); model.eval()"),
        ("model = nn.Linear(2, 2)", "nn.utils.parametrizations.weight_norm(model)"),
        ("model = nn.Linear(2, 2)", "model.register_forward_hook(print); model.weight.register_hook(print)"),
        ("a = nn.Linear(2, 2); b = nn.Linear(2, 2); b.weight = a.weight", "b.weight.data.mul_(2)"),
        ("x = 1", "x = 2; y = 3"),
        ("x = 1", "del x"),
    ],
)  # fmt: skip
def test_each_kind_of_change_is_undone(setup, cell):
    namespace = space(setup)
    before = fingerprint(namespace)
    saved = save(namespace, cell)
    exec(cell, namespace)
    saved.restore()
    namespace.pop("__builtins__", None)
    before["names"] = [n for n in before["names"] if n != "__builtins__"]
    assert fingerprint(namespace) == before


def test_the_counter_in_a_closure_goes_on_from_where_it_was():
    namespace = space(
        "def outer():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n        return n\n    return f\nf = outer()"
    )
    saved = save(namespace, "f()")
    assert namespace["f"]() == 1
    saved.restore()
    assert namespace["f"]() == 1


def test_a_graph_that_is_waiting_for_backward_still_runs():
    namespace = space("w = torch.ones(3, requires_grad=True)\nx = torch.ones(3)\nloss = (w * x).sum()")
    saved = save(namespace, "x.add_(1); w.data.add_(1); loss")
    exec("x.data.add_(1)", namespace)
    saved.restore()
    namespace["loss"].backward()
    assert namespace["w"].grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("setup", "says"),
    [
        ("it = iter([1, 2])", "it is an iterator"),
        ("it = (i for i in range(3))", "it is a generator"),
        ("it = enumerate([1])", "it is an iterator"),
        ("it = [zip([1], [2])]", r"it\[0\] is an iterator"),
        ("class Box: pass\nit = Box(); it.rows = iter([1])", r"it.rows is an iterator"),
        ("it = iter(torch.utils.data.DataLoader(range(4)))", "it is an iterator"),
        ("import os\nit = open(os.devnull, 'w')", "it is a file open for writing"),
        ("it = nn.LazyLinear(3)", r"it\.\w+ gets its shape from the first batch"),
        ("import socket\nit = socket.socket()", "it is connected"),
        ("def it():\n    return next(rows)\nrows = iter([1])", "rows is an iterator"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_back_is_refused_with_a_sentence(setup, says):
    namespace = space(setup)
    with pytest.raises(CannotRestore, match=says):
        save(namespace, "it")
    if hasattr(namespace["it"], "close"):
        namespace["it"].close()


def test_a_running_thread_is_refused():
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    try:
        with pytest.raises(CannotRestore, match="worker is running"):
            save(space() | {"worker": thread}, "worker")
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "setup",
    [
        "it = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4)), shuffle=True)",
        "import os\nit = open(os.devnull)\nit.close()",
        "import io\nit = io.BufferedReader(io.BytesIO(b'abc'))",
        "import sys\nit = sys.stdout",
        "import logging\nit = logging.getLogger('x')",
        "it = nn.TransformerEncoderLayer(8, 2, batch_first=True)",
        "it = torch.compile(nn.Linear(2, 2))",
        "import functools\nit = functools.partial(nn.functional.dropout, p=0.1)",
        "it = range(3)",
    ],
)
def test_what_can_be_put_back_is_not_refused(setup):
    namespace = space(setup)
    save(namespace, "it").restore()


def test_names_the_cell_does_not_read_may_hold_anything():
    save(space("it = iter([1])"), "it = 3; x = it")


def test_copies_that_do_not_fit_into_host_memory_are_refused(monkeypatch):
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    with pytest.raises(CannotRestore, match="made before it, which would have to be copied"):
        save(space("x = torch.zeros(1000)"), "x")


# -- memory ----------------------------------------------------------------------------------------------------------


def test_old_gradients_are_not_held():
    namespace = space("w = torch.zeros(3, requires_grad=True)\nw.sum().backward()")
    storage = weakref.ref(namespace["w"].grad.untyped_storage())
    saved = save(namespace, "w")
    namespace["w"].grad = None
    gc.collect()
    assert storage() is None
    saved.restore()
    assert namespace["w"].grad.tolist() == [1, 1, 1]


def test_a_gradient_somebody_holds_is_the_same_again():
    namespace = space("w = torch.zeros(3, requires_grad=True)\nw.sum().backward()\nheld = [w.grad]")
    saved = save(namespace, "w")
    exec("w.grad = None\nheld[0].add_(1)", namespace)
    saved.restore()
    assert namespace["w"].grad is namespace["held"][0]
    assert namespace["w"].grad.tolist() == [1, 1, 1]


def test_a_gradient_in_a_flat_buffer_stays_there():
    namespace = space("w = torch.zeros(3, requires_grad=True)\nflat = torch.ones(6)\nw.grad = flat[3:]")
    saved = save(namespace, "w")
    exec("w.grad = torch.full((3,), 7.)\nflat.zero_()", namespace)
    saved.restore()
    assert namespace["flat"].tolist() == [1] * 6
    namespace["w"].grad.add_(1)
    assert namespace["flat"].tolist() == [1, 1, 1, 2, 2, 2]


def test_what_the_cell_replaces_lends_its_memory_and_gets_it_back():
    setup = "model = nn.Linear(50, 50)\nmodel(torch.ones(1, 50)).sum().backward()\nother = torch.ones(4)"
    cell = "model = nn.Linear(50, 50)\nother.sum()"
    namespace = space(setup)
    before, old = fingerprint(namespace), namespace["model"]
    saved = save(namespace, cell, park=frozenset({"cpu"}))
    saved.park()
    assert old.weight.untyped_storage().nbytes() == 0
    assert old.weight.grad.untyped_storage().nbytes() == 0
    assert namespace["other"].untyped_storage().nbytes() == 16
    exec(cell, namespace)
    saved.restore()
    assert namespace["model"] is old
    assert fingerprint(namespace) == before


def test_nothing_is_lent_that_the_cell_reads_by_another_name():
    setup = "model = nn.Linear(5, 5)\noptimizer = torch.optim.SGD(model.parameters(), 0.1)"
    namespace = space(setup)
    saved = save(namespace, "model = nn.Linear(5, 5)\noptimizer.step()", park=frozenset({"cpu"}))
    saved.park()
    assert namespace["model"].weight.untyped_storage().nbytes() == 100


def test_the_cpu_lends_nothing_unless_asked():
    namespace = space("model = nn.Linear(5, 5)")
    save(namespace, "model = nn.Linear(5, 5)").park()
    assert namespace["model"].weight.untyped_storage().nbytes() == 100

"""Where a cell gets its batch size from."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.code_names import top_level_names
from ipyvram.sweep.binding import bind


def run(source, size, namespace=None, name="bs"):
    """The namespace after the cell has run with ``name`` bound to ``size``."""
    namespace = {} if namespace is None else namespace
    binding = bind(name, source, namespace)
    code = binding.code(size, lambda tree: compile(tree, "cell", "exec"))
    namespace.update(binding.namespace(size))
    exec(code, namespace)
    return namespace


@pytest.mark.parametrize(
    "source",
    [
        "bs = 32\nseen = bs",
        "bs: int = 32\nseen = bs",
        "bs, lr = 32, 1e-3\nseen = bs",
        "lr, (bs, k) = 1e-3, (32, 2)\nseen = bs",
        "[bs, *rest] = [32, 1, 2]\nseen = bs",
        "other = bs = 32\nseen = other",
        "if True:\n    bs = 32\nseen = bs",
        "for _ in range(2):\n    bs = 32\nseen = bs",
        "with open(__import__('os').devnull) as f:\n    bs = 32\nseen = bs",
        "print(bs := 32)\nseen = bs",
        "def f():\n    return bs\nbs = 32\nseen = f()",
        "bs = 16\nbs = 32\nseen = bs",
        "import math\nbs = int(math.sqrt(1024))\nseen = bs",
    ],
)
def test_the_cells_own_assignment_gives_the_size(source):
    assert run(source, 7)["seen"] == 7


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("bs = 32\nseen = bs", 32),
        ("bs: int = 32\nseen = bs", 32),
        ("bs: int\nseen = bs", None),
        ("bs, lr = 32, 1e-3\nseen = bs", None),
        ("bs = 2 * 16\nseen = bs", None),
        ("bs = True\nseen = bs", None),
        ("seen = bs", 5),
        ("seen = dict(bs=32)", 32),
        ("seen = dict(bs=-1)", None),
    ],
)
def test_the_cells_own_value_is_known_where_it_is_a_number(source, value):
    namespace = {"bs": 5} if "bs =" not in source and "bs:" not in source else {}
    assert bind("bs", source, namespace).value(namespace) == value


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_any_size_replaces_any_size(written, size):
    assert run(f"bs = {written}\nseen = bs", size)["seen"] == size


@pytest.mark.parametrize("source", ["seen = bs", "def f():\n    return bs\nseen = f()", "seen = [bs for _ in '1'][0]"])
def test_without_an_assignment_the_namespace_holds_the_size(source):
    assert run(source, 7, {"bs": 32})["seen"] == 7
    assert run(source, 7, {})["seen"] == 7


@pytest.mark.parametrize(
    "source",
    [
        "seen = dict(bs=32)['bs']",
        "seen = dict(dict(bs=32), bs=64)['bs']",
        "def f():\n    return dict(bs=2 * 16)\nseen = f()['bs']",
        "def f(bs):\n    return bs\nseen = f(bs=32)",
    ],
)
def test_a_name_that_is_no_variable_is_the_argument_of_calls(source):
    assert run(source, 7)["seen"] == 7


def test_a_variable_comes_before_an_argument_of_its_name():
    assert run("bs = 32\nseen = dict(bs=2 * bs)['bs']", 7)["seen"] == 14


def test_functions_of_earlier_cells_read_their_globals():
    namespace = {}
    exec("def inner():\n    return bs\ndef outer():\n    return (lambda: inner())()\nbs = 32", namespace)
    assert run("seen = outer()", 7, namespace)["seen"] == 7


def test_methods_of_earlier_cells_read_their_globals():
    namespace = {"__name__": "__main__"}
    exec("class Trainer:\n    def fit(self):\n        return bs\ntrainer = Trainer()", namespace)
    assert run("seen = trainer.fit()", 7, namespace)["seen"] == 7


def test_what_follows_the_assignment_still_runs_on_it():
    assert run("bs = 32\nbs *= 2\nseen = bs", 7)["seen"] == 14


def test_a_function_local_of_that_name_is_left_alone():
    source = "bs = 32\ndef f():\n    bs = 1\n    return bs\nseen = bs, f()"
    assert run(source, 7)["seen"] == (7, 1)


def test_lines_stay_where_they_were():
    binding = bind("bs", "\n\nbs, k = 1, 2\nraise KeyError", {})
    code = binding.code(8, lambda tree: compile(tree, "cell", "exec"))
    with pytest.raises(KeyError) as caught:
        exec(code, {})
    assert caught.tb.tb_next.tb_lineno == 4


def test_the_cell_itself_is_not_changed():
    binding = bind("bs", "bs = 32", {})
    before = ast.dump(binding.tree)
    binding.module(8)
    assert ast.dump(binding.tree) == before


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1", "bs is used nowhere in this cell"),
        ("def f(bs):\n    return bs\nf(3)", r"outside f\(\), where it is local"),
        ("def f():\n    bs = 3\n    return bs\nf()", r"outside f\(\), where it is local"),
        ("x = (", "the cell cannot be read"),
        ("bs = 3\nawait f(bs)", "awaits at its top level"),
        ("x.bs = 3", "used nowhere"),
    ],
)
def test_what_cannot_be_bound_is_refused(source, says):
    with pytest.raises(ValueError, match=says):
        bind("bs", source, {"x": 1})


def test_a_function_of_another_module_does_not_count():
    namespace = {"loads": __import__("json").loads}
    with pytest.raises(ValueError, match="used nowhere"):
        bind("JSONDecoder", "loads('1')", namespace)


@pytest.mark.parametrize(
    ("source", "read", "bound"),
    [
        ("model = Net()\nmodel.train()", {"Net"}, {"model"}),
        ("model.train()\nmodel = Net()", {"Net", "model"}, set()),
        ("total += loss", {"total", "loss"}, set()),
        ("if x:\n    model = Net()\nmodel()", {"x", "Net", "model"}, set()),
        ("for i, b in loader:\n    loss = f(b)\nprint(loss, i)", {"loader", "f", "print"}, {"i", "b", "loss"}),
        ("def f():\n    return model\nmodel = f()", {"model"}, {"f"}),
        ("import torch.nn as nn, os.path\nm = nn.Linear()", set(), {"nn", "os", "m"}),
        ("model = wrap(model)", {"wrap", "model"}, set()),
    ],
)
def test_names_read_and_names_bound_before_any_read(source, read, bound):
    found_read, found_bound = top_level_names(ast.parse(source))
    assert found_bound == bound
    assert found_read == read

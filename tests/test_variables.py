"""Variables of running functions: found where they are, and not kept alive by being looked at."""

from __future__ import annotations

import sys
import weakref

import torch
from torch.utils.data import DataLoader

from ipyvram.probes.variables import Variables


def look(reader, wanted=None):
    """As a hook does: from a frame of its own."""
    return reader.all() if wanted is None else reader.some(wanted)


def codes(found, *names):
    """The codes that hold variables of these names."""
    return {code: names for code, name in found if name in names}


def test_every_function_that_runs_is_seen_outermost_first():
    def inner(y):
        return look(Variables())

    def outer(x, _hidden):
        return inner(x + 1)

    found = outer(1, 2)
    names = [name for _, name in found]
    assert names.index("x") < names.index("y")
    assert "_hidden" not in names
    assert found[id(outer.__code__), "x"] == 1
    assert found[id(inner.__code__), "y"] == 2


def test_some_reads_only_what_is_wanted():
    reader = Variables()

    def running(x, y):
        return look(reader), look(reader, {id(running.__code__): ("y", "gone")})

    everything, some = running(1, 2)
    assert everything[id(running.__code__), "x"] == 1
    assert some == {(id(running.__code__), "y"): 2}


def test_a_comprehension_whose_variable_is_a_closures_elsewhere():
    """Some versions of Python end the process when that is read: there it is left out."""

    def running(sizes):
        found = [look(Variables()) for size in sizes]
        return found, [max(size for _ in range(1)) for size in sizes]

    found, _ = running((3**99, 5**99))
    assert [len(variables[id(running.__code__), "sizes"]) for variables in found] == [2, 2]


def test_of_a_recursion_the_innermost_counts():
    reader = Variables()

    def down(n):
        return down(n - 1) if n else look(reader)

    assert down(3)[id(down.__code__), "n"] == 0


def test_global_variables_are_those_of_the_module_that_runs():
    scope = {"look": look, "reader": Variables(), "batch": 5, "__name__": "cell"}
    exec(compile("found = look(reader)", "<ipython-input-1>", "exec"), scope)
    assert 5 in [value for (_, name), value in scope["found"].items() if name == "batch"]
    assert scope["batch"] == 5


def test_neither_torch_nor_we_are_looked_into():
    reader, found = Variables(), []

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            found.append(look(reader))
            return index

    list(DataLoader(Data()))
    assert "index" in {name for _, name in found[0]}
    assert not {"possibly_batched_index", "data", "auto_collation"} & {name for _, name in found[0]}


def test_a_batch_ends_when_the_program_lets_it_go():
    reader = Variables()

    def loop():  # without an assertion: pytest would put `locals()` here
        alive, seen = [], []
        wanted = None
        for step in range(4):
            x = torch.zeros(3)
            reference = weakref.ref(x)
            found = look(reader, wanted)
            seen.append(id(x) in map(id, found.values()))
            wanted = codes(found, "x") if step else None
            del x, found
            alive.append(reference() is not None)
        return alive, seen

    assert loop() == ([False] * 4, [True] * 4)


def test_a_function_that_asks_for_its_own_variables_gets_them():
    reader = Variables()

    def running(x):
        mine = locals()
        found = look(reader)
        return mine, found

    mine, found = running(7)
    assert mine["x"] == 7
    assert (id(running.__code__), "x") not in found


def test_below_a_debugger_the_program_keeps_its_variables():
    """Before 3.13 the copy of a function's variables is written back after each event of a trace function."""
    reader, found = Variables(), []

    def running():
        x = 7
        y = x + 1
        return x, y

    def debugger(frame, event, argument):
        if frame.f_code is running.__code__:
            found.append(look(reader))
            return debugger
        return None

    before = sys.gettrace()
    sys.settrace(debugger)
    try:
        result = running()
    finally:
        sys.settrace(before)
    assert result == (7, 8)
    assert len(found) >= 3

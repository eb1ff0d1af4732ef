"""Only the user's frames, innermost first, each place built once."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

from ipyvram.probes.stacks import Interner, StackReader, is_user_file


def run(source: str, filename: str, **names):
    """Execute code as if it stood in ``filename``."""
    exec(compile(source, filename, "exec"), names)
    return names


def test_frames_of_a_cell_and_its_helpers():
    stacks = Interner()
    reader = StackReader(stacks)
    helper = run("def helper(f):\n    return f()\n", "/home/me/helpers.py")["helper"]
    index = run(
        "def train():\n    return helper(reader)\n\nindex = train()\n",
        "<ipython-input-3-abc>",
        helper=helper,
        reader=reader,
    )["index"]
    found = [(frame.file, frame.line, frame.function) for frame in stacks.values()[index]]
    assert found[:3] == [
        ("/home/me/helpers.py", 2, "helper"),
        ("<ipython-input-3-abc>", 2, "train"),
        ("<ipython-input-3-abc>", 4, "<module>"),
    ]


def test_equal_places_share_an_index_and_lines_do_not():
    stacks = Interner()
    reader = StackReader(stacks)
    names = run("found = [reader() for _ in range(3)]\nother = reader()\n", "<ipython-input-1-x>", reader=reader)
    assert len(set(names["found"])) == 1
    assert names["other"] != names["found"][0]


def test_a_deep_recursion_is_cut():
    stacks = Interner()
    reader = StackReader(stacks)
    index = run(
        "def f(n):\n    return f(n - 1) if n else reader()\nindex = f(50)\n", "<ipython-input-1-y>", reader=reader
    )["index"]
    assert len(stacks.values()[index]) == 8


def test_an_anchored_stack_is_the_same_and_none_outlives_its_phase():
    """A frame that ended is not taken for one that has its place: the caller is another line then."""
    stacks = Interner()
    anchored, plain = StackReader(stacks), StackReader(stacks)
    torch_code = "def step(begin, end, body):\n    begin()\n    found = body()\n    end()\n    return found\n"
    step = run(torch_code, threading_file())["step"]
    user = (
        "def inner():\n    return read(), read()\n"
        "def body():\n    return inner() + inner()\n"
        "found = []\n"
        "for _ in range(2):\n"
        "    found += step(begin, end, body)\n"
        "    found += step(nothing, nothing, body)\n"
        "found += [read() for read in (anchored, plain)]\n"
    )
    names = {"step": step, "begin": anchored.anchor, "end": anchored.release, "nothing": int}
    found = run(
        user, "<ipython-input-1-z>", **names, read=lambda: (anchored(), plain()), anchored=anchored, plain=plain
    )
    pairs = found["found"][:-2]
    assert len(pairs) == 16
    assert all(a == b >= 0 for a, b in pairs)
    assert found["found"][-1] == found["found"][-2]


def test_where_nothing_is_the_users_there_is_no_stack():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(StackReader(Interner())).result() == -1


def test_installed_and_generated_code_is_not_the_users():
    import numpy
    import torch

    import ipyvram.run

    assert is_user_file("/home/me/train.py")
    assert is_user_file("<ipython-input-1-abc>")
    assert is_user_file("<timed exec>")
    for foreign in (
        torch.__file__,
        numpy.__file__,
        ipyvram.run.__file__,
        threading_file(),
        "<string>",
        "<frozen importlib>",
        "methodobject.c",
        "./nptl/pthread_create.c",
        "/pytorch/c10/cuda/CUDACachingAllocator.cpp",
    ):
        assert not is_user_file(foreign), foreign


def threading_file() -> str:
    import threading

    return threading.__file__


class Kept:
    """Stands for a tensor among the caller's variables."""


def test_with_fewer_callers_than_expected_there_is_no_stack_and_no_cycle_keeps_what_they_hold():
    def caller() -> weakref.ref[Kept]:
        held = Kept()
        assert StackReader(Interner())(above=10_000) == -1
        return weakref.ref(held)

    gc.disable()
    try:
        assert caller()() is None
    finally:
        gc.enable()

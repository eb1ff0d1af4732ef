"""Which cell a thread is running, also where its end is announced late, otherwise or not at all."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from ipyvram.running_cells import RunningCells


def info(text: str = "x = 1") -> SimpleNamespace:
    return SimpleNamespace(raw_cell=text)


@pytest.fixture
def cells():
    return RunningCells()


def test_cells_inside_a_cell_end_first(cells):
    outer, inner = info(), info()
    cells.begin(outer)
    cells.begin(inner)
    assert cells.innermost() is inner
    assert cells.end(inner) is inner
    assert cells.innermost() is outer
    assert cells.end(outer) is outer
    assert cells.innermost() is None


def test_equal_cells_are_told_apart(cells):
    first, second = info(), info()
    cells.begin(first)
    assert first in cells
    assert second not in cells


@pytest.mark.parametrize(("told", "ended"), [(None, True), (info("same"), True), (info("another"), False)])
def test_an_end_with_another_info_or_none_is_of_the_innermost_with_this_text(cells, told, ended):
    outer, inner = info("same"), info("same")
    cells.begin(outer)
    cells.begin(inner)
    assert cells.end(told) is (inner if ended else None)
    assert outer in cells


def test_what_ran_inside_a_cell_that_ended_has_ended_too(cells):
    outer, inner = info(), info()
    cells.begin(outer)
    cells.begin(inner)
    assert cells.end(outer) is outer
    assert inner not in cells
    assert cells.end(inner) is None


def test_each_thread_has_its_own(cells):
    mine, others = info(), info("y = 2")
    cells.begin(mine)
    thread = threading.Thread(target=lambda: cells.begin(others))
    thread.start()
    thread.join()
    assert cells.innermost() is mine
    assert others in cells
    assert cells.end(others) is None
    assert cells.end(mine) is mine
    assert others in cells

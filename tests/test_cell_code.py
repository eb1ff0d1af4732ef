"""Code made from a cell's text: its lines are those of the cell."""

from __future__ import annotations

import inspect
import traceback

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ipyvram.cell_code import from_cell, python_of, statements, statements_and_value


@pytest.fixture
def ip():
    return InteractiveShell()


@pytest.mark.parametrize(("raw_cell", "line"), [(None, 2), ("%%vram --estimate\nx = 1\n1 / 0", 3)])
def test_lines_are_those_of_the_cell_as_it_stands(ip, raw_cell, line):
    source, text, name = python_of(ip, "x = 1\n1 / 0", raw_cell)
    assert text == source.removesuffix("\n")
    with pytest.raises(ZeroDivisionError) as raised:
        exec(statements(ip, source, name), {})
    (frame,) = traceback.extract_tb(from_cell(name, raised.value))
    assert (frame.filename, frame.lineno) == (name, line)


def test_a_cell_that_awaits_is_a_coroutine(ip):
    flags = [statements(ip, source, "<cell>").co_flags & inspect.CO_COROUTINE for source in ("await x", "x")]
    assert flags == [inspect.CO_COROUTINE, 0]


@pytest.mark.parametrize(("text", "value"), [("x = 2\nx + 1", 3), ("x = 2", None), ("2;", 2)])
def test_the_last_expression_is_the_value(ip, text, value):
    code, last = statements_and_value(ip, text)
    namespace = {}
    exec(code, namespace)
    assert (eval(last, namespace) if last is not None else None) == value


def test_an_error_from_elsewhere_keeps_its_whole_traceback():
    with pytest.raises(ZeroDivisionError) as raised:
        _ = 1 / 0
    assert from_cell("<no such cell>", raised.value) is raised.value.__traceback__

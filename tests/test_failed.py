"""Errors that ended cells: found without looking at every object, once the shell tells."""

from __future__ import annotations

import gc
import sys

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ipyvram.probes import failed, roots


@pytest.fixture
def shell():
    made = InteractiveShell()
    made.events.register("post_run_cell", failed.cell_ended)
    yield made
    failed.listen(told=False)
    for name in ("last_exc", "last_value", "last_traceback", "last_type"):
        if hasattr(sys, name):
            delattr(sys, name)


def raised(shell, name):
    """A cell fails with an error that holds a list of this name."""
    result = shell.run_cell(f"def {name}():\n    held = ['{name}']\n    raise ValueError('{name}')\n{name}()")
    assert isinstance(result.error_in_exec, ValueError)


@pytest.fixture(autouse=True)
def uncollected():
    """An error that nothing but a cycle holds is there until Python's collector runs, which may be at any time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept(shell):
    return [str(error) for _, error in roots.all_errors(shell.user_ns) if isinstance(error, ValueError)]


def test_an_error_before_the_last_is_found_whether_the_shell_told_of_it_or_not(shell, capsys):
    raised(shell, "before_loading")
    failed.listen(told=True)
    raised(shell, "first")
    raised(shell, "second")
    assert set(kept(shell)) >= {"before_loading", "first", "second"}


def test_where_the_shell_tells_all_objects_are_looked_at_once(shell, capsys, monkeypatch):
    failed.listen(told=True)
    raised(shell, "first")
    looks = []
    everything = gc.get_objects
    monkeypatch.setattr(gc, "get_objects", lambda: looks.append(1) or everything())
    for name in ("second", "third"):
        assert "first" in kept(shell)
        raised(shell, name)
    assert set(kept(shell)) >= {"first", "second", "third"}
    assert len(looks) == 1


def test_what_the_collector_took_is_found_no_more(shell, capsys):
    failed.listen(told=True)
    raised(shell, "first")
    raised(shell, "second")
    roots.forget_errors(shell.user_ns)
    shell.last_execution_result = None
    gc.collect()
    raised(shell, "third")
    assert "first" not in kept(shell)

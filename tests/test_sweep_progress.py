"""One line that says how far it is."""

from __future__ import annotations

import io
import sys

from ipyvram.sweep.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_notebook_one_display_is_updated():
    calls = []
    line = ProgressLine(
        lambda data, **more: calls.append((data["text/plain"], more["update"], more["transient"]["display_id"]))
    )
    for text in ("one", "one", "two", ""):
        line(text)
    assert [(text, update) for text, update, _ in calls] == [("one", False), ("two", True), ("", True)]
    assert len({name for _, _, name in calls}) == 1


def test_a_line_that_was_never_shown_is_not_taken_away():
    calls = []
    ProgressLine(lambda *args, **more: calls.append(args))("")
    assert calls == []


def test_in_a_terminal_one_line_is_written_over(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    line = ProgressLine()
    line("one")
    line("two")
    line("")
    assert terminal.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_elsewhere_nothing_is_written(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    ProgressLine()("one")
    assert pipe.getvalue() == ""

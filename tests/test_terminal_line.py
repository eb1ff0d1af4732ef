"""A line that is rewritten in a terminal, beside what the cell writes there: the screen is computed as a terminal would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.render.terminal_line import TerminalLine


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines of a terminal after it was sent this; carriage return and erase are all that is used."""
    lines, column = [""], 0
    for erase, character in re.findall(r"(\x1b\[K)|([\s\S])", written):
        if erase:
            lines[-1] = lines[-1][:column]
        elif character == "\r":
            column = 0
        elif character == "\n":
            lines, column = [*lines, ""], 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@contextlib.contextmanager
def one_terminal(name: str = "xterm") -> Iterator[Terminal]:
    """Standard output and standard error are one terminal (within a test: pytest sets its own streams before it)."""
    both = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", both)
        patch.setattr(sys, "stdout", both)
        patch.setenv("TERM", name)
        yield both


SHOW = "show"
EVENTS = st.lists(
    st.one_of(st.just(SHOW), st.sampled_from(["a", "line\n", "\r50 %", "two\nlines\n", "", "open\nend"])), max_size=16
)


@given(EVENTS, st.booleans())
def test_what_the_cell_prints_is_on_the_screen_as_without_the_line(events, dumb):
    alone = ""
    with one_terminal("dumb" if dumb else "xterm") as both:
        line = TerminalLine()
        for event in events:
            if event == SHOW:
                line.show("meter")
                whole = alone == "" or alone.endswith("\n")
                assert screen(both.getvalue()) == screen(alone + ("meter" if whole else ""))
            else:
                print(event, end="")
                alone += event
        line.close()
        assert screen(both.getvalue()) == screen(alone)
        assert dumb <= ("\x1b" not in both.getvalue())
        assert "write" not in vars(both)


def test_it_comes_back_when_the_cells_line_has_ended():
    with one_terminal() as terminal:
        line = TerminalLine()
        print("working", end="")
        line.show("meter")
        assert screen(terminal.getvalue()) == ["working"]
        print(" done")
        line.show("meter")
        assert screen(terminal.getvalue()) == ["working done", "meter"]
        line.close()


def test_a_forked_child_writes_straight_on():
    with one_terminal() as terminal:
        line = TerminalLine()
        line.show("meter")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            print("child")
        assert terminal.getvalue().endswith("meterchild\n")
        line.close()


def test_a_stream_that_takes_no_attribute_and_one_that_is_no_terminal_are_left_alone():
    class Slotted:
        __slots__ = ("written",)

        def __init__(self):
            self.written = ""

        def isatty(self):
            return True

        def write(self, text):
            self.written += text

        def flush(self):
            pass

    stream, piped = Slotted(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setattr(sys, "stdout", piped)
        line = TerminalLine()
        line.show("meter")
        print("into a file")
        line.close()
    assert screen(stream.written) == [""]
    assert piped.getvalue() == "into a file\n"


def test_who_writes_in_our_place_meanwhile_stays():
    with one_terminal() as terminal:
        line = TerminalLine()
        ours = terminal.write
        terminal.write = mine = lambda text: ours(text)
        line.close()
        assert terminal.write is mine
        print("on")
        assert terminal.getvalue().endswith("on\n")

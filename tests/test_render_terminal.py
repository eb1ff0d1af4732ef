"""What the terminal is taken to show."""

from __future__ import annotations

import io
import sys

import pytest

from ipyvram.render.terminal import encodes, looks


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Ascii(Terminal):
    encoding = "ascii"


@pytest.fixture
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def test_a_terminal_has_its_width_and_colour(plain_environment, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert looks() == {"width": 100, "unicode": True, "colour": True}


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colour_gets_none(plain_environment, monkeypatch, name, value):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv(name, value)
    assert looks()["colour"] is False


def test_a_terminal_without_unicode(plain_environment, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Ascii())
    assert looks()["unicode"] is False


@pytest.mark.parametrize("columns", ["10", "1000"])
def test_the_width_has_bounds(plain_environment, monkeypatch, columns):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", columns)
    assert 40 <= looks()["width"] <= 120


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_what_is_no_terminal_gets_eighty_columns_without_colour(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    assert looks() == {"width": 80, "unicode": True, "colour": False}


def test_encodings():
    assert encodes("utf-8")
    assert not encodes("latin-1")
    assert not encodes("no such thing")
    assert not encodes(None)

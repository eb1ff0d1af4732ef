"""The report in a real terminal IPython, through a pseudo-terminal: as wide as the terminal, in what it can show."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from ipyvram.render.columns import display_width
from tests import kernels
from tests.conftest import ROOT
from tests.test_terminal_line import screen

SESSION = """\
%load_ext ipyvram
get_ipython().run_cell('''%%vram größer --note "a first try"
import torch
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(64, 256)).square().mean().backward()
    optimizer.step()
''')
import fcntl, os, struct, sys, termios
import ipyvram
def show(name, columns=80, encoding="utf-8", **environment):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    sys.stdout.reconfigure(encoding=encoding)
    before = dict(os.environ)
    os.environ.update(environment)
    print("== " + name)
    display(ipyvram.last)
    os.environ.clear()
    os.environ.update(before)
for columns in (60, 80, 100, 120, 200): show(str(columns), columns)
show("no colour", NO_COLOR="1")
show("dumb", TERM="dumb")
show("ascii", encoding="ascii")
show("ascii without colour", encoding="ascii", NO_COLOR="1")
"""


def in_terminal(python: str, script: str, directory) -> str:
    """Everything that a session writes to its terminal."""
    path = directory / "session.ipy"
    path.write_text(script, encoding="utf-8")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    unwanted = {"COLUMNS", "LINES", "NO_COLOR", "PYTHONIOENCODING"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted} | {
        "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(directory), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color",
        "PYTHONUTF8": "1",
    }  # fmt: skip
    command = [python, "-m", "IPython", "--no-banner", "--simple-prompt", str(path)]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env, close_fds=True):
        os.close(slave)
        written = kernels.until_closed(master)
    os.close(master)
    return written.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module", params=list(kernels.PYTHONS))
def shown(request, tmp_path_factory) -> dict[str, str]:
    """Name of each display → what the terminal got."""
    if not kernels.PYTHONS[request.param]:
        pytest.skip("IPYVRAM_FLOOR_PYTHON does not name a python with IPython 7.34")
    written = in_terminal(kernels.PYTHONS[request.param], SESSION, tmp_path_factory.mktemp("terminal"))
    first, *parts = written.split("== ")
    assert "Peak" in first, written
    named = dict(
        re.sub(r"\x1b\[2[23];0t", "", part).split("\n", 1) for part in parts
    )  # IPython's, of its window's title
    return named | {"the cell's own": first}


def words(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


pytestmark = pytest.mark.kernel


def test_under_the_cell_it_stands_once_and_the_meter_is_gone(shown):
    own = shown["the cell's own"]
    assert own.count("How it was measured") == 1
    assert "cpu process" not in own.rpartition("\x1b[K")[2]


@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal_and_the_bar_is_as_wide(shown, columns):
    lines = words(shown[str(columns)]).splitlines()
    assert max(map(display_width, lines)) == columns
    assert any(line.startswith("[█") and display_width(line) == columns for line in lines)
    assert "größer · CPU" in lines[0]


def test_a_very_wide_terminal_is_not_filled(shown):
    assert max(map(display_width, words(shown["200"]).splitlines())) <= 120


@pytest.mark.parametrize("name", ["no colour", "dumb"])
def test_where_there_is_no_colour_there_are_letters_and_no_escape_codes(shown, name):
    assert "\x1b" not in shown[name]
    assert "[PPP" in shown[name]
    assert "│PPP" in shown[name] or "│ P" in shown[name]


def test_without_unicode_it_is_ascii_and_as_complete(shown):
    assert shown["ascii without colour"].isascii()
    assert words(shown["ascii"]).split() == shown["ascii without colour"].split()
    assert "\x1b[38;2;" in shown["ascii"]
    for heading in (
        "Largest tensors at the peak",
        "By module at the peak",
        "By line at the peak",
        "How it was measured",
    ):
        assert heading in shown["ascii without colour"]


PRINTING = """\
%load_ext ipyvram
get_ipython().run_cell('''%%vram printing
import time
from tqdm import tqdm
for i in range(8):
    print("line", i)
    time.sleep(0.35)
for i in tqdm(range(5)):
    time.sleep(0.35)
print("end")
''')
"""


@pytest.mark.parametrize("name", kernels.PYTHONS)
def test_what_the_cell_prints_is_whole_on_the_screen(name, tmp_path):
    if not kernels.PYTHONS[name]:
        pytest.skip("IPYVRAM_FLOOR_PYTHON does not name a python with IPython 7.34")
    pytest.importorskip("tqdm")
    written = re.sub(
        r"\x1b\][^\x07]*\x07|\x1b\[2[23];0t|\x1b\[[0-9;]*m", "", in_terminal(kernels.PYTHONS[name], PRINTING, tmp_path)
    )
    assert written.count("printing · ") >= 5  # it was there, between the lines, and in the report
    lines = screen(written)
    first = lines.index("line 0")
    assert lines[first : first + 8] == [f"line {i}" for i in range(8)]
    assert "5/5" in lines[first + 8]
    assert lines[first + 9] == "end"
    assert lines[first + 10].startswith("printing · CPU · ")
    assert "cpu process" not in "".join(lines)

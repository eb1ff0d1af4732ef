"""The directive as a pure function on lines: the same number of lines, and a cell that Python reads as before."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.directive import find, make_transform, measured_source


def cell_magic(lines: list[str]) -> list[str]:
    """IPython's own transformer, in its shape: one line that calls the magic with the rest as text."""
    name, _, arguments = lines[0][2:].strip().partition(" ")
    return [f"get_ipython().run_cell_magic({name!r}, {arguments!r}, {''.join(lines[1:])!r})\n"]


transform = make_transform(cell_magic)


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("cell", "arguments"),
    [
        ("%%vram\nx\n", ""),
        ("%vram\nx\n", ""),
        ("%%vram label --limit 80%\nx\n", "label --limit 80%"),
        ("\n# a comment\n%%vram a\nx\n", "a"),
    ],
)
def test_a_head_is_found(cell, arguments):
    found = find(lines_of(cell))
    assert found is not None
    assert found[1] == arguments


@pytest.mark.parametrize(
    "cell", ["", "x = 1\n", "%%vramx\ny\n", "%%vram?\ny\n", "%vram last\n", "%%vram\n\n", "x\n%%vram\ny\n", " %vram\nx"]
)
def test_what_is_no_head_stays_untouched(cell):
    assert transform(lines_of(cell)) == lines_of(cell)


def test_the_call_stands_in_the_heads_line():
    result = transform(lines_of("%%vram it's --limit 80%\nx = 1\nx\n"))
    assert len(result) == 3
    call = ast.parse(result[0]).body[0].value
    assert [ast.literal_eval(argument) for argument in call.args] == ["vram", "%% it's --limit 80%"]
    assert result[1:] == ["x = 1\n", "x\n"]


def test_another_cell_magic_below_is_given_the_rest():
    result = transform(lines_of("%%vram\n%%time\nx\n"))
    assert result[0].startswith("get_ipython().run_line_magic('vram'")
    assert result[1] == "get_ipython().run_cell_magic('time', '', 'x\\n')\n"


def test_future_imports_stay_first():
    text = "".join(transform(lines_of('%%vram\n"""Doc."""\nfrom __future__ import annotations\nx = 1\n')))
    compile(text, "cell", "exec")
    assert text.splitlines()[3] == "x = 1"
    assert "run_line_magic" in text.splitlines()[2]


def test_asking_for_help_leaves_the_body_out():
    result = transform(lines_of("%%vram -h\nboom()\n"))
    assert "boom" not in "".join(result)
    assert len(result) == 2


def test_help_needs_no_body():
    """Else IPython says that the body of ``%%vram -h`` is empty."""
    for line in ("%%vram -h\n", "%%vram --help"):
        (result,) = transform(lines_of(line))
        assert result.rstrip() == f"get_ipython().run_line_magic('vram', '%% {line.split()[1]}')"
    assert transform(lines_of("%%vram label\n")) == lines_of("%%vram label\n")


def test_the_measured_source_begins_with_the_line_that_frames_call_1():
    assert measured_source("\n\n%%vram\nx\n") == "%%vram\nx\n"
    assert measured_source("%%time\n%%vram\nx\n") == "%%vram\nx\n"
    assert measured_source("x\n") == "x\n"


SOURCES = st.lists(
    st.sampled_from(["x = 1", "", "# c", "def f():", "    return 2", "y = f'{3}'"]), min_size=1, max_size=8
)


@given(SOURCES, st.text(alphabet="ab c'\"%-é", max_size=12))
def test_line_numbers_never_move(body, arguments):
    lines = [f"%%vram {arguments}\n", *(line + "\n" for line in body)]
    result = transform(lines)
    assert len("".join(result).splitlines()) == len(lines)
    if find(lines) is not None:
        assert result[1:] == lines[1:]
        ast.parse(result[0])

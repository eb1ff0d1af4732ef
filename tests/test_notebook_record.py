"""The saved notebook is the record: a real notebook is run, and its reports survive what people do with notebooks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ipyvram.headless import execute
from ipyvram.notebooks import read_notebook, read_notebooks
from tests.made import cell, notebook

pytestmark = pytest.mark.kernel

ROOT = str(Path(__file__).resolve().parents[1])
CELLS = (
    f"import sys; sys.path.insert(0, {ROOT!r})\n%load_ext ipyvram",
    "import torch\nmodel = torch.nn.Linear(64, 64)\noptimizer = torch.optim.Adam(model.parameters())",
    "%%vram first --note before\nfor _ in range(3):\n    model(torch.randn(8, 64)).sum().backward()\n    optimizer.step()",
    "%%vram <script>alert(1)</script>\nx = torch.zeros(1000)",
    "%vram last",
    "%vram note after all",
    "%vram compare 1 2",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return notebook(tmp_path_factory.mktemp("source") / "cells.ipynb", *(cell(source=text) for text in CELLS))


@pytest.fixture(scope="module")
def executed(source, tmp_path_factory):
    done = execute(source, tmp_path_factory.mktemp("executed"))
    assert done.error is None
    return done


def labels(path) -> list[str]:
    return [report.label for report in read_notebook(path)]


def test_reports_come_back_once_each_with_their_last_note(executed):
    first, second = read_notebook(executed.notebook)
    assert (first.label, first.note, first.steps) == ("first", "before", 3)
    assert second.note == "after all"
    assert second.label == "<script>alert(1)</script>"
    assert sum(first.peak.values()) == first.peak_bytes
    assert read_notebooks(executed.notebook, executed.notebook).shape[0] == 4


def test_nbconvert_to_notebook_keeps_them(executed, tmp_path):
    convert("notebook", executed.notebook, tmp_path / "again.ipynb")
    assert read_notebook(tmp_path / "again.ipynb") == read_notebook(executed.notebook)


@pytest.mark.parametrize("form", ["html", "markdown", "script"])
def test_nbconvert_to_other_forms(executed, tmp_path, form):
    text = convert(form, executed.notebook, tmp_path / "out")
    assert ("Peak" in text) is (form != "script")
    if form == "html":
        assert "data:image/svg+xml;base64," in text
        assert "<script>alert(1)" not in text


def convert(form: str, path: Path, target: Path) -> str:
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", form, str(path), "--output", str(target), "--log-level", "ERROR"],
        check=True,
        capture_output=True,
    )
    return next(p for p in target.parent.iterdir() if p.stem == target.stem).read_text(encoding="utf-8")


def test_nbclient_runs_it_again_in_place(executed, tmp_path):
    again = execute(executed.notebook, tmp_path)
    assert again.error is None
    assert labels(again.notebook) == labels(executed.notebook)


def test_papermill_runs_it(source, tmp_path):
    papermill = pytest.importorskip("papermill")
    manager = {"kernel_name": "python3"}
    try:
        papermill.execute_notebook(str(source), str(tmp_path / "out.ipynb"), progress_bar=False, **manager)
    except Exception as error:
        if "NoSuchKernel" in type(error).__name__:
            pytest.skip("no kernel is registered here")
        raise
    assert labels(tmp_path / "out.ipynb") == ["first", "<script>alert(1)</script>"]


def test_reports_are_written_with_stable_keys(executed):
    """Git shows what changed and not how a dictionary was filled."""
    found = [
        data
        for one in json.loads(executed.notebook.read_text())["cells"]
        for output in one.get("outputs", ())
        for kind, data in output.get("data", {}).items()
        if kind.startswith("application/vnd.ipyvram.report")
    ]
    assert len(found) == 4
    assert len({tuple(data) for data in found}) == 1
    # Shown twice, it is the same but for the note.
    assert {k: v for k, v in found[1].items() if k != "note"} == {k: v for k, v in found[3].items() if k != "note"}
    assert len(json.dumps(found[0])) <= 60_000


def test_the_text_of_every_output_went_to_the_terminal(source, tmp_path, capsys):
    assert execute(source, tmp_path).error is None
    out = capsys.readouterr().out
    assert out.index("[3/7]") < out.index("[4/7]") < out.index("[7/7]")
    assert "Peak against first" in out

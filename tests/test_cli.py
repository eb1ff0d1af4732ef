"""``python -m ipyvram``: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json

import pytest

from ipyvram import headless
from ipyvram.cli import main
from tests.made import cell, notebook, output, report


@pytest.fixture
def runs(tmp_path):
    """A notebook with two reports and a damaged one."""
    good = [cell(output(report(label=label, steps=3).to_dict())) for label in ("bs32", "bs64")]
    return notebook(tmp_path / "runs.ipynb", *good, cell(output({"schema": 1})))


def test_show_prints_one_line_a_report_and_names_what_it_skipped(runs, capsys):
    assert main(["show", str(runs)]) == 0
    shown = capsys.readouterr()
    assert [line.split()[3] for line in shown.out.splitlines()[2:]] == ["bs32", "bs64"]
    assert "100 MiB" in shown.out
    assert "runs.ipynb, cell 3: skipped a report" in shown.err


def test_show_of_nothing_is_a_failure(tmp_path, capsys):
    assert main(["show", str(notebook(tmp_path / "empty.ipynb"))]) == 1
    assert "no report found" in capsys.readouterr().err


def test_labels_cannot_move_the_cursor(tmp_path, capsys):
    path = notebook(tmp_path / "n.ipynb", cell(output(report(label="\x1b[2Jgone\nline\u202e").to_dict())))
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert len(out.splitlines()) == 3


@pytest.mark.parametrize("words", [[], ["shown", "x.ipynb"], ["show"], ["run", "a.ipynb", "b.ipynb"]])
def test_a_wrong_command_line_is_2(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    assert "usage: python -m ipyvram" in capsys.readouterr().err


# -- run ---------------------------------------------------------------------------------------------------------------

PUBLISH = """\
from IPython.display import publish_display_data
publish_display_data({"text/plain": "PEAK 12 MiB", "application/vnd.ipyvram.report.v1+json": {"schema": 1}})"""


@pytest.mark.kernel
def test_run_leaves_a_notebook_and_a_page_and_prints_reports(tmp_path, capsys):
    path = notebook(tmp_path / "n.ipynb", cell(source="print(6 * 7)"), cell(source=PUBLISH))
    before = path.read_bytes()
    assert main(["run", str(path), "--output-dir", str(tmp_path / "out")]) == 0
    assert "[2/2]\nPEAK 12 MiB" in capsys.readouterr().out
    executed = json.loads((tmp_path / "out" / "n.ipynb").read_text())
    assert "".join(executed["cells"][0]["outputs"][0]["text"]) == "42\n"
    assert "PEAK 12 MiB" in (tmp_path / "out" / "n.html").read_text()
    assert path.read_bytes() == before


@pytest.mark.kernel
def test_run_keeps_no_place_that_shows_nothing(tmp_path, capsys, recwarn):
    empty = "from IPython.display import publish_display_data\npublish_display_data({})\nprint('shown')"
    assert (
        main(["run", str(notebook(tmp_path / "n.ipynb", cell(source=empty))), "--output-dir", str(tmp_path / "out")])
        == 0
    )
    (done,) = json.loads((tmp_path / "out" / "n.ipynb").read_text())["cells"]
    assert [output["output_type"] for output in done["outputs"]] == ["stream"]
    assert not [w for w in recwarn if "mimetype" in str(w.message)]


@pytest.mark.kernel
def test_run_of_a_failing_cell_is_1_and_keeps_what_was_run(tmp_path, capsys):
    path = notebook(tmp_path / "n.ipynb", cell(source="1 / 0"), cell(source="print('never')"))
    assert main(["run", str(path), "--output-dir", str(tmp_path / "out")]) == 1
    assert "n.ipynb stopped at an error: ZeroDivisionError" in capsys.readouterr().err
    executed = json.loads((tmp_path / "out" / "n.ipynb").read_text())
    assert executed["cells"][0]["outputs"][0]["ename"] == "ZeroDivisionError"
    assert executed["cells"][1]["outputs"] == []


def test_run_would_not_overwrite_its_notebook(tmp_path, capsys):
    path = notebook(tmp_path / "n.ipynb", cell(source="1"))
    assert main(["run", str(path), "--output-dir", str(tmp_path)]) == 1
    assert "would overwrite n.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["no", "[]", "\0"])
def test_run_of_what_is_not_a_notebook(tmp_path, capsys, content):
    path = tmp_path / "n.ipynb"
    path.write_text(content)
    assert main(["run", str(path), "--output-dir", str(tmp_path / "out")]) == 1
    assert "n.ipynb is not a notebook" in capsys.readouterr().err


def test_run_of_a_missing_file(tmp_path, capsys):
    assert main(["run", str(tmp_path / "gone.ipynb")]) == 1
    assert "gone.ipynb" in capsys.readouterr().err


def test_a_missing_package_is_named_with_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(headless, "_NEEDED", ("nbformat", "no_such_package"))
    assert main(["run", str(notebook(tmp_path / "n.ipynb"))]) == 1
    assert "needs no_such_package: pip install 'ipyvram[examples]'" in capsys.readouterr().err

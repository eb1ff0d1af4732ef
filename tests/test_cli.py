"""``python -m ipyvram``: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import io
import json
import runpy
import sys
from pathlib import Path

import pandas
import pytest

from ipyvram import headless
from ipyvram.cli import main
from ipyvram.difference import compare
from ipyvram.exporting import TABLES
from ipyvram.notebooks import read_notebook
from ipyvram.report import Report
from tests.comparisons import HOSTILE, measured
from tests.made import MIB, cell, notebook, output, report


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


COMPARISON, DIFFERENCE = (f"application/vnd.ipyvram.{kind}.v1+json" for kind in ("comparison", "difference"))


@pytest.fixture
def compared(tmp_path):
    """A report, two comparisons, and damaged ones."""
    one, two = report(label="bs32"), report({"parameters": 150 * MIB}, label="bs64")
    swept, differing = measured().to_dict(), compare(one, two).to_dict()
    damaged = [output(swept | {"rows": [{"batch": 1}]}, COMPARISON), output({"schema": 9, "sides": []}, DIFFERENCE),
               output(differing | {"sides": [differing["sides"][0] | {"peak_bytes": 1}] * 2}, DIFFERENCE),
               output(swept | {"limit_bytes": "much"}, COMPARISON)]  # fmt: skip
    cells = [output(one.to_dict()), output(swept, COMPARISON), output(differing, DIFFERENCE), *damaged]
    return notebook(tmp_path / "compared.ipynb", *map(cell, cells))


def test_show_lists_comparisons_below_the_reports(compared, capsys):
    assert main(["show", str(compared)]) == 0
    shown = capsys.readouterr()
    head, swept, differing = shown.out.split("\n\n")[1].splitlines()[0::2] + shown.out.splitlines()[-1:]
    assert head.split() == ["notebook", "cell", "comparison", "result"]
    assert "ResNet: batch_size 8, 16, 32, 64, 100, 128" in swept
    assert "100" in swept.partition("128")[2]
    assert differing.split(maxsplit=2)[2].startswith("bs32, bs64")
    assert "Peak against bs32 (100 MiB): bs64 +50.0 MiB (+50 %)" in differing
    assert [line.partition(": skipped")[0] for line in shown.err.splitlines()] == [
        f"ipyvram show: compared.ipynb, cell {number}" for number in (4, 5, 6, 7)
    ]


def test_full_shows_them_whole_also_where_there_is_no_report(compared, tmp_path, capsys):
    assert main(["show", "--full", str(compared)]) == 0
    assert capsys.readouterr().out.count("comparison in cell") == 2
    alone = notebook(tmp_path / "alone.ipynb", cell(output(measured(label=HOSTILE).to_dict(), COMPARISON)))
    for words in (["show", str(alone)], ["show", "--full", str(alone)]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "batch_size" in out
        assert "\x1b[2J" not in out
        assert "\u202e" not in out
    assert main(["export", str(alone)]) == 1  # it writes reports


def test_show_of_nothing_is_a_failure(tmp_path, capsys):
    assert main(["show", str(notebook(tmp_path / "empty.ipynb"))]) == 1
    assert "no report found" in capsys.readouterr().err


def test_a_notebook_that_cannot_be_read_is_a_failure_though_the_others_are_told(runs, tmp_path, capsys):
    assert main(["show", str(runs), str(tmp_path / "gone.ipynb")]) == 1
    shown = capsys.readouterr()
    assert "bs64" in shown.out
    assert "gone.ipynb: skipped: No such file or directory" in shown.err


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


# -- compare and export ------------------------------------------------------------------------------------------------


@pytest.fixture
def days(tmp_path):
    """Yesterday's and today's notebook: `train` takes more now, `only here` stands in one of them."""
    made = []
    for day, size in (("monday", 10), ("tuesday", 30)):
        cells = [cell(output(report({"activations": size * MIB}, label="train", started_at=float(size)).to_dict()))]
        if day == "monday":
            cells.append(cell(output(report(label="only here").to_dict())))
        made.append(str(notebook(tmp_path / f"{day}.ipynb", *cells)))
    return made


def test_equal_labels_of_several_notebooks_are_compared(days, capsys):
    assert main(["compare", *days]) == 0
    out = capsys.readouterr().out
    assert "train, tuesday.ipynb +20.0 MiB (+200 %)" in " ".join(out.split())
    assert "only here" not in out


def test_one_notebooks_reports_are_compared_with_its_first(runs, capsys):
    assert main(["compare", str(runs)]) == 0
    assert "Peak against bs32" in capsys.readouterr().out


def test_named_reports_are_compared(days, capsys):
    assert main(["compare", *days, "--reports", "only here", "3"]) == 0
    assert "Peak against only here (100 MiB): train -70.0 MiB (-70 %)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--reports", "nonsense", "train"], "no report is called 'nonsense'"),
        (["--reports", "train"], "two reports or more"),
    ],
)
def test_what_cannot_be_compared_is_told(days, capsys, arguments, told):
    assert main(["compare", *days, *arguments]) == 1
    assert told in capsys.readouterr().err


def test_notebooks_without_a_common_label(days, runs, capsys):
    assert main(["compare", days[0], str(runs)]) == 1
    assert "no label stands in all of these notebooks" in capsys.readouterr().err


@pytest.mark.parametrize("format_", ["csv", "json", "html"])
def test_comparisons_have_files_too(days, tmp_path, format_):
    path = tmp_path / "out"
    assert main(["compare", *days, "--format", format_, "--output", str(path)]) == 0
    text = path.read_text()
    assert "tuesday" in text
    if format_ == "json":
        assert json.loads(text)[0]["rows"][0]["changes"] == [20 * MIB]


@pytest.mark.parametrize("table", TABLES)
def test_every_table_as_csv(runs, capsys, table):
    assert main(["export", str(runs), "--table", table]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert head.startswith("notebook,number")


def test_json_gives_back_equal_reports(runs, capsys):
    assert main(["export", str(runs), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [Report.from_dict(row["report"]) for row in rows] == read_notebook_quietly(runs)


def read_notebook_quietly(path):
    with pytest.warns(UserWarning, match="skipped a report"):
        return read_notebook(path)


def test_a_page_of_all_reports_needs_no_network(runs, tmp_path):
    path = tmp_path / "all.html"
    assert main(["export", str(runs), "--format", "html", "--output", str(path)]) == 0
    text = path.read_text()
    assert text.count("bs32") >= 1
    assert text.count("bs64") >= 1
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_hostile_labels_are_inert_in_every_form(tmp_path, capsys):
    hostile = "=HYPERLINK(1)</title><script>alert(1)</script>"
    made = [report(label=hostile, note=hostile, error=hostile, started_at=float(i)) for i in range(2)]
    path = str(notebook(tmp_path / "<b>.ipynb", *(cell(output(one.to_dict())) for one in made)))
    for command in (["export", path, "--format", "html"], ["compare", path, "--format", "html"]):
        assert main(command) == 0
        text = capsys.readouterr().out
        assert "<script>alert" not in text
        assert "<b>" not in text
    assert main(["export", path]) == 0
    cells = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1]
    assert not any(value.startswith("=") for value in cells)


def test_parquet(runs, tmp_path, capsys):
    path = tmp_path / "out.parquet"
    code = main(["export", str(runs), "--format", "parquet", "--output", str(path)])
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        assert code == 1
        assert "needs pyarrow" in capsys.readouterr().err
    else:
        assert pandas.read_parquet(path)["label"].tolist() == ["bs32", "bs64"]
    assert main(["export", str(runs), "--format", "parquet"]) == 1


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


def test_run_names_what_is_wrong_in_one_line(tmp_path, capsys):
    path = notebook(tmp_path / "n.ipynb", cell(source="1"))
    assert main(["run", str(path), "--kernel", "no-such", "--output-dir", str(tmp_path / "out")]) == 1
    assert "ipyvram run: --kernel no-such: no such kernel (" in capsys.readouterr().err
    (tmp_path / "text.ipynb").write_text("# no JSON")
    assert main(["run", str(tmp_path / "text.ipynb")]) == 1
    assert capsys.readouterr().err == "ipyvram run: text.ipynb is not a notebook: it is not JSON\n"
    assert main(["run", str(tmp_path / "none.ipynb")]) == 1
    assert capsys.readouterr().err == f"ipyvram run: {tmp_path / 'none.ipynb'}: No such file or directory\n"


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


@pytest.mark.parametrize(
    ("word", "code", "said"), [("--help", 0, "usage:"), ("gone", 2, "no such notebook here: gone")]
)
def test_the_examples_are_executed_by_name(word, code, said, monkeypatch, capsys):
    script = Path(__file__).parents[1] / "examples" / "execute.py"
    monkeypatch.setattr(sys, "argv", [str(script), word])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())

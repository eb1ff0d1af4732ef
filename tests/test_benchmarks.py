"""The benchmarks' own arithmetic, and that their made recordings are what they say. Nothing is timed here."""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import pair, turns
from benchmarks.alone import timed
from benchmarks.cells import CELLS, make
from benchmarks.parts import Shares, parts
from benchmarks.synthetic import recording
from benchmarks.tools import NOTHING, TOOLS
from benchmarks.turns import Counter
from ipyvram import run
from ipyvram.analysis import analyse


def row(seconds, report=0.0):
    return {"cell_s": seconds, "cell_cpu_s": seconds / 2, "report_s": report, "report_cpu_s": report / 2}


def test_ratios_are_taken_within_pairs():
    found = {"bare": [row(1.0), row(10.0), row(2.0)], "tool": [row(1.5, 0.5), row(11.0, 1.0), row(2.4, 0.2)]}
    summary = pair.summary(found)
    assert summary["ratio"] == summary["ratio_cpu"] == pytest.approx(1.2)
    assert (summary["ratio_low"], summary["ratio_high"]) == (pytest.approx(1.1), pytest.approx(1.5))
    assert summary["ratio_with_report"] == pytest.approx(1.3)
    assert (summary["bare_s"], summary["bare_cpu_s"], summary["report_s"]) == (2.0, 1.0, 0.5)


@pytest.mark.parametrize("devices", [1, 3])
def test_made_recordings_have_the_size_they_were_asked_for_and_close(devices):
    made = recording(60_000, live=1000, samples=500, devices=devices)
    assert len(made.traces) == devices
    for trace in made.traces:
        assert 0.9 * 60_000 < len(trace.events) <= 60_000
    report = analyse(made)
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak["parameters"] == 500 * 4096
    assert report.peak["activations"] > 0
    assert sum(t.count for t in report.tensors_at_peak) >= 1000
    assert len(report.others) == devices - 1


def test_every_tool_and_cell_can_be_run():
    cell = make("SimpleCNN, batch 64", 1)
    assert sum(p.numel() for p in cell.namespace["model"].parameters()) == 62_006
    found = pair.once(cell, TOOLS["ipyvram"])
    assert found.keys() == pair.once(cell, NOTHING).keys()
    assert TOOLS["ipyvram"].categories
    assert "SimpleCNN, batch 64" in CELLS


def test_timed_runs_as_often_as_it_says():
    calls = []
    found = timed(lambda: calls.append(1), repeats=3)
    assert len(calls) == 3
    assert found["low_s"] <= found["s"] <= found["high_s"]


def test_a_part_does_not_count_what_another_part_takes() -> None:
    class Work:
        def outer(self) -> int:
            return self.inner() + 1

        def inner(self) -> int:
            return sum(range(200_000))

    shares = Shares()
    with shares.timed(Work, "outer", "outer"), shares.timed(Work, "inner", "inner"):
        assert Work().outer() == sum(range(200_000)) + 1
    assert shares.calls == {"outer": 1, "inner": 1}
    assert shares.seconds["inner"] > shares.seconds["outer"] >= 0.0  # though the one calls the other
    assert "measured" not in Work.outer.__qualname__  # the method is itself again


def test_the_parts_of_a_short_cell_are_all_there() -> None:
    found = parts("SimpleCNN, batch 64", 1, 1)
    assert found["parts"]["events: operators"]["calls"] > 100
    assert found["parts"]["claims: what the graph saved"]["calls"] == 3  # model, criterion, backward
    assert set(found) == {"bare_s", "empty", "ipyvram", "parts"}


def test_turns_run_the_cell_as_often_under_each_and_set_them_against_the_bare_one() -> None:
    found = turns.seconds(make("SimpleCNN, batch 64", 1), 2)
    assert {name: len(runs) for name, runs in found.items()} == {"bare": 2, "empty mode": 2, "ipyvram": 2}
    assert min(map(min, found.values())) > 0
    made = {"bare": [0.03, 0.02], "empty mode": [0.04, 0.03], "ipyvram": [0.06, 0.05]}
    lines = [line.split()[-4:] for line in turns.table(made, 2, "ms")]
    assert lines[1:] == [
        ["10.000", "12.500", "1.000", "1.000"],
        ["15.000", "17.500", "1.500", "1.417"],
        ["25.000", "27.500", "2.500", "2.250"],
    ]


ROWS = ("pair", "parts", "alone", "script")


@pytest.mark.parametrize(
    ("words", "code"),
    [*((f"benchmarks.{row} --help", 0) for row in ROWS), *((f"benchmarks.{row} x", 2) for row in ROWS)],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
def test_a_row_says_what_its_words_are(words, code, monkeypatch, capsys):
    module, *given = words.split()
    monkeypatch.setattr(sys, "argv", [module, *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    told = capsys.readouterr()
    assert ended.value.code == code
    assert f"usage: python -m {module}" in (told.err if code else told.out)


FIGURES = {"bare": [0.02], "empty mode": [0.03], "ipyvram": [0.04]}


@pytest.fixture
def children(monkeypatch):
    """The processes that `turns` would start: (command, environment) each; they answer at once."""
    made = []

    def run(command, *, env, **more):
        made.append((list(map(str, command)), env))
        return SimpleNamespace(stdout=f"a line of something else\n{json.dumps(FIGURES)}\n", stderr="")

    monkeypatch.setattr(turns.subprocess, "run", run)
    return made


def run_turns(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["turns", *words])
    turns.main()


def code_of(command):
    return command[command.index("--code") + 1]


def test_another_checkout_takes_turns_with_this_one(children, monkeypatch, tmp_path, capsys):
    run_turns(monkeypatch, "--against", str(tmp_path), "--processes", "2", "--steps", "1")
    assert [code_of(command) for command, _ in children] == [str(tmp_path), str(turns.ROOT)] * 2
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if "/" in line and " " not in line] == [str(tmp_path), str(turns.ROOT)]
    assert [line.split()[0] for line in told if line.startswith("ipyvram ")] == ["ipyvram"] * 2


def test_a_child_measures_the_checkout_that_it_is_given(tmp_path):
    (tmp_path / "ipyvram").mkdir()
    (tmp_path / "ipyvram" / "__init__.py").write_text("raise RuntimeError('the other checkout')")
    chosen = argparse.Namespace(cell=turns.CNN, steps=1, rounds=1, device="cpu", instructions=False)
    with pytest.raises(SystemExit, match="RuntimeError: the other checkout"):
        turns._child(chosen, tmp_path)


def test_instructions_are_counted_in_one_process_under_valgrind(children, monkeypatch, capsys):
    monkeypatch.setattr(turns.shutil, "which", lambda name: f"/usr/bin/{name}")
    run_turns(monkeypatch, "--instructions")
    ((command, environment),) = children
    assert command[:2] == ["valgrind", "--tool=callgrind"]
    assert command[-1] == "--instructions"
    assert environment["PYTHONHASHSEED"] == "0"
    assert "M instructions a step" in capsys.readouterr().out


def test_what_is_counted_has_no_samples_by_the_clock(monkeypatch):
    periods_s = []

    class Noted(run.Sampler):
        def __init__(self, clock, reader, devices, interval_s):
            periods_s.append(interval_s)
            super().__init__(clock, reader, devices, interval_s)

    monkeypatch.setattr(run, "Sampler", Noted)
    found = turns.instructions(make("SimpleCNN, batch 64", 1), SimpleNamespace(begin=lambda: None, end=lambda: 5.0))
    assert found == {"bare": [5.0], "empty mode": [5.0], "ipyvram": [5.0]}
    assert len(periods_s) == 2
    assert min(periods_s) > 600  # seconds: longer than it runs under valgrind


def test_without_valgrind_there_is_no_count_of_instructions(monkeypatch, capsys):
    monkeypatch.setattr(turns.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit):
        run_turns(monkeypatch, "--instructions")
    assert "--instructions needs valgrind" in capsys.readouterr().err


def test_the_newest_count_of_callgrind_is_read(tmp_path):
    for number, count in ((2, 20), (10, 1234), (9, 30)):
        (tmp_path / f"callgrind.out.77.{number}").write_text(f"events: Ir\nfn=(1)\n1 5\ntotals: {count}\n")
    counter = object.__new__(Counter)
    counter._folder, counter._library = Path(tmp_path), SimpleNamespace(end=lambda: None)
    assert counter.end() == 1234


def test_the_counter_is_built_of_what_torch_brings(tmp_path):
    try:
        made = Counter(tmp_path)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no C compiler here")
    made.begin()  # outside valgrind these do nothing


def test_on_the_stub_the_cell_is_torchs_cuda(children, monkeypatch, capsys):
    from tests import cuda_stub

    monkeypatch.setattr(cuda_stub, "build", lambda folder: {"LD_PRELOAD": "the stub"})
    run_turns(monkeypatch, "--stub", "--steps", "1")
    ((command, environment),) = children
    assert command[command.index("--device") + 1] == "cuda"
    assert command[command.index("--cell") + 1] == turns.RN50
    assert environment["LD_PRELOAD"] == "the stub"
    assert "torch's CUDA over the stub, time on the host" in capsys.readouterr().out

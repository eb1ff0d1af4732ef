"""The script for the card, run on the simulated one; and it must be able to say that something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import about, accuracy, battery, estimates, install, oddities, parts, programs, rows
from benchmarks.gpu.measured import measure
from benchmarks.gpu.parts import Work, portable
from benchmarks.gpu.simulated import SimulatedCard

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"
PROGRAM = "resnet18-sgd-plain"


def run(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), *arguments], capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip


def test_every_oddity_passes_on_the_simulated_card(tmp_path):
    rows.append(rows.path_of(tmp_path, "limits"), rows.expect("of an earlier run", "x", True))
    done = run(tmp_path, "--simulate", "--only", "oddities")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["about"]["simulated"] is True
    assert results["seconds"]["oddities"] > 0
    assert {r["case"] for r in results["rows"]} >= {
        "the user's own history",
        "two streams",
        "a CUDA graph",
        "an interrupted cell",
    }
    assert all(r["ok"] is not False for r in results["rows"])
    assert {r["part"] for r in results["rows"]} == {"limits", "oddities"}  # what is there stays
    assert "measures nothing" in done.stdout


def test_without_a_card_it_says_what_to_do(tmp_path):
    done = run(tmp_path)
    if done.returncode != 2:
        pytest.skip("there is a CUDA device here")
    assert "--simulate" in done.stdout


def test_an_unknown_part_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--simulate", "--only", "battery,nonsense", "--out", str(tmp_path)])
    assert "nonsense: there are battery, " in capsys.readouterr().err


def test_a_part_that_takes_too_long_is_ended_and_the_rest_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu_check, "_GRACE_S", -5.9
    )  # of its six seconds it gets a tenth: less than it takes to import torch
    assert gpu_check.main(["--simulate", "--only", "battery", "--minutes", "0.1", "--out", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"][-1]["text"] == "ended after 0 s"
    assert gpu_check.main(["--simulate", "--only", "battery", "--minutes", "0.01", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["text"] == "left out: no time left"


def test_a_part_that_dies_is_told(tmp_path):
    """Estimates without anything measured: a traceback in that process, a row here."""
    assert gpu_check.main(["--simulate", "--only", "estimates", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["text"] == "ended with status 1"


def test_a_fault_costs_one_check_and_no_time_costs_the_rest(tmp_path):
    def broken():
        raise KeyError("x")

    def fine():
        yield rows.expect("fine", "y", True)

    left = iter([9.0, 9.0, 0.0])
    found = list(parts._each({"a": broken, "b": fine, "c": fine}, Work(None, tmp_path, SCRIPT, lambda: next(left))))
    assert [(r.case, r.ok) for r in found] == [("a", False), ("y", True), ("c", None)]
    assert "KeyError" in found[0].text


def test_a_first_cell_is_checked_in_a_process_that_has_not_used_cuda():
    with SimulatedCard() as card:
        found = list(oddities.environment(oddities.FIRST, card, SCRIPT, 120, 120))
    assert not [rows.line(r) for r in found if r.ok is False]
    assert {"a fork may use CUDA", "not started by us", "replay", "history off"} <= {r.check for r in found}


@pytest.mark.parametrize(("enough", "ok"), [(0.05, False), (10.0, None)])
def test_a_process_that_does_not_end(tmp_path, enough, ok):
    with SimulatedCard() as card:
        (row,) = oddities.environment("no caching", card, SCRIPT, 0.05, enough)
    assert row.ok is ok
    assert "0 s" in row.text


def test_a_row_that_was_cut_short_is_passed_over(tmp_path):
    path = rows.path_of(tmp_path, "battery")
    rows.append(path, rows.expect("a", "x", True, "text", count=1))
    with path.open("a") as file:
        file.write('{"check": "b", "ca')
    assert rows.read(path) == [rows.expect("a", "x", True, "text", count=1)]
    assert rows.collect(tmp_path, {})[0].check == "a"


def test_programs_have_names_of_their_own_and_both_sizes():
    small, large = programs.every(small=True), programs.every(small=False)
    assert len({p.name for p in large}) == len(large) == len(small) > 40
    assert programs.named(PROGRAM, small=True).trains
    families = [p.name.partition("-")[0] for p in large[: len(programs.FAMILIES)]]
    assert families == list(programs.FAMILIES)  # those that differ most come first


# -- wrong figures are found ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    with SimulatedCard() as card:
        return measure(lambda: oddities.small(card.device))


def failed(found):
    return {r.check for r in found if r.ok is False}


SMALL = programs.Program("small", oddities.small)


def test_a_small_program_passes(measured):
    assert not failed(battery.check(SMALL, measured))


def test_a_program_said_to_train_must_step(measured):
    inference = SMALL._replace(trains=False)
    assert failed(battery.order(inference, measured)) == {"phases"}


def test_a_byte_too_many_is_a_failure(measured):
    wrong = replace(measured, allocated_peak=measured.allocated_peak + 1)
    assert failed(battery.sums("small", wrong)) == {"peak allocated"}


def test_a_block_elsewhere_is_a_failure(measured):
    trace = measured.recording.traces[0]
    address = trace.events.address.copy()
    address[0] += 512
    moved = replace(trace, events=replace(trace.events, address=address))
    recording = replace(measured.recording, traces=(moved,))
    assert failed(battery.replayed("small", recording)) == {"replay"}


def test_bytes_without_a_name_are_a_failure(measured):
    peak = dict(measured.report.peak)
    peak["other"], peak["parameters"] = peak["other"] + peak["parameters"], 0
    assert {"other ≤ 1 %", "parameters"} <= failed(
        battery.attribution(SMALL, replace(measured, report=replace(measured.report, peak=peak)))
    )


def test_the_summary_names_what_failed():
    text = rows.summary([rows.expect("a", "x", True), rows.expect("b", "y", False), rows.note("c", "z", "")])
    assert text.startswith("1 checks passed, 1 failed")
    assert "FAIL b" in text


# -- into the project ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A folder as the script writes it, of one program."""
    out = tmp_path_factory.mktemp("checked")
    program = programs.named(PROGRAM, small=True)
    with SimulatedCard() as card:
        m = battery.run(program, card.device)
        found = list(battery.check(program, m))
        head = about.about(card)
    figures = {PROGRAM: battery.figures(m.report)}
    rows.written(out / "about.json", json.dumps(head))
    rows.written(out / "figures.json", json.dumps(figures))
    (out / "recordings").mkdir()
    portable(m.recording).save(out / "recordings" / f"{PROGRAM}.ipyvram")
    for row in found:
        rows.append(rows.path_of(out, "battery"), row)
    card_name = estimates.card_of(head["card"], head["card_bytes"])
    for row in estimates.compare(PROGRAM, card_name, figures[PROGRAM], small=True):
        rows.append(rows.path_of(out, "estimates"), row)
    assert not [asdict(r) for r in rows.collect(out, {"battery": 1.0}) if r.ok is False]
    return out


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(install, "FEWEST", 1)


def test_what_was_found_goes_into_the_project(checked, tmp_path, few, capsys):
    assert install.main([str(checked), "--into", str(tmp_path), "--rehearse"]) == 0
    assert "1 recordings" in capsys.readouterr().out
    assert [p.name for p in sorted((tmp_path / install.RECORDINGS).iterdir())] == ["figures.json", f"{PROGRAM}.ipyvram"]
    assert json.loads((tmp_path / install.RESULTS).read_text())["about"]["simulated"]
    page = (tmp_path / install.PAGE).read_text()
    assert "nothing here was measured" in page
    assert f"| {PROGRAM} |" in page


def test_a_simulated_card_is_not_taken_for_one(checked, tmp_path, few, capsys):
    assert install.main([str(checked), "--into", str(tmp_path)]) == 1
    assert install.main([str(checked), "--rehearse"]) == 1
    assert "nothing of them was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_the_stub_of_cuda_gave_has_a_place_of_its_own(checked, tmp_path, few):
    copy, into = tmp_path / "copy", tmp_path / "into"
    shutil.copytree(checked, copy)
    results = json.loads((copy / "results.json").read_text())
    results["about"] |= {"simulated": False, "stub": True}
    (copy / "results.json").write_text(json.dumps(results))
    *_, last = install.install(copy, into, rehearse=False)
    assert "nothing of them was measured" in last
    assert (into / install.STUB_RECORDINGS / f"{PROGRAM}.ipyvram").exists()
    assert json.loads((into / install.STUB_RESULTS).read_text())["about"]["stub"]
    assert not [p for p in (install.RECORDINGS, install.RESULTS, install.PAGE) if (into / p).exists()]


def test_of_the_stubs_recordings_the_smallest_are_taken(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, size in zip(paths, (30, 10, 20), strict=True):
        path.write_bytes(bytes(size))
    assert [path.name for path in install._smallest(paths, 40)] == ["b", "c"]


@pytest.mark.usefixtures("few")
def test_a_recording_that_says_otherwise_keeps_everything_out(checked, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checked, copy)
    figures = json.loads((copy / "figures.json").read_text())
    figures[PROGRAM]["peak_allocated"] += 1
    (copy / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(ValueError, match="peak_allocated is"):
        install.install(copy, tmp_path / "into", rehearse=True)
    assert not (tmp_path / "into").exists()


def test_estimates_may_be_repeated_without_a_card(checked, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checked, copy)
    rows.path_of(copy, "estimates").unlink()
    assert gpu_check.main(["--only", "estimates", "--out", str(copy)]) == 0
    results = json.loads((copy / "results.json").read_text())
    assert [r["case"] for r in results["rows"] if r["check"] == "estimate"] == [PROGRAM]


def test_too_few_recordings_are_refused(checked, tmp_path):
    with pytest.raises(ValueError, match="1 recordings of"):
        install.install(checked, tmp_path, rehearse=True)


def test_the_page_has_medians_largest_errors_and_failures(checked):
    results = json.loads((checked / "results.json").read_text())
    row = next(r for r in results["rows"] if r["check"] == "estimate")
    others = [
        row | {"case": f"other{i}", "figures": row["figures"] | {"allocated_error": e, "reserved_error": -e}}
        for i, e in enumerate((0.0, 0.031, -0.002))
    ]
    wrong = {"part": "battery", "check": "replay", "case": "gan", "ok": False, "text": "3 | 4", "figures": {}}
    cost = {
        "part": "overhead",
        "check": "overhead",
        "case": "gpt",
        "ok": None,
        "text": "1.01×",
        "figures": {"bare_s": [1]},
    }
    kept = [r for r in results["rows"] if r["check"] != "estimate"]
    page = accuracy.page(results | {"rows": [*kept, *others, wrong, cost]})
    assert "| allocated | 0.20% | ≤ 1% | 3.10% | ≤ 5% |" in page
    assert "| reserved | 0.20% | ≤ 2% | 3.10% | – |" in page
    assert "| replay | gan | 3 \\| 4 |" in page
    assert "| gpt | 1.01× |" in page
    assert "other0" in page


def test_a_page_of_no_estimates_says_what_is_missing(checked):
    results = json.loads((checked / "results.json").read_text())
    results["rows"] = [r for r in results["rows"] if r["check"] != "estimate"]
    with pytest.raises(ValueError, match="--only estimates"):
        accuracy.page(results)

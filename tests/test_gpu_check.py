"""The script for the card, run on the simulated one; and it must be able to say that something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import battery, oddities, rows
from benchmarks.gpu.measured import measure
from benchmarks.gpu.simulated import SimulatedCard

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_check.py"


def run(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), *arguments], capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip


def test_every_oddity_passes_on_the_simulated_card(tmp_path):
    done = run(tmp_path, "--simulate", "--only", "oddities")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["about"]["simulated"] is True
    assert {r["case"] for r in results["rows"]} >= {
        "the user's own history",
        "two streams",
        "a CUDA graph",
        "an interrupted cell",
    }
    assert all(r["ok"] is not False for r in results["rows"])
    assert "measures nothing" in done.stdout


def test_without_a_card_it_says_what_to_do(tmp_path):
    done = run(tmp_path)
    if done.returncode != 2:
        pytest.skip("there is a CUDA device here")
    assert "--simulate" in done.stdout


@pytest.fixture(scope="module")
def measured():
    with SimulatedCard() as card:
        return measure(lambda: oddities.small(card.device))


def failed(found):
    return {r.check for r in found if r.ok is False}


def test_a_small_program_passes(measured):
    assert not failed(battery.sums("small", measured))
    assert not failed(battery.replayed("small", measured.recording))


def test_a_byte_too_many_is_a_failure(measured):
    from dataclasses import replace

    wrong = replace(measured, allocated_peak=measured.allocated_peak + 1)
    assert failed(battery.sums("small", wrong)) == {"peak allocated"}


def test_a_block_elsewhere_is_a_failure(measured):
    from dataclasses import replace

    trace = measured.recording.traces[0]
    address = trace.events.address.copy()
    address[0] += 512
    moved = replace(trace, events=replace(trace.events, address=address))
    recording = replace(measured.recording, traces=(moved,))
    assert failed(battery.replayed("small", recording)) == {"replay"}


def test_bytes_without_a_name_are_a_failure(measured):
    from dataclasses import replace

    peak = dict(measured.report.peak)
    peak["other"], peak["parameters"] = peak["other"] + peak["parameters"], 0
    assert {"other ≤ 1 %", "parameters"} <= failed(
        battery.attribution("small", replace(measured, report=replace(measured.report, peak=peak)))
    )


def test_the_summary_names_what_failed():
    text = rows.summary([rows.expect("a", "x", True), rows.expect("b", "y", False), rows.note("c", "z", "")])
    assert text.startswith("1 checks passed, 1 failed")
    assert "FAIL b" in text

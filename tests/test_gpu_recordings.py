"""Recordings of real cards give the figures that were measured when they were made.

`benchmarks/gpu_check.py` writes both; those of a card belong into ``tests/data/recordings``.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import battery, oddities
from benchmarks.gpu.measured import measure
from benchmarks.gpu.simulated import SimulatedCard
from ipyvram.analysis import analyse
from ipyvram.recording import Recording

FOLDER = Path(__file__).parent / "data" / "recordings"
RECORDINGS = sorted(FOLDER.glob("*.ipyvram"))


def check(folder, name):
    """A recording explained today, against the figures beside it."""
    recording = Recording.load(folder / f"{name}.ipyvram")
    report = analyse(recording)
    held = json.loads((folder / "figures.json").read_text())[name]
    assert battery.figures(report) == held
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak_bytes + sum(report.card.values()) == report.card_bytes
    assert all(row.ok for row in battery.replayed(name, recording))


@pytest.mark.skipif(not RECORDINGS, reason="no recordings of a card yet: benchmarks/gpu_check.py makes them on a GPU")
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: p.stem)
def test_a_card_said_so(path):
    check(FOLDER, path.stem)


def written(folder):
    with SimulatedCard() as card:
        m = measure(lambda: oddities.small(card.device))
    m.recording.save(folder / "small.ipyvram")
    (folder / "figures.json").write_text(json.dumps({"small": battery.figures(m.report)}))


def test_the_check_itself_on_a_simulated_card(tmp_path):
    written(tmp_path)
    check(tmp_path, "small")
    figures = json.loads((tmp_path / "figures.json").read_text())
    figures["small"]["peak_allocated"] += 1
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(AssertionError):
        check(tmp_path, "small")

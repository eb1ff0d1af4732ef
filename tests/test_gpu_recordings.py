"""Recordings of real cards, and of torch's own CUDA on the stub, give the figures that were found when they were made.

`benchmarks/gpu_check.py` writes both, `benchmarks.gpu.install` puts them into ``tests/data/recordings`` and ``stub_recordings``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.gpu import battery, oddities
from benchmarks.gpu.install import FEWEST, STUB_RECORDINGS, STUB_RECORDINGS_BYTES, differences
from benchmarks.gpu.measured import measure
from benchmarks.gpu.parts import RECORDINGS_BYTES, portable
from benchmarks.gpu.programs import Program
from benchmarks.gpu.simulated import SimulatedCard
from ipyvram.recording import CATEGORIES, Recording

#: Another folder may be looked at before its recordings are taken in.
FOLDER = Path(os.environ.get("IPYVRAM_RECORDINGS", Path(__file__).parent / "data" / "recordings"))
RECORDINGS = sorted(FOLDER.glob("*.ipyvram"))
ON_THE_STUB = sorted(Path(__file__).parents[1].joinpath(STUB_RECORDINGS).glob("*.ipyvram"))
#: Every figure that is held is a test of its own; the name of the file is the program's.
FIGURES = ("peak_allocated", "peak_reserved", "nvml_used", "context", "device", *(f"peak of {c}" for c in CATEGORIES))
NONE_YET = "no recordings of a card yet: benchmarks/gpu_check.py makes them on a GPU"


def of(figures, name):
    """A figure by one of the names above."""
    return figures["peak"][name.removeprefix("peak of ")] if name.startswith("peak of ") else figures[name]


def explained(path):
    """What the code of today makes of a recording, and what was found on the card."""
    from ipyvram.analysis import analyse

    report = analyse(Recording.load(path))
    return battery.figures(report), json.loads((path.parent / "figures.json").read_text())[path.stem]


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(
    "path",
    RECORDINGS or [pytest.param(None, marks=pytest.mark.skip(NONE_YET))],
    ids=lambda p: getattr(p, "stem", "none"),
)
def test_a_card_said_so(path, figure):
    now, held = explained(path)
    assert of(now, figure) == of(held, figure)


@pytest.mark.skipif(not RECORDINGS, reason=NONE_YET)
def test_the_sums_close_and_every_event_is_explained():
    figures = json.loads((FOLDER / "figures.json").read_text())
    assert sorted(figures) == [path.stem for path in RECORDINGS]
    assert [problem for path in RECORDINGS for problem in differences(path, figures)] == []


@pytest.mark.skipif(not RECORDINGS, reason=NONE_YET)
def test_there_are_enough_and_they_are_small():
    assert len(RECORDINGS) >= FEWEST
    assert sum(path.stat().st_size for path in RECORDINGS) <= RECORDINGS_BYTES


# -- what torch's own CUDA gave on the stub ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ON_THE_STUB, ids=lambda p: p.stem)
def test_the_stub_said_so(path):
    figures = json.loads((path.parent / "figures.json").read_text())
    assert differences(path, figures) == []


def test_there_are_some_of_the_stub_and_they_are_small():
    assert len(ON_THE_STUB) >= FEWEST
    assert sum(path.stat().st_size for path in ON_THE_STUB) <= STUB_RECORDINGS_BYTES
    assert len(json.loads((ON_THE_STUB[0].parent / "figures.json").read_text())) == len(ON_THE_STUB)


# -- the same checks on recordings of a simulated card ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("recordings")
    with SimulatedCard() as card:
        m = measure(lambda: oddities.small(card.device))
    assert all(row.ok for row in battery.events("small", m.recording))
    portable(m.recording).save(found / "small.ipyvram")
    (found / "figures.json").write_text(json.dumps({"small": battery.figures(m.report)}))
    return found


@pytest.mark.parametrize("figure", FIGURES)
def test_each_figure_is_held(folder, figure):
    now, held = explained(folder / "small.ipyvram")
    assert of(now, figure) == of(held, figure)


def test_a_recording_without_differences_has_none(folder):
    figures = json.loads((folder / "figures.json").read_text())
    assert differences(folder / "small.ipyvram", figures) == []


@pytest.mark.parametrize("figure", ["peak_allocated", "peak_reserved", "context", "nvml_used"])
def test_a_figure_that_is_off_by_one_is_told(folder, figure):
    figures = json.loads((folder / "figures.json").read_text())
    figures["small"][figure] += 1
    (told,) = differences(folder / "small.ipyvram", figures)
    assert told.startswith(f"small: {figure} is ")


def test_a_byte_in_another_category_is_told(folder):
    figures = json.loads((folder / "figures.json").read_text())
    figures["small"]["peak"]["activations"] += 1
    assert differences(folder / "small.ipyvram", figures)


def test_figures_that_are_missing_are_told(folder):
    assert differences(folder / "small.ipyvram", {}) == ["small.ipyvram: no figures were written for it"]


def test_a_recording_is_of_no_machine(folder):
    recording = Recording.load(folder / "small.ipyvram")
    files = {frame.file for stack in recording.stacks for frame in stack}
    assert files
    assert not any(Path(name).is_absolute() for name in files)
    assert all(device.uuid is None for device in recording.devices)


def test_a_program_that_fails_is_a_failure_of_its_check():
    def broken(device):
        raise RuntimeError("no kernel")

    with SimulatedCard() as card:
        m = battery.run(Program("broken", broken), card.device)
        (row,) = battery.check(Program("broken", broken), m)
    assert row.ok is False
    assert "no kernel" in row.text

"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write golden files anew instead of comparing with them")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """``golden(name, text)``: the text equals the file ``tests/golden/NAME``; ``--overwrite`` writes it anew."""
    overwrite = request.config.getoption("--overwrite")

    def check(name: str, text: str) -> None:
        path = ROOT / "tests" / "golden" / name
        if overwrite:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"tests/golden/{name} is not there yet: run pytest with --overwrite and look at it"
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of real CUDA allocator traces, where it is present beside the project."""
    folder = Path(os.environ.get("IPYVRAM_TRACES", ROOT.parent / "shared" / "traces"))
    if not folder.is_dir():
        pytest.skip("the folder of real CUDA traces is not here (IPYVRAM_TRACES names it)")
    return folder

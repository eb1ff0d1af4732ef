"""Options and fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's `&` has it; a kernel sets it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a busy machine is no failure. The same programs each time, so that a change is judged by what it changed;
# `--hypothesis-profile random` looks for new ones, and what it finds becomes an example of its test.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="write golden files anew instead of comparing with them")


def pytest_collection_finish() -> None:
    """What was imported need not be looked through again by every search for tensors, and every collection, of every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_earlier_models() -> Iterator[None]:
    """Models of one test are no earlier models of the next one's variables."""
    yield
    if (keeping := sys.modules.get("ipyvram.probes.keeping")) is not None:
        keeping._models.clear()


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


@pytest.fixture
def read_graphs() -> Iterator[None]:
    """Graphs that the test makes can be read, as those of a traced cell, also where torch shows what they saved only unpacked."""
    from ipyvram.patches import Patches
    from ipyvram.probes import graph

    patches = Patches()
    if not graph.SHOWN:
        graph.UNPACKED.watch(patches)
    yield
    patches.undo()


@pytest.fixture(scope="session")
def stub_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What to add to the environment of a process that is to have a card: `tests.cuda_stub`."""
    from tests import cuda_stub

    if why := cuda_stub.missing():
        pytest.skip(why)
    return cuda_stub.build(tmp_path_factory.mktemp("cuda_stub"))


@pytest.fixture
def run_on_stub(stub_environment: dict[str, str]) -> Callable[..., Any]:
    """Run lines of Python with the stub; what they leave in ``result`` comes back as JSON would give it."""
    from tests import warm

    warm.serve(stub_environment)

    def call(code: str, **settings: object) -> Any:
        return warm.run(code, {f"IPYVRAM_STUB_{name}": str(value) for name, value in settings.items()})

    return call

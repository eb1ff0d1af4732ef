"""Private names of torch, as the installed one has them: what is asked exists, and answers as the simulated card does.

Needs torch built for CUDA, and no GPU: an allocator without devices answers too.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from ipyvram.caching_allocator import Settings, replay
from ipyvram.probes import graph, history, snapshots
from ipyvram.probes.beginning import when_in_use
from tests.conftest import ROOT
from tests.simulated_cuda import SimulatedCuda

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not built for CUDA")

NAMES = (
    "_cuda_isHistoryEnabled", "_cuda_attach_out_of_memory_observer", "_cuda_hasPrimaryContext", "_cuda_clearCublasWorkspaces",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_every_supported_torch_has(name):
    assert callable(getattr(torch._C, name))


def test_a_snapshot_has_the_parts_that_the_simulated_card_gives():
    real = torch.cuda.memory._snapshot()
    with SimulatedCuda(devices=0, workspace=False):
        ours = torch.cuda.memory._snapshot()
    assert set(ours) <= set(real)
    assert set(ours["allocator_settings"]) <= set(real["allocator_settings"])
    assert {k: type(v) for k, v in ours["allocator_settings"].items()} == {
        k: type(real["allocator_settings"][k]) for k in ours["allocator_settings"]
    }


def test_settings_of_a_snapshot_are_understood():
    real = torch.cuda.memory._snapshot()
    assert Settings.from_snapshot(real["allocator_settings"]) == Settings()
    assert replay(real).allocations == 0


def test_segments_can_be_had_before_cuda_is_in_use():
    assert snapshots.segments() == [] or torch.cuda.is_initialized()


def test_the_options_of_the_history_are_those_of_its_c_function(monkeypatch):
    """Torch hands them on in their order; one that is not known would be an error in the user's cell."""
    given = []
    monkeypatch.setattr(torch._C, "_cuda_record_memory_history", lambda *args: given.append(args))
    history._switch_on()
    names = list(inspect.signature(torch.cuda.memory._record_memory_history).parameters)
    names.remove("device")  # torch does not hand it on
    values = dict(zip(names, given[0], strict=True))
    assert (values["enabled"], values["context"], values["stacks"]) == ("all", "alloc", "python")
    assert values["max_entries"] == history.MAX_ENTRIES
    for name in ("clear_history", "global_record_annotations"):
        assert values.get(name, True) is True  # older torch has neither


def test_what_is_put_off_is_in_torchs_own_queue(monkeypatch):
    """Each entry is a call and where it was made; `_lazy_init` makes the calls in their order."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use here")
    before = list(torch.cuda._queued_calls)
    done = []
    cancel = when_in_use(lambda: done.append(1))
    call, _ = torch.cuda._queued_calls[-1]
    call()
    cancel()
    torch.cuda._queued_calls[:] = before
    assert done == [1]


def test_torchs_own_start_makes_the_call_before_it_says_that_it_has_started(monkeypatch):
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use here")
    monkeypatch.setattr(torch._C, "_cuda_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "_queued_calls", [])
    monkeypatch.setattr(torch.cuda, "_initialized", False)
    seen = []
    when_in_use(lambda: seen.append(torch.cuda.is_initialized()))
    torch.cuda._lazy_init()
    assert seen == [False]
    assert torch.cuda.is_initialized()


def test_a_pin_on_memory_that_is_not_the_allocators_is_refused_by_an_error_we_know():
    annotate = getattr(torch._C, "_cuda_annotateMemory", None)
    if annotate is None:
        pytest.skip("this torch has no annotations")
    with pytest.raises(RuntimeError, match="no live allocation"):
        annotate(12345, "ipyvram pin 0")


#: Rows of the table in docs/troubleshooting.md → how torch is asked.
ASKED = {
    "what a graph saved, as it lies there": lambda: graph.SHOWN,
    "the allocator's segments without its history": snapshots.segments_alone,
    "the size of a cuBLAS workspace": lambda: hasattr(torch._C, "_cuda_getCublasWorkspaceSize"),
    "own marks in the allocator's history": lambda: hasattr(torch._C, "_cuda_annotateMemory"),
    "pinned host memory": lambda: hasattr(torch.cuda, "host_memory_stats"),
}


def test_what_the_documentation_says_of_older_torch_is_so_here():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("<!-- since:")[2].partition("<!-- /since -->")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ][2:]
    assert [row[0] for row in rows] == list(ASKED)
    here = version(torch.__version__)
    for what, without, oldest, _ in rows:
        if here <= version(without) or here >= version(oldest):  # between them nobody looked
            assert ASKED[what]() is (here >= version(oldest)), what


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])

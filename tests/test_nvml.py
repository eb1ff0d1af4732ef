"""The card as the driver tells it, through the real ``pynvml`` and a stub driver."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ipyvram.probes import nvml
from tests import nvml_stub

GIB = 2**30
NO_PERMISSION, NOT_SUPPORTED, DRIVER_NOT_LOADED, UNKNOWN = 4, 3, 9, 999


@pytest.fixture
def stub(tmp_path):
    yield from nvml_stub.load(tmp_path)


@pytest.fixture
def torch_devices(monkeypatch):
    """Makes torch report these UUIDs for ``cuda:0``, ``cuda:1`` …, as after its first use of CUDA."""

    def report(*uuids):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=uuids[i]))

    return report


@pytest.fixture(autouse=True)
def every_read_lists_processes(monkeypatch):
    monkeypatch.setattr(nvml, "_PROCESSES_EVERY_S", 0.0)


def test_a_card_is_found_by_uuid_and_not_by_index(stub, torch_devices, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    torch_devices(nvml_stub.MIG_CARD, nvml_stub.CARD)
    cards = nvml.open_cards()
    assert cards.read("cuda:1")["device_total"] == 24 * GIB
    assert cards.read("cuda:0")["device_total"] == 80 * GIB


def test_figures_of_a_shared_card(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    stub.processes({os.getpid(): GIB, 1: GIB // 2, 2: GIB // 4})
    stub.processes({3: GIB // 8, 1: GIB // 2}, "graphics")
    cards = nvml.open_cards()
    assert cards.read("cuda:0") == {
        "device_used": 3 * GIB,
        "device_total": 24 * GIB,
        "process_used": GIB,
        "other_processes": GIB // 2 + GIB // 4 + GIB // 8,
        "gpu_utilization_percent": 37,
        "memory_utilization_percent": 12,
    }
    assert cards.notes == []


@pytest.mark.parametrize(
    ("entry", "total"),
    [("GPU-1111", 24), ("GPU-22222222-aaaa-bbbb-cccc-000000000002", 80), (nvml_stub.SLICE, 20), ("MIG-4444", 40)],
)
def test_visible_devices_may_name_cards_and_slices(stub, monkeypatch, entry, total):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", entry)
    assert nvml.open_cards().read("cuda:0")["device_total"] == total * GIB


@pytest.mark.parametrize("reported", [nvml_stub.MIG_CARD, nvml_stub.SLICE.removeprefix("MIG-")])
def test_a_slice_is_read_as_the_slice(stub, torch_devices, monkeypatch, reported):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nvml_stub.SLICE)
    torch_devices(reported)
    cards = nvml.open_cards()
    found = cards.read("cuda:0")
    assert found["device_total"] == 20 * GIB
    assert "gpu_utilization_percent" not in found
    assert any("utilisation of cuda:0" in note for note in cards.notes)


def test_the_only_slice_torch_reports_needs_no_variable(stub, torch_devices, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torch_devices(nvml_stub.SLICE.removeprefix("MIG-"))
    assert nvml.open_cards().read("cuda:0")["device_total"] == 20 * GIB


def test_an_unknown_card_is_said_once(stub, torch_devices):
    torch_devices("99999999-aaaa-bbbb-cccc-000000000009")
    cards = nvml.open_cards()
    assert cards.read("cuda:0") == cards.read("cuda:0") == {}
    assert len(cards.notes) == 1
    assert "99999999" in cards.notes[0]


def test_a_card_unknown_before_cuda_starts_is_looked_for_again(stub, torch_devices, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    cards = nvml.open_cards()
    assert cards.read("cuda:0") == {}
    torch_devices(nvml_stub.CARD)
    assert cards.read("cuda:0")["device_total"] == 24 * GIB


def test_a_container_hides_our_pid(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    stub.processes({77777: GIB, 88888: GIB})
    cards = nvml.open_cards()
    found = cards.read("cuda:0")
    assert found["device_used"] == 3 * GIB
    assert not found.keys() & {"process_used", "other_processes"}
    assert "container" in cards.notes[0]
    assert "one figure" in cards.notes[0]


def test_the_only_process_of_a_card_is_ours(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    stub.processes({77777: GIB})
    cards = nvml.open_cards()
    found = cards.read("cuda:0")
    assert (found["process_used"], found["other_processes"]) == (GIB, 0)
    assert "another PID" in cards.notes[0]


def test_a_driver_without_figures_per_process(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    stub.processes({os.getpid(): None})
    cards = nvml.open_cards()
    assert "process_used" not in cards.read("cuda:0")
    assert "Windows, WSL" in cards.notes[0]


def test_no_process_listed(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    cards = nvml.open_cards()
    assert "process_used" not in cards.read("cuda:0")
    assert "no process with our PID" in cards.notes[0]


@pytest.mark.parametrize("what", ["memory_result", "utilization_result", "process_result"])
def test_a_refusal_costs_one_figure_and_is_asked_three_times(stub, torch_devices, what):
    torch_devices(nvml_stub.CARD)
    stub.processes({os.getpid(): GIB})
    cards = nvml.open_cards()
    everything = cards.read("cuda:0")
    stub.set(**{what: NO_PERMISSION})
    for _ in range(3):
        assert len(everything) > len(cards.read("cuda:0")) > 0
    assert len(cards.notes) == 1
    assert "Insufficient Permissions" in cards.notes[0]
    stub.set(**{what: 0})
    assert len(cards.read("cuda:0")) < len(everything)


def test_a_passing_fault_does_not_cost_the_figure(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    cards = nvml.open_cards()
    for result in (UNKNOWN, UNKNOWN, 0, UNKNOWN, UNKNOWN, 0):
        stub.set(memory_result=result)
        assert ("device_used" in cards.read("cuda:0")) == (result == 0)


def test_graphics_processes_are_optional(stub, torch_devices):
    torch_devices(nvml_stub.CARD)
    stub.processes({os.getpid(): GIB})
    stub.set(graphics_result=NOT_SUPPORTED)
    cards = nvml.open_cards()
    assert cards.read("cuda:0")["process_used"] == GIB
    assert cards.notes == []


def test_a_driver_that_is_not_loaded(stub):
    stub.set(init_result=DRIVER_NOT_LOADED)
    with pytest.raises(RuntimeError, match="does not answer"):
        nvml.open_cards()


def test_close_lets_go_once(stub):
    cards = nvml.open_cards()
    assert (cards.count(), cards.names()) == (2, ["Stub 24GB", "Stub 24GB"])
    cards.close()
    assert stub.get("opened") == 0


def test_devices_that_are_not_cuda_have_no_card(stub):
    assert nvml.open_cards().read("cpu") == {}


def test_no_driver(monkeypatch):
    def missing():
        raise nvml.pynvml.NVMLError(nvml.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(nvml.pynvml, "nvmlInit", missing)
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        nvml.open_cards()


class TestOldDriver:
    @pytest.fixture
    def stub(self, tmp_path):
        yield from nvml_stub.load(tmp_path, "-DOLD_DRIVER")

    def test_an_older_query_is_used(self, stub, torch_devices):
        torch_devices(nvml_stub.CARD)
        stub.processes({os.getpid(): GIB, 5: GIB})
        assert nvml.open_cards().read("cuda:0")["other_processes"] == GIB

    def test_what_the_driver_keeps_for_itself_cannot_be_told(self, stub, torch_devices):
        torch_devices(nvml_stub.CARD)
        assert nvml.open_cards().read("cuda:0")["device_used"] == 3 * GIB + GIB // 2


def test_processes_are_listed_now_and_then_only(stub, torch_devices, monkeypatch):
    monkeypatch.setattr(nvml, "_PROCESSES_EVERY_S", 10.0)
    now = [100.0]
    monkeypatch.setattr(nvml.time, "monotonic", lambda: now[0])
    torch_devices(nvml_stub.CARD, nvml_stub.MIG_CARD)
    stub.processes({os.getpid(): GIB})
    cards, listed = nvml.open_cards(), []
    for second in (100, 105, 109.9, 110, 111):
        now[0] = float(second)
        listed.append("process_used" in cards.read("cuda:0"))
    assert listed == [True, False, False, True, False]
    assert "process_used" in cards.read("cuda:1")


def test_without_the_binding_it_is_said(monkeypatch):
    monkeypatch.setattr(nvml, "pynvml", None)
    with pytest.raises(RuntimeError, match="nvidia-ml-py is not installed"):
        nvml.open_cards()


def test_ipyvram_measures_without_the_binding():
    code = (
        "import sys; sys.modules['pynvml'] = None\n"
        "import torch, ipyvram\n"
        "with ipyvram.measure(quiet=True) as m: torch.ones(1 << 20)\n"
        "assert m.report.peak_bytes == 4 << 20"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

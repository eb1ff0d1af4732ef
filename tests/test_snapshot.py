"""Snapshots as reports: simulated ones checked against the allocator that made them, real ones against published peaks."""

from __future__ import annotations

import copy
import gzip
import pickle

import pytest
import torch

import ipyvram
from ipyvram import snapshot as snapshot_module
from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from tests.simulated_cuda import MIB, WORKSPACE, SimulatedCuda
from tests.test_caching_allocator import PEAKS_MIB
from tests.traces import FILES, needs_traces


def recorded(path=None):
    """A small program under the simulated CUDA: its snapshot and its allocator."""
    with SimulatedCuda() as cuda:
        kept = [torch.zeros(5 * MIB)]
        torch.cuda.memory._record_memory_history(global_record_annotations=True)
        weight = torch.zeros(1024, 1024, requires_grad=True)
        optimizer = torch.optim.SGD([weight], momentum=0.9)
        for _ in range(2):
            (weight * kept[0][: 1024 * 1024].view(1024, 1024)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found = torch.cuda.memory._snapshot()
        if path is not None:
            path.write_bytes(pickle.dumps(found))
        return found, cuda.cards[0].allocator


def write(path, value):
    path.write_bytes(pickle.dumps(value))
    return path


def test_a_snapshot_is_a_report(tmp_path):
    _, allocator = recorded(tmp_path / "s.pickle")
    report = ipyvram.read_snapshot(tmp_path / "s.pickle")
    assert (report.kind, report.device, report.steps) == ("snapshot", "cuda:0", 2)
    assert report.peak_bytes == allocator.allocated_peak == sum(report.peak.values())
    assert sum(report.end.values()) == allocator.allocated
    assert report.peak_reserved_bytes == allocator.reserved_peak
    assert report.allocator["inactive_split"] == allocator.inactive_split
    assert any(g.key.startswith("test_snapshot.py:") and g.bytes >= 4 * MIB for g in report.lines_at_peak)
    assert {p.name for p in report.phases} == {"backward", "optimizer"}
    assert report.provenance["categories"] == "inferred"
    frame = report.timeline()
    assert (frame[list(CATEGORIES)].sum(axis=1) == frame["allocated"]).all()
    assert Report.from_json(report.to_json()).peak == report.peak


def test_fragmentation_is_told_with_its_pieces(tmp_path):
    snapshot, _ = recorded()
    free = [b["size"] for s in snapshot["segments"] for b in s["blocks"] if b["state"] == "inactive"]
    report = ipyvram.read_snapshot(write(tmp_path / "s.pickle", snapshot))
    (finding,) = [f for f in report.findings if f.kind == "snapshot_fragmentation"]
    assert f"in {len(free)} pieces" in finding.text


def test_gzip_and_states_without_events(tmp_path):
    snapshot, allocator = recorded()
    snapshot["device_traces"] = [[]]
    path = tmp_path / "s.pickle.gz"
    path.write_bytes(gzip.compress(pickle.dumps(snapshot)))
    report = ipyvram.read_snapshot(path)
    assert report.peak_bytes == allocator.allocated
    assert any("holds no events" in note for note in report.measurement.notes)


def test_the_other_writers_words(tmp_path):
    """Torch's C++ writer has no settings, no annotations, and another word for a block that is waited for."""
    snapshot, allocator = recorded()
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            block["state"] = block["state"].replace("active_awaiting_free", "active_pending_free")
    del snapshot["allocator_settings"], snapshot["external_annotations"]
    assert ipyvram.read_snapshot(write(tmp_path / "s.pickle", snapshot)).peak_bytes == allocator.allocated_peak


@needs_traces
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name.split(".")[0])
def test_real_snapshots_have_their_published_peaks(path):
    report = ipyvram.read_snapshot(path)
    allocated, reserved = PEAKS_MIB[path.name.split(".")[0]]
    assert round(report.peak_bytes / MIB, 3) == allocated
    assert report.peak_reserved_bytes == reserved * MIB
    assert sum(report.peak.values()) == report.peak_bytes
    assert any(".py:" in g.key for g in report.lines_at_peak)
    assert len(report.to_json()) < 400_000


@needs_traces
def test_phases_of_real_programs_tell_activations_and_gradients():
    path = {p.name.split(".")[0]: p for p in FILES}
    report = ipyvram.read_snapshot(path["wedson_medium_512_train"])
    assert 423_183_360 * 4 <= report.end["gradients"] < 1.02 * 423_183_360 * 4  # the model's published parameter count
    assert report.peak["activations"] > 0.5 * report.peak_bytes
    assert report.peak_phase in ("forward", "backward")
    assert [report.peak[name] // (423_183_360 * 4) for name in ("parameters", "optimizer_state")] == [1, 2]
    assert report.peak["other"] < 0.001 * report.peak_bytes
    report = ipyvram.read_snapshot(path["niu_fb_200"])
    assert [p.name for p in report.phases] == ["forward", "backward", "optimizer"] * 3
    assert report.peak["workspaces"] == 2 * WORKSPACE


def test_what_other_versions_of_torch_write(tmp_path):
    snapshot, allocator = recorded()
    timed = ipyvram.read_snapshot(write(tmp_path / "timed.pickle", snapshot))
    for event in snapshot["device_traces"][0]:
        del event["time_us"]
    report = ipyvram.read_snapshot(write(tmp_path / "no times.pickle", {**snapshot, "external_annotations": []}))
    assert (report.peak_bytes, report.peak_reserved_bytes) == (timed.peak_bytes, timed.peak_reserved_bytes)
    assert any("kept no times" in note for note in report.measurement.notes)
    assert {p.name for p in report.phases} == {"backward"}
    report = ipyvram.read_snapshot(write(tmp_path / "segments.pickle", snapshot["segments"]))  # of `memory_snapshot`
    assert report.peak_bytes == allocator.allocated
    assert any("no events" in note for note in report.measurement.notes)


def damaged():
    """Ways to be a pickle and no snapshot."""
    yield "a list", [1, 2]
    yield "no segments", {"device_traces": []}
    yield "nothing in it", {"segments": [], "device_traces": []}
    whole = recorded()[0]
    for name, change in {
        "a size as text": lambda s: s["device_traces"][0][0].update(size="huge"),
        "a negative size": lambda s: s["device_traces"][0][0].update(size=-5),
        "a size beyond any card": lambda s: s["device_traces"][0][0].update(size=1 << 80),
        "no action": lambda s: s["device_traces"][0][0].pop("action"),
        "no blocks": lambda s: s["segments"][0].pop("blocks"),
        "frames that are none": lambda s: s["device_traces"][0][0].update(frames=[1, 2]),
        "segments that are text": lambda s: s.update(segments="x"),
        "an event that is a number": lambda s: s["device_traces"][0].insert(0, 7),
        "annotations that are none": lambda s: s.update(external_annotations=[3]),
        "settings that are none": lambda s: s.update(allocator_settings={"max_split_size": "much"}),
    }.items():
        value = copy.deepcopy(whole)
        change(value)
        yield name, value


def test_anything_else_is_a_value_error_that_names_the_file(tmp_path):
    for name, value in damaged():
        with pytest.raises(ValueError, match=r"s\.pickle") as caught:
            ipyvram.read_snapshot(write(tmp_path / "s.pickle", value))
        assert "snapshot" in str(caught.value), name


def test_one_trace_named_a_million_times_is_refused(tmp_path, monkeypatch):
    snapshot, _ = recorded()
    monkeypatch.setattr(snapshot_module, "MAX_EVENTS", 1000)
    snapshot["device_traces"] = [snapshot["device_traces"][0]] * 100
    with pytest.raises(ValueError, match="at most 1,000 are read"):
        ipyvram.read_snapshot(write(tmp_path / "s.pickle", snapshot))


def test_files_of_other_machines_are_told_apart():
    is_user = snapshot_module._is_user_file
    assert is_user("/home/u/project/train.py")
    assert is_user("D:\\work\\train.py")
    assert is_user("/tmp/ipykernel_12/1234.py")
    assert not is_user("/opt/conda/lib/python3.11/site-packages/torch/nn/modules/module.py")
    assert not is_user("C:\\Python311\\Lib\\threading.py")
    assert not is_user("/pytorch/torch/optim/adam.py")
    assert not is_user("CUDACachingAllocator.cpp")
    assert not is_user("<frozen runpy>")

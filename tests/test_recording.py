"""A recording is a file and back, to the last value; a damaged file is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from ipyvram.recording import (
    Block,
    Cell,
    Claim,
    Device,
    ErrorInfo,
    Events,
    Frame,
    Mark,
    Origin,
    Recording,
    Samples,
    Segment,
    Trace,
)


def example() -> Recording:
    events = Events.from_rows([(0, 7, 512, 3, 1001, 0, 0), (1, 7, 512, 3, 1002, -1, -1)])
    segment = Segment(2**33, 2**21, 5, "small", False, (Block(2**33, 512, 400, "inactive", 0),), (0, 1))
    trace = Trace("cuda:0", "history", 1000, 1010, events, (Block(1, 64, 64),), (segment,), 64, "3 steps", False)
    samples = Samples("cuda:0", np.array([1005]), {"allocated": np.array([np.nan])}, 1, 0.25, 0.05)
    return Recording(
        start_ns=1000, stop_ns=1020, label="é ✓", note=None, cell=Cell("x = 1\n", "<ipython-input-1>", 1),
        environment={"torch": "2.6"}, devices=(Device("cuda:0", "A card", 2**34, "GPU-1", (9, 0)), Device("cpu", "CPU")),
        traces=(trace,), claims=(Claim(1001, "cuda:0", 7, 512, "parameters", "w", "net", (4, 32), "float32"),),
        marks=(Mark(1001, "forward", True, 1, "net", False),), stacks=((Frame("a.py", 3, "f"), Frame("b.py", 1, "g")),),
        origins=(Origin("aten.randn", (4, 32), "float32"), Origin()), samples=(samples,),
        counters_start={"cuda:0": {"allocated": 1}}, counters_end={"cuda:0": {"allocated": 2}}, limit=(None, 2**30),
        card_bytes=2**34, steps=3, traced_steps=1, error=ErrorInfo("RuntimeError", "no", True, False),
        notes=("one", "two"), overhead_s=0.5,
    )  # fmt: skip


def plain(value):
    """Arrays as lists and NaN as None, so that == compares."""
    if isinstance(value, np.ndarray):
        return [str(value.dtype), [None if v != v else v for v in value.tolist()]]
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return (type(value).__name__, *map(plain, value))
    return value


def test_a_recording_survives_its_file(tmp_path):
    path = tmp_path / "cell.vram"
    recording = example()
    recording.save(path)
    assert plain(Recording.load(path)) == plain(recording)


def test_equal_recordings_are_equal_files(tmp_path):
    example().save(tmp_path / "a")
    example().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_events_of_no_rows_have_typed_columns():
    events = Events.from_rows([])
    assert len(events) == 0
    assert events.address.dtype == np.int64
    assert events.stack.dtype == np.int32


def rewrite(path, change) -> None:
    """The same archive with its header or members changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["recording.json"])
    change(header, members)
    members["recording.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda header, members: header.update(version=99), "newer ipyvram"),
        (lambda header, members: header.pop("version"), "version"),
        (lambda header, members: header.update(surprise=1), "surprise"),
        (lambda header, members: header.pop("claims"), "claims"),
        (lambda header, members: members.pop("trace0.address.npy"), "trace0.address"),
        (lambda header, members: members.update({"trace0.size.npy": b"\x80\x04K\x01."}), "readable"),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, change, says):
    path = tmp_path / "cell.vram"
    example().save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=says) as error:
        Recording.load(path)
    assert "cell.vram" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 but no more"])
def test_what_is_no_recording_is_refused(tmp_path, content):
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.bin is not a readable ipyvram recording"):
        Recording.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "none.vram")


def test_nothing_in_a_file_is_unpickled(tmp_path):
    path = tmp_path / "cell.vram"
    example().save(path)
    evil = tmp_path / "evil.npy"
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    rewrite(path, lambda header, members: members.update({"trace0.size.npy": evil.read_bytes()}))
    with pytest.raises(ValueError, match="allow_pickle"):
        Recording.load(path)

"""Plain values come back whatever the protocol; nothing else is let in, and nothing is run."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import pickletools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram import safe_pickle

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=300) | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner) | st.tuples(inner, inner) | st.tuples(inner),
    max_leaves=30,
)  # fmt: skip


def written(tmp_path_factory, data: bytes):
    path = tmp_path_factory.mktemp("p") / "snapshot.pickle"
    path.write_bytes(data)
    return path


@given(value=VALUES, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_come_back(tmp_path_factory, value, protocol):
    data = pickle.dumps(value, protocol)
    path = written(tmp_path_factory, data)
    if {op.name for op, _, _ in pickletools.genops(data)} & {"GLOBAL", "REDUCE", "STACK_GLOBAL"}:
        with pytest.raises(ValueError, match="refused"):  # protocols below 3 write bytes as a call
            safe_pickle.load(path)
    else:
        assert safe_pickle.load(path) == value


@given(value=VALUES, cut=st.floats(0, 0.999))
def test_a_truncated_file_is_a_value_error(tmp_path_factory, value, cut):
    data = pickle.dumps(value)
    with pytest.raises(ValueError, match=r"snapshot\.pickle"):
        safe_pickle.load(written(tmp_path_factory, data[: int(cut * len(data))]))


@given(data=st.binary(max_size=200))
def test_noise_never_raises_anything_else(tmp_path_factory, data):
    with contextlib.suppress(ValueError):
        safe_pickle.load(written(tmp_path_factory, data))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps({"segments": [Evil()]}, protocol))
    with pytest.raises(ValueError, match="refused: it would run code"):
        safe_pickle.load(tmp_path / "evil.pickle")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "data", [b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b"P123\n.", b"\x80\x02\x82\x01."]
)
def test_every_way_to_name_an_object_is_refused(tmp_path, data):
    (tmp_path / "evil.pickle").write_bytes(data)
    with pytest.raises(ValueError, match="refused"):
        safe_pickle.load(tmp_path / "evil.pickle")


@pytest.mark.parametrize("data", [b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".", b"]p9999999999\n."])
def test_a_small_file_cannot_ask_for_gigabytes(tmp_path, data):
    (tmp_path / "bomb.pickle").write_bytes(data)
    with pytest.raises(ValueError, match="more memory than its size"):
        safe_pickle.load(tmp_path / "bomb.pickle")


def test_a_string_longer_than_the_file(tmp_path):
    (tmp_path / "bomb.pickle").write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"x.")
    with pytest.raises(ValueError, match="ends in the middle"):
        safe_pickle.load(tmp_path / "bomb.pickle")


def test_gzip_in_any_state(tmp_path):
    path = tmp_path / "s.pickle.gz"
    packed = gzip.compress(pickle.dumps(list(range(1000))))
    path.write_bytes(packed)
    assert safe_pickle.load(path) == list(range(1000))
    for damaged in (packed[:50], packed[:40] + b"\0" * 20 + packed[60:], b"\x1f\x8bnot gzip"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            safe_pickle.load(path)


def test_a_file_beyond_the_limit_is_refused_while_unpacking(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(safe_pickle, "_CHUNK", 1 << 18)
    path = tmp_path / "bomb.pickle.gz"
    path.write_bytes(gzip.compress(b"\0" * (64 << 20)))
    with pytest.raises(ValueError, match="max_entries"):
        safe_pickle.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        safe_pickle.load(tmp_path / "none.pickle")

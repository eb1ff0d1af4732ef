"""Sums by module and line, and the largest holder in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipyvram.grouping import batch_size, by_line, by_module, group, holders
from ipyvram.recording import CATEGORIES
from ipyvram.report_rows import TensorRow

rows = st.lists(
    st.builds(
        TensorRow,
        bytes=st.integers(1, 9999),
        category=st.sampled_from(CATEGORIES),
        module=st.sampled_from(["", "fc", "conv.0"]),
        line=st.sampled_from([None, 3, 7]),
        file=st.sampled_from(["", "train.py"]),
        count=st.integers(1, 3),
    ),
    max_size=25,
).map(tuple)


@given(rows)
def test_groups_add_up_and_are_in_order(tensors):
    for key in (by_module, by_line):
        groups = group(tensors, key)
        assert sum(g.bytes for g in groups) == sum(t.bytes for t in tensors)
        assert sum(g.count for g in groups) == sum(t.count for t in tensors)
        assert [g.bytes for g in groups] == sorted((g.bytes for g in groups), reverse=True)
        assert all(sum(g.categories.values()) == g.bytes for g in groups)
        assert len({(g.key, g.source) for g in groups}) == len(groups)


def test_lines_of_the_cell_and_of_a_file_read_differently():
    assert by_line(TensorRow(1, "other", line=3, source="x = 1")) == ("line 3", "x = 1")
    assert by_line(TensorRow(1, "other", line=3, file="train.py")) == ("train.py:3", "")
    assert by_line(TensorRow(1, "other")) == ("", "")
    assert by_line(TensorRow(1, "other", phase="before")) == ("there before the trace", "")


def test_holders_name_the_largest_and_count_the_rest():
    tensors = (
        TensorRow(2**20, "inputs", "x", shape=(64, 3, 32, 32), dtype="float32"),
        TensorRow(512, "inputs", "y", shape=(64,), dtype="int64"),
        TensorRow(2**21, "activations", "relu output", "block.1", line=12),
    )
    found = holders(tensors)
    assert found["inputs"] == "x · 64×3×32×32 float32 · 1.00 MiB · of 2 tensors"
    assert found["activations"] == "block.1 relu output · line 12 · 2.00 MiB"
    assert set(found) == {"inputs", "activations"}


def test_a_data_set_is_no_batch_where_activations_tell_of_another():
    data = TensorRow(2**20, "inputs", "X", shape=(20000, 3), dtype="int64")
    batch = TensorRow(512, "inputs", "x", shape=(32, 3), dtype="int64")
    hidden = TensorRow(2**12, "activations", "h", shape=(32, 200), dtype="float32")
    assert batch_size((data, batch, hidden)) == 32
    assert batch_size((data, hidden)) is None
    assert batch_size((data,)) == 20000

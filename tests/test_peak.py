"""The peak of a device, and what is said of bytes that the trace itself did not see."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.peak import peak_of
from ipyvram.recording import Device, Recording
from ipyvram.report_rows import AFTER_TRACE
from ipyvram.stretches import stretches
from tests.test_analysis import samples, trace

WORKSPACE = 8_519_680
CARD = Device("cuda:0", "A card", 24 << 30)


def found(beyond, *sizes, device="cuda:0", environment=None, seen=None):
    """The peak of a trace of storages whose allocator counted ``beyond`` more."""
    traces = (trace(device, *sizes),) if sizes else ()
    counters = {} if beyond is None else {device: {"allocated_peak": sum(sizes) + beyond}}
    environment = {"cublas_workspace_bytes": str(WORKSPACE)} if environment is None else environment
    r = Recording(0, 200, devices=(CARD,), traces=traces, counters_end=counters, environment=environment)
    (stretch,) = stretches(r, device)
    return peak_of(stretch, device, seen, traced=bool(sizes))


def rows(peak):
    return {row.name: row.bytes for row in peak.unseen}


def test_without_counters_the_trace_is_the_truth():
    peak = found(None, 100, 200)
    assert (peak.bytes, peak.provenance, peak.unseen, peak.later) == (300, "exact", (), 0)


def test_what_has_the_size_of_cublas_workspaces_is_named_so_and_no_later_peak():
    peak = found(2 * WORKSPACE, 1000)
    assert rows(peak) == {"cuBLAS workspace": 2 * WORKSPACE}
    assert (peak.account["workspaces"], peak.account["other"], peak.later) == (2 * WORKSPACE, 0, 0)


def test_a_few_bytes_for_each_storage_are_the_allocators_rounding():
    peak = found(WORKSPACE + 1023, 1000, 1000)
    assert rows(peak) == {"cuBLAS workspace": WORKSPACE, "rounding of the allocator": 1023}
    assert not peak.later


def test_there_are_not_more_workspaces_than_threads_that_use_cublas():
    peak = found(5 * WORKSPACE, 1000)
    assert rows(peak) == {"cuBLAS workspace": 2 * WORKSPACE, AFTER_TRACE: 3 * WORKSPACE}
    assert peak.later


def test_cublaslt_has_a_workspace_beside_each_of_cublas_where_torch_gives_it_one():
    environment = {"cublas_workspace_bytes": str(WORKSPACE), "cublaslt_workspace_bytes": str(1 << 20)}
    peak = found(WORKSPACE + (3 << 20), 1000, environment=environment)
    assert rows(peak) == {"cuBLAS workspace": WORKSPACE, "cuBLASLt workspace": 1 << 20, AFTER_TRACE: 2 << 20}
    assert rows(found(1 << 20, 1000, environment=environment)) == {AFTER_TRACE: 1 << 20}
    assert peak.account["workspaces"] == WORKSPACE + (1 << 20)


@pytest.mark.parametrize(("beyond", "rest"), [(WORKSPACE + 1000, 1000), (WORKSPACE - 5000, 0), (1000, 1000)])
def test_where_each_product_has_its_own_workspace_one_of_them_is_a_temporary(beyond, rest):
    peak = found(beyond, 1000, 1000, environment={"product_workspace_bytes": str(WORKSPACE)})
    expected = {"cuBLAS workspace": beyond - rest, "rounding of the allocator": rest}
    assert rows(peak) == {name: size for name, size in expected.items() if size}
    assert (peak.account["temporaries"], peak.account["workspaces"], peak.later) == (2000 + beyond - rest, 0, 0)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_there_are_no_workspaces(device):
    assert rows(found(WORKSPACE, 1000, device=device)) == {AFTER_TRACE: WORKSPACE}


def test_nothing_is_guessed_without_a_trace():
    peak = found(WORKSPACE)
    assert (peak.bytes, peak.provenance, rows(peak)) == (WORKSPACE, "exact", {AFTER_TRACE: WORKSPACE})


def test_a_higher_sample_counts_where_the_allocator_says_nothing():
    peak = found(None, 100, seen=samples(allocated=[50.0, 100.0 + WORKSPACE]))
    assert (peak.bytes, peak.provenance) == (100 + WORKSPACE, "sampled")


@given(
    st.lists(st.integers(1, 1 << 20), min_size=1, max_size=5),
    st.integers(0, 1 << 26),
    st.sampled_from(["", "512"]),
    st.sampled_from(["", "1024"]),
)
def test_the_account_closes(sizes, beyond, workspace, own):
    environment = {"cublas_workspace_bytes": workspace, "cublaslt_workspace_bytes": own}
    peak = found(beyond, *sizes, environment=environment)
    assert sum(peak.account.values()) == peak.bytes == sum(sizes) + beyond
    assert sum(row.bytes for row in peak.unseen) == beyond

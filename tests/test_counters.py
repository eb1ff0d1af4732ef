"""Counters of torch and the system; CUDA's are answered by stand-ins for torch's own entry points."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import torch

from ipyvram.probes import counters


@pytest.fixture
def cuda(monkeypatch):
    """Two cards, one of them used: what torch's counters look like there."""

    def stats(index):
        used = 1000 if index == 1 else 0
        amount = {"all": {"current": used, "peak": 2 * used, "allocated": 9, "freed": 9}, "small_pool": {"current": 1}}
        names = ("allocated_bytes", "reserved_bytes", "active_bytes", "inactive_split_bytes")
        return dict.fromkeys(names, amount) | {"num_alloc_retries": 3, "num_ooms": 1}

    monkeypatch.setattr(counters, "_cuda_seen", set())
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: True, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (300, 1000))
    return monkeypatch


def test_the_resident_size_is_psutils():
    ours, theirs = counters.read("cpu")["process_rss"], psutil.Process().memory_info().rss
    assert abs(ours - theirs) < 2**24


def test_the_resident_size_without_procfs(monkeypatch):
    monkeypatch.setattr(counters, "_open_statm", lambda: -1)
    monkeypatch.setattr(counters, "_statm", None)
    assert abs(counters.read("cpu")["process_rss"] - psutil.Process().memory_info().rss) < 2**24


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_reads_its_own_size():
    code = (
        "import os, psutil, sys\nfrom ipyvram.probes import counters\n"
        "counters.read('cpu')\n"
        "if os.fork() == 0:\n"
        "    keep = bytearray(500_000_000)\n"
        "    keep[::4096] = bytes([1]) * len(keep[::4096])\n"
        "    apart = abs(counters.read('cpu')['process_rss'] - psutil.Process().memory_info().rss)\n"
        "    os._exit(0 if apart < 2**24 else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cuda_counters_have_our_names(cuda):
    assert counters.read("cuda:1") == {
        "allocated": 1000, "allocated_peak": 2000, "reserved": 1000, "reserved_peak": 2000,
        "active": 1000, "inactive_split": 1000, "retries": 3, "ooms": 1,
    }  # fmt: skip


def test_a_counter_that_torch_does_not_have_is_left_out(cuda):
    cuda.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda index: {"allocated_bytes": {"all": {"current": 4}}})
    assert counters.read("cuda:0") == {"allocated": 4}


def test_only_devices_that_were_used_are_listed(cuda):
    assert counters.devices_in_use() == ["cpu", "cuda:1"]


def test_a_card_without_a_context_is_not_even_asked(cuda):
    cuda.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index == 0, raising=False)
    assert counters.devices_in_use() == ["cpu"]


def test_an_allocator_that_keeps_no_counters(cuda):
    def none(index):
        raise RuntimeError("pluggable does not yet support getDeviceStats")

    cuda.setattr(torch.cuda, "memory_stats_as_nested_dict", none)
    assert counters.read("cuda:1") == {}
    assert counters.devices_in_use() == ["cpu", "cuda:0", "cuda:1"]  # each has a context


def test_without_caching_a_context_is_use_enough(cuda):
    cuda.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    cuda.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index == 0, raising=False)
    assert counters.devices_in_use() == ["cpu", "cuda:0"]


def test_cuda_that_was_not_started_is_left_alone(cuda):
    def forbidden(*args):
        raise AssertionError("this makes a context")

    cuda.setattr(torch.cuda, "is_initialized", lambda: False)
    for name in ("memory_stats_as_nested_dict", "mem_get_info", "device_count"):
        cuda.setattr(torch.cuda, name, forbidden)
    assert counters.devices_in_use() == ["cpu"]
    assert counters.read("cuda:0") == counters.card_memory("cuda:0") == {}


def test_the_card_as_cuda_tells_it(cuda):
    assert counters.card_memory("cuda:1") == {"device_used": 700, "device_total": 1000}
    assert counters.card_memory("cuda:0") == {}  # not used by this process: asking would make a context there
    assert counters.card_memory("cpu") == {}


def test_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 5)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 8)
    assert "mps" in counters.devices_in_use()
    assert counters.read("mps") == {"allocated": 5, "driver_allocated": 8}


def test_other_devices_have_no_counters():
    assert counters.read("meta") == {}

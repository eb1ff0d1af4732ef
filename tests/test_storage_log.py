"""Rows of each device, its budget, and the words in which it ends."""

from __future__ import annotations

import pytest
import torch

from ipyvram.probes.storage_log import DeviceLogs, StorageLog


@pytest.mark.parametrize(
    ("device", "budget", "used", "size", "text"),
    [
        ("cpu", 1000, 800, 400, "CPU out of memory. Tried to allocate 400 bytes. cpu has a total capacity of 1000 bytes of "
         "which 200 bytes is free. Of the allocated memory 800 bytes is allocated by PyTorch."),
        ("cuda:1", 24 * 2**30, 20 * 2**30, 5 * 2**30, "CUDA out of memory. Tried to allocate 5.00 GiB. GPU 1 has a total "
         "capacity of 24.00 GiB of which 4.00 GiB is free. Of the allocated memory 20.00 GiB is allocated by PyTorch."),
    ],
)  # fmt: skip
def test_out_of_memory_in_the_words_of_cuda(device, budget, used, size, text):
    log = StorageLog(device, budget)
    log.bytes = used
    assert not log.fits(size)
    assert log.out_of_memory(size) == text
    refusal = log.refusal(size, 5, -1, -1)
    assert (refusal.requested_bytes, refusal.limit_bytes, refusal.free_bytes) == (size, budget, budget - used)


def test_the_budget_may_be_filled_to_the_last_byte():
    log = StorageLog("cpu", 1000)
    log.bytes = 600
    assert log.fits(400)
    assert not log.fits(401)
    assert StorageLog("cpu", None).fits(2**60)


def test_rows_of_threads_are_put_in_order():
    log = StorageLog("cpu", None)
    log.rows = [(0, 2, 8, 0, 20, -1, -1), (0, 1, 4, 0, 10, -1, -1)]
    trace = log.trace(0, 30, "3 steps")
    assert trace.events.address.tolist() == [1, 2]
    assert (trace.device, trace.source, trace.ended_by) == ("cpu", "storages", "3 steps")


def test_a_device_has_one_log_under_the_name_it_is_presented_by():
    logs = DeviceLogs({"cuda": 500, "cpu": 1000}, {"meta": "cuda:0"}, frozenset())
    meta, host = (torch.zeros(4, device=device).untyped_storage() for device in ("meta", "cpu"))
    assert logs.name(meta.device) == "cuda:0"
    log = logs.of(meta)
    assert log is logs.of(torch.zeros(8, device="meta").untyped_storage())
    assert (log.name, log.budget, logs.of(host).budget) == ("cuda:0", 500, 1000)
    log.rows = [(0, 1, 16, 0, 10, -1, -1)]
    assert [trace.device for trace in logs.traces(0, 20, "3 steps")] == ["cuda:0"]  # the other was not used


def test_what_takes_no_memory_and_what_another_probe_follows_has_no_log():
    logs = DeviceLogs({}, {}, frozenset({"cpu"}))
    assert logs.of(torch.zeros(4, device="meta").untyped_storage()) is None
    assert logs.of(torch.zeros(4).untyped_storage()) is None

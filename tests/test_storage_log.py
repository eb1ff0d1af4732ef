"""Rows of one device, its budget, and the words in which it ends."""

from __future__ import annotations

import pytest

from ipyvram.probes.storage_log import StorageLog


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

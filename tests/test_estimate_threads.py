"""Threads that an estimated cell starts: they are on the simulated card, and those of the cell end with the estimate."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import nn

import ipyvram

LOADER = """
import queue, threading, torch
class Loader:
    def __init__(self, batches, device):
        self.queue = queue.Queue(2)
        self.thread = threading.Thread(target=self.fill, args=(batches, device), daemon=True)
        self.thread.start()
    def fill(self, batches, device):
        for batch in batches:
            self.queue.put(batch.to(device))
        self.queue.put(None)
    def __iter__(self):
        while (batch := self.queue.get()) is not None:
            yield batch
"""
CELL = """
net = nn.Linear(256, 256).to("cuda")
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for batch in Loader((torch.randn(512, 256) for _ in range(20)), "cuda"):
    net(batch).sum().backward()
    optimizer.step()
"""


@pytest.mark.timeout(60)
def test_a_loader_with_a_thread_of_its_own_is_on_the_card_and_ends():
    namespace = {"nn": nn, "torch": torch}
    exec(compile(LOADER, "<ipython-input-loader>", "exec"), namespace)
    threads = set(threading.enumerate())
    report = ipyvram.estimate(CELL, card="T4", namespace=namespace)
    assert report.steps == 3
    assert report.peak["inputs"] >= 512 * 256 * 4
    assert set(threading.enumerate()) <= threads
    gc.collect()
    assert not [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (512, 256)]  # none in a queue


@pytest.mark.timeout(60)
def test_a_thread_of_a_library_goes_on_without_the_card():
    pool = """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
kept.append(pool)
x = pool.submit(lambda: torch.ones(1000, device="cuda")).result()
assert x.is_cuda
"""
    kept: list = []
    report = ipyvram.estimate(pool, card="T4", namespace={"torch": torch, "kept": kept, "hold": kept.append})
    assert report.peak_bytes >= 4000
    assert kept == []

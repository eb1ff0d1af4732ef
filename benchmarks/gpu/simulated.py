"""The simulated card of the tests, so that every check runs in full where there is no GPU; nothing it says is a measurement."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ipyvram import run as run_module
from ipyvram.caching_allocator import Settings
from tests.simulated_cuda import SimulatedCuda


class SimulatedCard:
    """In place of `card.RealCard`, while it is entered."""

    device = "cpu"
    simulated = True

    def __init__(self, capacity: int = 16 << 30, begun: bool = True) -> None:
        conf = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
        backend = "cudaMallocAsync" if "backend:cudaMallocAsync" in conf else "native"
        settings = Settings.from_conf(conf)
        self.cuda = SimulatedCuda(capacity=capacity, settings=settings, backend=backend, begun=begun)

    def __enter__(self) -> SimulatedCard:
        self.cuda.__enter__()
        self._open_cards: Any = run_module.open_cards
        run_module.open_cards = lambda: DriverView(self.cuda)  # type: ignore[assignment,return-value]
        return self

    def __exit__(self, *exc: object) -> None:
        run_module.open_cards = self._open_cards
        self.cuda.__exit__(None, None, None)

    def begin(self) -> None:
        self.cuda.begin()

    def name(self) -> str:
        return "simulated"

    def total(self) -> int:
        return self.cuda.capacity

    @contextlib.contextmanager
    def neighbour(self, count: int) -> Iterator[int]:
        self.cuda.others_bytes += count
        try:
            yield count
        finally:
            self.cuda.others_bytes -= count

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        with self.cuda.on(stream=1):
            yield

    def lend(self, tensor: Tensor) -> None:
        pass

    def graph(self, work: Callable[[], Tensor]) -> Callable[[], None]:
        with self.cuda.on(private=(0, 1)):
            self._static = work()
        return lambda: None

    def environment(self) -> list[str]:
        return ["--simulate"]


class DriverView:
    """In place of NVML: what the driver would say of simulated cards."""

    notes: tuple[str, ...] = ()

    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda

    def names(self) -> list[str]:
        return ["Simulated GPU"] * self.cuda.devices

    def processes(self, device: str) -> dict[int, int]:
        return {}

    def read(self, device: str) -> dict[str, float]:
        if not device.startswith("cuda"):
            return {}
        used, mine, others = self.cuda.used(int(device.partition(":")[2] or 0))
        total: Any = self.cuda.capacity
        return {"device_used": used, "device_total": total, "process_used": mine, "other_processes": others}

    def close(self) -> None:
        assert torch.cuda.is_available()

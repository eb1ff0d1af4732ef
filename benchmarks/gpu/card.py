"""What the checks need of a card beside torch: the real one here, a simulated one in `simulated`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

STUB = "NVIDIA Stub"  #: what `tests/cuda_stub.c` calls its card
_NEIGHBOUR = (
    "import sys, torch; x = torch.zeros({count}, dtype=torch.uint8, device='cuda'); torch.cuda.synchronize(); "
    "print('here', flush=True); sys.stdin.readline()"
)


class RealCard:
    """The first CUDA device."""

    device = "cuda"
    simulated = False

    def name(self) -> str:
        return torch.cuda.get_device_name(0)

    def total(self) -> int:
        return int(torch.cuda.get_device_properties(0).total_memory)

    def begin(self) -> None:
        """The program starts CUDA; here its first tensor does."""

    @contextlib.contextmanager
    def neighbour(self, count: int) -> Iterator[int]:
        """Another process that holds ``count`` bytes of the card meanwhile; gives what it surely takes."""
        command = [sys.executable, "-c", _NEIGHBOUR.format(count=count)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "here":
                raise RuntimeError("the other process did not start")
            yield count
        finally:
            process.communicate("\n", timeout=60)

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        """Work of the block runs on another stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def lend(self, tensor: Tensor) -> None:
        """Tell the allocator that the current stream uses a tensor made on another one."""
        tensor.record_stream(torch.cuda.current_stream())

    def graph(self, work: Callable[[], Tensor]) -> Callable[[], None]:
        """Capture ``work``; what is returned replays it."""
        with self.side_stream():
            work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._static = work()
        return graph.replay

    def environment(self) -> list[str]:
        """Arguments for a child process of this script."""
        return []

"""A program in, its recording and report out, with torch's own counters for the same stretch beside them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ipyvram.analysis import analyse
from ipyvram.options import from_keywords
from ipyvram.recording import Recording
from ipyvram.report import Report
from ipyvram.run import Run


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes
    ----------
    allocated_peak, reserved_peak : int
        ``max_memory_allocated`` and ``max_memory_reserved`` of the stretch.
    optimizer : dict
        Bytes of distinct storages that optimizers held after their last step: ``parameters``, ``optimizer_state``.
    """

    recording: Recording
    report: Report
    error: BaseException | None
    allocated_peak: int
    reserved_peak: int
    optimizer: dict[str, int]
    largest_parameter: int  #: bytes of the largest that an optimizer trains


def baseline() -> int:
    """Let go of what earlier cases left, cuBLAS workspaces too; gives the bytes that are still allocated."""
    gc.collect()
    torch.cuda.synchronize()
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def measure(program: Callable[[], object], **options: Any) -> Measured:
    """Run a program as ``%%vram`` does, traced from end to end unless told otherwise."""
    baseline()
    with _OptimizerBytes() as optimizer:
        run = Run(from_keywords(None, **{"trace_steps": 1000, **options}))
        run.start()
        error: BaseException | None = None
        try:
            program()
            torch.cuda.synchronize()
        except (Exception, KeyboardInterrupt) as caught:
            error = caught
        recording = run.stop(error)
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return Measured(
        recording, analyse(recording), error, int(peaks[0]), int(peaks[1]), optimizer.bytes, optimizer.largest
    )


class _OptimizerBytes:
    """Weighs what optimizers hold, by torch's own hook and not by ipyvram."""

    def __enter__(self) -> _OptimizerBytes:
        self.bytes: dict[str, int] = {}
        self.largest = 0
        self._seen: dict[int, dict[str, dict[int, int]]] = {}
        self._handle = register_optimizer_step_post_hook(self._weigh)
        return self

    def __exit__(self, *exc: object) -> None:
        self._handle.remove()
        for name in ("parameters", "optimizer_state"):
            found: dict[int, int] = {}
            for of_optimizer in self._seen.values():
                found |= of_optimizer[name]
            self.bytes[name] = sum(found.values())

    def _weigh(self, optimizer: torch.optim.Optimizer, *args: Any) -> None:
        held: dict[str, dict[int, int]] = {"parameters": {}, "optimizer_state": {}}
        for group in optimizer.param_groups:
            for p in group["params"]:
                held["parameters"][p.untyped_storage()._cdata] = p.untyped_storage().nbytes()
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor) and (value.dim() or value.is_cuda):
                    held["optimizer_state"][value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        self.largest = max([self.largest, *held["parameters"].values()])
        self._seen[id(optimizer)] = held

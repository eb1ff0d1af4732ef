"""`torch.cuda` as it answers on the simulated card: a table of replacements, put in place by `install`."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import torch

from ipyvram.cards import Card
from ipyvram.devices import default_device, keep_default_device
from ipyvram.patches import Patches
from ipyvram.simulated.front import CARD, META, place
from ipyvram.simulated.memory import DeviceMemory


class _Stream:
    """A stream, an event or a context that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device, self.cuda_stream, self.stream_id, self.device_index = CARD, 0, 0, 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def elapsed_time(self, end: Any) -> float:
        return 1.0  # milliseconds; finite and positive, so that rates can be computed

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    record = wait = synchronize = wait_event = wait_stream = _nothing

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()


def install(patches: Patches, card: Card, memory: DeviceMemory) -> None:
    """Let `torch.cuda`, `torch.accelerator` and the switches that ask for a device answer as on ``card``."""
    for name, value in _answers(card, memory).items():
        patches.set(torch.cuda, name, value)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "memory_stats",
                 "memory_summary", "mem_get_info", "empty_cache", "reset_peak_memory_stats", "_record_memory_history",
                 "_dump_snapshot", "_snapshot", "memory_snapshot", "set_per_process_memory_fraction"):  # fmt: skip
        patches.set(torch.cuda.memory, name, getattr(torch.cuda, name, _nothing))
    for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
        patches.set(torch.cuda.nvtx, name, _nothing)
    patches.set(torch.cuda.nvtx, "range", lambda *a, **k: contextlib.nullcontext())
    patches.set(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    patches.set(torch.backends.mps, "is_available", lambda: False)
    _default_device(patches)
    _accelerator(patches, memory)


def _accelerator(patches: Patches, memory: DeviceMemory) -> None:
    """The same questions under their newer names (torch 2.6 and later)."""
    module = getattr(torch, "accelerator", None)
    if module is None:
        return
    answers: dict[str, Any] = {
        "is_available": lambda: True, "current_accelerator": lambda *a, **k: torch.device("cuda"),
        "device_count": lambda: 1, "current_device_index": _zero, "current_device_idx": _zero,
        "current_stream": lambda *a, **k: _Stream(), "device_index": lambda *a, **k: contextlib.nullcontext(),
        "memory_allocated": lambda *a, **k: memory.allocated, "max_memory_allocated": lambda *a, **k: memory.peak,
        "memory_reserved": lambda *a, **k: memory.peak, "max_memory_reserved": lambda *a, **k: memory.peak,
        "empty_cache": memory.empty_cache,
    }  # fmt: skip
    for name in getattr(module, "__all__", ()):
        patches.set(module, name, answers.get(name, _nothing))


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _answers(card: Card, memory: DeviceMemory) -> dict[str, Any]:
    properties = SimpleNamespace(
        name=card.name, total_memory=card.total_bytes, major=card.capability[0], minor=card.capability[1],
        multi_processor_count=card.multiprocessors, max_threads_per_multi_processor=card.threads_per_multiprocessor,
        warp_size=32, is_integrated=False, is_multi_gpu_board=False, uuid="", gcnArchName="", L2_cache_size=0,
    )  # fmt: skip

    def stats(*args: Any, **kwargs: Any) -> dict[str, int]:
        now, peak = memory.allocated, memory.peak
        return {
            "allocated_bytes.all.current": now, "allocated_bytes.all.peak": peak,
            "reserved_bytes.all.current": peak, "reserved_bytes.all.peak": peak,
            "active_bytes.all.current": now, "active_bytes.all.peak": peak, "num_alloc_retries": 0, "num_ooms": 0,
        }  # fmt: skip

    def reset(*args: Any, **kwargs: Any) -> None:
        memory.peak = memory.allocated

    state = torch.zeros(16, dtype=torch.uint8)
    return {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": _zero, "is_initialized": lambda: True,
        "init": _nothing, "_lazy_init": _nothing, "set_device": _nothing, "synchronize": _nothing,
        "empty_cache": memory.empty_cache, "ipc_collect": _nothing, "manual_seed": _nothing, "manual_seed_all": _nothing, "seed": _nothing, "seed_all": _nothing,
        "initial_seed": _zero, "get_device_name": lambda *a, **k: card.name,
        "get_device_capability": lambda *a, **k: card.capability, "get_device_properties": lambda *a, **k: properties,
        "get_rng_state": lambda *a, **k: state.clone(), "get_rng_state_all": lambda: [state.clone()],
        "set_rng_state": _nothing, "set_rng_state_all": _nothing,
        "is_bf16_supported": lambda *a, **k: card.capability >= (8, 0) or k.get("including_emulation", True),
        "memory_allocated": lambda *a, **k: memory.allocated, "max_memory_allocated": lambda *a, **k: memory.peak,
        "memory_reserved": lambda *a, **k: memory.peak, "max_memory_reserved": lambda *a, **k: memory.peak,
        "memory_stats": stats, "memory_summary": lambda *a, **k: "", "memory_snapshot": lambda *a, **k: [],
        "reset_peak_memory_stats": reset, "reset_max_memory_allocated": reset, "reset_accumulated_memory_stats": _nothing,
        "mem_get_info": lambda *a, **k: (max(0, card.total_bytes - memory.allocated - card.context_bytes), card.total_bytes),
        "utilization": _zero, "temperature": _zero, "power_draw": _zero, "memory_usage": _zero,
        "set_per_process_memory_fraction": _nothing, "device": lambda *a, **k: contextlib.nullcontext(),
        "Stream": _Stream, "Event": _Stream, "stream": lambda *a, **k: _Stream(),
        "current_stream": lambda *a, **k: _Stream(), "default_stream": lambda *a, **k: _Stream(),
        "_record_memory_history": _nothing, "_dump_snapshot": _nothing, "_snapshot": lambda *a, **k: {},
        "current_blas_handle": _zero, "is_current_stream_capturing": lambda: False,
    }  # fmt: skip


def _default_device(patches: Patches) -> None:
    """``torch.set_default_device("cuda")`` in the cell, or in an earlier one, means the card."""
    set_default, before = torch.set_default_device, default_device()
    patches.later(keep_default_device())
    if before is not None and place(before) == META:
        set_default(META)
    patches.set(torch, "set_default_device", lambda device: set_default(place(device)))

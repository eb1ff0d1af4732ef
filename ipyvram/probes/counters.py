"""The counters torch and the system keep anyway, cheap enough to read 20 times a second: a device in, figures out.

Nothing here initialises a device: a process that has not touched CUDA has no context because of us.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch

#: Our names for the entries of torch's nested counter dict; bytes, except the two counts at the end.
_CUDA = {
    "allocated": ("allocated_bytes", "all", "current"),
    "allocated_peak": ("allocated_bytes", "all", "peak"),
    "reserved": ("reserved_bytes", "all", "current"),
    "reserved_peak": ("reserved_bytes", "all", "peak"),
    "active": ("active_bytes", "all", "current"),
    "inactive_split": ("inactive_split_bytes", "all", "current"),
    "retries": ("num_alloc_retries",),
    "ooms": ("num_ooms",),
}

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
_statm: tuple[int, int] | None = None  # process id, file descriptor
_process = psutil.Process()
_cuda_seen: set[int] = set()  # once a device was used it stays of interest to this process


def read(device: str) -> dict[str, int]:
    """Counters of one device now.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda:N`` or ``mps``.

    Returns
    -------
    dict of str to int
        CUDA: ``allocated``, ``reserved``, their ``…_peak``, ``active``, ``inactive_split`` (bytes), ``retries``,
        ``ooms`` (counts). MPS: ``allocated``, ``driver_allocated``. CPU: ``process_rss``. Empty where nothing counts.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return _read_cuda(int(index or 0))
    if kind == "mps":
        return {
            "allocated": int(torch.mps.current_allocated_memory()),
            "driver_allocated": int(torch.mps.driver_allocated_memory()),
        }
    return {"process_rss": _rss()} if kind == "cpu" else {}


def card_memory(device: str) -> dict[str, int]:
    """``device_used`` and ``device_total`` as CUDA itself tells; empty unless this process already uses the device.

    For machines without NVML. `mem_get_info` would make a context on a device that has none.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not torch.cuda.is_initialized() or not _cuda_used(int(index or 0)):
        return {}
    free, total = torch.cuda.mem_get_info(int(index or 0))
    return {"device_used": int(total - free), "device_total": int(total)}


def devices_in_use() -> list[str]:
    """``cpu``, and every accelerator on which this process has allocated something through torch."""
    found = ["cpu"]
    if torch.cuda.is_initialized():
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count()) if _cuda_used(index)]
    if torch.backends.mps.is_available() and torch.mps.current_allocated_memory():
        found.append("mps")
    return found


def _cuda_used(index: int) -> bool:
    if index not in _cuda_seen:
        has_context = getattr(torch._C, "_cuda_hasPrimaryContext", None)
        if has_context is not None and not has_context(index):
            return False  # one cheap question instead of a hundred counters, for each idle card of eight
        figures = _read_cuda(index)
        counts = "reserved_peak" in figures and os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") != "1"
        if not (figures["reserved_peak"] if counts else has_context is not None):
            return False  # where torch does not count, to have a context is to be in use
        _cuda_seen.add(index)
    return True


def _read_cuda(index: int) -> dict[str, int]:
    if not torch.cuda.is_initialized():
        return {}
    try:
        stats: dict[str, Any] = torch.cuda.memory_stats_as_nested_dict(index)
    except RuntimeError:  # an allocator of the user's own keeps none
        return {}
    found = {}
    for name, path in _CUDA.items():
        value: Any = stats
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[name] = int(value)
    return found


def _rss() -> int:
    """Resident bytes of this process: one read of an open file where there is procfs, a quarter of what psutil takes."""
    global _statm, _process
    if _statm is None or _statm[0] != os.getpid():  # a fork has its own memory
        _statm = (os.getpid(), _open_statm())
        _process = psutil.Process()
    if _statm[1] >= 0:
        return int(os.pread(_statm[1], 64, 0).split()[1]) * _PAGE_BYTES
    return int(_process.memory_info().rss)


def _open_statm() -> int:
    try:
        return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return -1  # not Linux

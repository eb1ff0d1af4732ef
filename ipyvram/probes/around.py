"""Who else takes memory: other processes on the card and pinned host memory, as `Observation`s for `findings.allocator`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from ipyvram.recording import Observation


def processes(held: Mapping[int, int], device: str) -> list[Observation]:
    """Processes other than this one.

    Parameters
    ----------
    held : mapping of int to int
        PID → bytes of the card, as NVML gives them.
    """
    try:
        children = {child.pid for child in psutil.Process().children(recursive=True)}
    except psutil.Error:
        children = set()
    return [
        Observation("process", count, _name(pid), "worker" if pid in children else "other", pid, device)
        for pid, count in held.items()
        if pid != os.getpid() and count
    ]


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # another container's, or gone
        return "unknown"


def pinned_host() -> list[Observation]:
    """Page-locked host memory that torch's host allocator holds; nothing where torch does not tell."""
    read: Any = getattr(torch.cuda, "host_memory_stats", None)
    if read is None or not torch.cuda.is_initialized():
        return []
    held = int(read().get("allocated_bytes.current", 0))
    return [Observation("pinned_host", held)] if held else []

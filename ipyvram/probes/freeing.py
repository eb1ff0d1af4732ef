"""``%vram free``: releases what it is told to and nothing else; gives back what that really freed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ipyvram.probes import counters, residents, roots


class Freed(NamedTuple):
    """What one release came to: bytes of tensors that are gone, bytes of cache given back to the driver."""

    what: str
    tensor_bytes: int
    cache_bytes: int


def _traceback(namespace: Any) -> None:
    roots.forget_errors(namespace)
    gc.collect()  # IPython's formatter leaves cycles that hold the frames, and the closures of their functions


def _cycles(namespace: Any) -> None:
    gc.collect()


def _cache(namespace: Any) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


#: Flag of ``%vram free`` → what it releases, and how.
RELEASES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "--traceback": ("the frames of the last error, with reference cycles", _traceback),
    "--out": ("Out and _", roots.forget_outputs),
    "--cycles": ("reference cycles (gc.collect)", _cycles),
    "--cache": ("the allocator's cache (empty_cache)", _cache),
}


def free(flags: list[str], namespace: dict[str, Any]) -> list[Freed]:
    """Release in the order of `RELEASES`, measuring before and after each."""
    done = []
    devices = counters.devices_in_use()
    before = _figures(devices)
    for flag, (what, release) in RELEASES.items():
        if flag in flags:
            release(namespace)
            after = _figures(devices)
            done.append(Freed(what, before[0] - after[0], before[1] - after[1]))
            before = after
    return done


def _figures(devices: list[str]) -> tuple[int, int]:
    """Bytes of tensors, and bytes of cache, on all devices."""
    tensors = sum(residents.total_bytes(device) for device in devices)
    read = [counters.read(device) for device in devices if device.startswith("cuda")]
    return tensors, sum(r.get("reserved", 0) - r.get("allocated", 0) for r in read)

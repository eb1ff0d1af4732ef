"""A limit on memory while a trial runs: bytes come in; going beyond them raises `torch.OutOfMemoryError` inside torch.

On CUDA the allocator's own switch does it, elsewhere the storage trace's budget. The same switch makes a big card behave
as a small one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

#: Device types whose memory the storage trace counts.
_TRACED = ("cpu", "mps")


def budget(limit_bytes: int | None) -> dict[str, int] | None:
    """The limit for the storage trace; none where there is a GPU: then the CPU's memory is not what is to be filled."""
    return None if limit_bytes is None or torch.cuda.is_available() else dict.fromkeys(_TRACED, limit_bytes)


def make_ready() -> None:
    """Start CUDA where there is a GPU: until then the allocator takes no limit, and the first trial would run without."""
    if torch.cuda.is_available():
        torch.cuda.init()


@contextlib.contextmanager
def memory_fraction(limit_bytes: int | None) -> Iterator[None]:
    """Let everything on the current CUDA device take ``limit_bytes`` at most; afterwards what was set before.

    The switch counts what the allocator holds, so the context and other processes are taken off first.
    """
    if limit_bytes is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        yield
        return
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    restore = saved_fractions()
    read = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    own = read(device) if read is not None else 1.0  # a limit of the user's own stays one
    torch.cuda.set_per_process_memory_fraction(min(1.0, own, max(0.0, limit_bytes - outside_bytes()) / total), device)
    try:
        yield
    finally:
        restore()


def outside_bytes() -> int:
    """What the current CUDA device holds beside this process's allocator: the context and other processes."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return 0
    free, total = torch.cuda.mem_get_info()
    return max(0, int(total - free - torch.cuda.memory_reserved()))


def saved_fractions() -> Callable[[], None]:
    """What puts the allocator's fractions back as they are now, on every device that this process uses."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return lambda: None
    read = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    has_context = getattr(torch._C, "_cuda_hasPrimaryContext", lambda device: True)
    devices = [device for device in range(torch.cuda.device_count()) if has_context(device)]
    with _same_device():
        # Without a limit, the allocator of cudaMallocAsync says a number beyond all bounds, which it does not take back.
        fractions = {device: min(1.0, read(device)) if read is not None else 1.0 for device in devices}

    def restore() -> None:
        with _same_device():
            for device, fraction in fractions.items():
                torch.cuda.set_per_process_memory_fraction(fraction, device)

    return restore


@contextlib.contextmanager
def _same_device() -> Iterator[None]:
    """Torch 2.6 makes the device current whose fraction is asked for or set, and leaves it so."""
    current = torch.cuda.current_device()
    try:
        yield
    finally:
        if torch.cuda.current_device() != current:
            torch.cuda.set_device(current)

"""Torch's devices: the one a user names, what it is called, and the environment of a run. Makes no CUDA context."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

import ipyvram
from ipyvram.probes.beginning import in_use
from ipyvram.probes.graph import SHOWN
from ipyvram.recording import Device, Samples, Trace

#: How devices were counted when there were none: a machine gets none later, and torch would look for its driver each time.
_none_found: tuple[object, str | None] | None = None


def since(*version: int) -> bool:
    """Whether this torch is of a version, such as ``2, 7``, or of a later one."""
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= version


def cuda_possible() -> bool:
    """Whether a cell may allocate on an NVIDIA GPU.

    Until CUDA is in use its devices are counted, which torch does through NVML: `is_available` starts the driver, after
    which processes that the cell forks cannot use CUDA.
    """
    global _none_found
    asked = torch.cuda.device_count, os.environ.get("CUDA_VISIBLE_DEVICES")
    if in_use() or (asked != _none_found and torch.cuda.device_count() > 0):
        return True
    _none_found = asked
    return False


def check_device(device: str) -> torch.device:
    """The device ``--device`` names.

    Raises
    ------
    ValueError
        Torch does not know it, or it is not there.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device {device}: torch knows no such device; write cpu, cuda, cuda:1 or mps") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ValueError(f"--device {device}: no CUDA device is available here; leave the option out or write cpu")
        if found.index is not None and found.index >= count:
            raise ValueError(f"--device {device}: there are {count} CUDA devices, numbered from 0")
    elif found.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"--device {device}: MPS is not available here; leave the option out or write cpu")
    elif found.type != "cpu":
        raise ValueError(f"--device {device}: cells can be measured on cpu, cuda and mps")
    return found


def use_device(device: str | None) -> Callable[[], None]:
    """Make ``device`` torch's default and current device; what is returned puts back what was."""
    if device is None:
        return lambda: None
    wanted = check_device(device)
    put_back = keep_default_device()
    current = torch.cuda.current_device() if wanted.type == "cuda" and in_use() else None
    torch.set_default_device(wanted)
    if wanted.type == "cuda":
        torch.cuda.set_device(wanted)

    def undo() -> None:
        put_back()
        if wanted.type == "cuda":
            torch.cuda.set_device(0 if current is None else current)  # 0 is what a process starts with

    return undo


def _holder() -> Any:
    return getattr(torch, "_GLOBAL_DEVICE_CONTEXT", None)


def default_device() -> torch.device | None:
    """torch's default device; None where none is set."""
    context = getattr(_holder(), "device_context", None)
    return None if context is None else context.device


def keep_default_device() -> Callable[[], None]:
    """What puts torch's default device back as it is now."""
    holder, before, set_default = _holder(), default_device(), torch.set_default_device
    untouched = not hasattr(holder, "device_context")

    def put_back() -> None:
        if default_device() != before:
            set_default(before)
        if untouched and hasattr(holder, "device_context"):
            del holder.device_context  # torch 2.6 cannot tell its default device once it was set to None

    return put_back


def describe(name: str) -> Device:
    """Name, memory and capability of a device that is in use."""
    if not name.startswith("cuda"):
        return Device(name, (platform.processor() or "CPU") if name == "cpu" else name)
    properties = torch.cuda.get_device_properties(name)
    uuid = getattr(properties, "uuid", None)
    return Device(
        name,
        properties.name,
        properties.total_memory,
        None if uuid is None else str(uuid),
        (properties.major, properties.minor),
    )


def environment() -> dict[str, str]:
    """Versions of what the cell ran on."""
    found = {
        "ipyvram": ipyvram.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.system(),
    }
    if "IPython" in sys.modules:
        found["ipython"] = str(sys.modules["IPython"].__version__)
    if not SHOWN:  # what hooks packed, and what earlier cells left in graphs, shows from lifetimes alone
        found["saved_tensors"] = "unpacked"
    if torch.backends.cudnn.benchmark:
        found["cudnn_benchmark"] = "True"
    if torch.version.cuda and cuda_possible():
        found["cuda"] = torch.version.cuda
    if in_use() and keeps_workspaces():
        found["cublas_workspace_bytes"] = str(_cublas_workspace_bytes())
        if own := cublaslt_workspace_bytes():
            found["cublaslt_workspace_bytes"] = str(own)
    elif in_use():
        found["product_workspace_bytes"] = str(_cublas_workspace_bytes())
    return found


def keeps_workspaces() -> bool:
    """Whether cuBLAS's workspaces stay until the process ends, one for each handle and stream.

    Since torch 2.15 each product has one for its own length unless the program says otherwise
    (`isCUDABlasWorkspaceCachingEnabled`, CublasHandlePool.cpp; pytorch pull request 194311). Nothing of torch in Python tells.
    """
    return not since(2, 15) or os.environ.get("TORCH_CUBLAS_WORKSPACE_CACHE") == "1"


def cublas_handles() -> int:
    """Workspaces of cuBLAS that this process keeps on the current device, by their size: one a thread and stream."""
    if not in_use() or not keeps_workspaces():
        return 0
    size = _cublas_workspace_bytes()
    blocks = [block for segment in torch.cuda.memory_snapshot() for block in segment["blocks"]]
    return sum(block["state"] == "active_allocated" and block["requested_size"] == size for block in blocks)


def _cublas_workspace_bytes() -> int:
    """Of one handle and stream on the current device.

    Newer torch tells. Before, it is what `getChosenWorkspaceSize` (CublasHandlePool.cpp) reads out of
    ``CUBLAS_WORKSPACE_CONFIG``: pairs of KiB and how many of them.
    """
    ask = getattr(torch._C, "_cuda_getCublasWorkspaceSize", None)
    if ask is not None:
        return int(ask())
    pairs = [int(n) for n in re.findall(r":(\d+)", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))]
    if pairs and len(pairs) % 2 == 0:
        return sum(size * count for size, count in zip(pairs[::2], pairs[1::2], strict=True)) * 1024
    return 32 << 20 if torch.cuda.get_device_capability() == (9, 0) else 8_519_680


def cublaslt_workspace_bytes() -> int:
    """Of one handle and stream, where cuBLASLt has a buffer beside the one of cuBLAS; else 0.

    Torch that tells the size lets it share that one unless the program says otherwise. Before, it is what
    `_parseChosenWorkspaceSize` (CUDABlas.cpp) reads in KiB.
    """
    ask = getattr(torch._C, "_cuda_getCublasLtWorkspaceSize", None)
    if os.environ.get("TORCH_CUBLASLT_UNIFIED_WORKSPACE", "0" if ask is None else "1") != "0":
        return 0
    chosen = os.environ.get("CUBLASLT_WORKSPACE_SIZE", "")
    return int(ask()) if ask is not None else (int(chosen) if chosen.isdigit() else 1024) * 1024


def used_cuda(traces: tuple[Trace, ...], samples: tuple[Samples, ...]) -> bool:
    """Whether a cell used a GPU through torch."""
    return any(trace.device.startswith("cuda") and len(trace.events) for trace in traces) or any(
        s.device.startswith("cuda") and "allocated" in s.columns and s.columns["allocated"].max() > 0 for s in samples
    )

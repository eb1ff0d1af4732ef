"""The NVIDIA driver's view of a card: used and total memory, per process, utilisation. A torch device in, figures out.

Cards are matched by UUID and never by index: `CUDA_VISIBLE_DEVICES` renumbers torch's devices, and CUDA's own order is
not NVML's. Only NVML is asked, which makes no CUDA context.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch

try:
    import pynvml
except ImportError:  # declared, but whatever keeps it away must not keep ipyvram away
    pynvml = None

_COMPUTE = tuple(f"nvmlDeviceGetComputeRunningProcesses{version}" for version in ("_v3", "_v2", ""))
_GRAPHICS = tuple(f"nvmlDeviceGetGraphicsRunningProcesses{version}" for version in ("_v3", "_v2", ""))
_PROCESSES_EVERY_S = 0.25  # to list processes takes the driver far longer than the rest: not in every sample
_PATIENCE = 3  # refusals in a row after which a figure is not asked for again
#: What looked for the driver in vain: for each cell, the system would look through all its libraries again.
_none_found: Any = None
_ONE_FIGURE = ", so context and other processes are one figure"


def open_cards() -> Cards:
    """Connect to the driver.

    Raises
    ------
    RuntimeError
        There is no NVIDIA driver here, or it does not answer; the message says which.
    """
    global _none_found
    if pynvml is None:
        raise RuntimeError("nvidia-ml-py is not installed")
    try:
        if _none_found is not pynvml.nvmlInit:
            pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        _none_found = pynvml.nvmlInit
    except pynvml.NVMLError as error:
        raise RuntimeError(f"the NVIDIA driver does not answer ({error})") from None
    if _none_found is pynvml.nvmlInit:
        raise RuntimeError("no NVIDIA driver is installed here")
    return Cards()


class Cards:
    """Reads cards until `close`.

    Attributes
    ----------
    notes : list of str
        What the driver would not tell, one line each.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._handles: dict[str, Any] = {}  # torch device → NVML handle, None where no card matches
        self._listed: dict[str, float] = {}  # device → when its processes were last listed
        self._refusals: dict[tuple[str, str], int] = {}  # (device, figure) → how often in a row

    def count(self) -> int:
        """Cards the driver sees, also those hidden from torch."""
        return int(pynvml.nvmlDeviceGetCount())

    def names(self) -> list[str]:
        """Product names of all cards, in NVML's order."""
        handles = (pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(self.count()))
        return [_text(pynvml.nvmlDeviceGetName(handle)) for handle in handles]

    def read(self, device: str) -> dict[str, float]:
        """Figures of the card behind a torch device; what the driver does not give is left out.

        Returns
        -------
        dict of str to float
            ``device_used``, ``device_total`` in bytes; ``gpu_utilization_percent``, ``memory_utilization_percent``; four
            times a second also ``process_used`` and ``other_processes`` in bytes.
        """
        handle = self._handle(device) if device.startswith("cuda") else None
        if handle is None:
            return {}
        found: dict[str, float] = {}
        found |= self._ask(device, "memory", _memory, handle)
        found |= self._ask(device, "utilisation", _utilization, handle)
        now = time.monotonic()
        if now >= self._listed.get(device, -math.inf) + _PROCESSES_EVERY_S:
            self._listed[device] = now
            found |= self._ask(device, "per-process memory", self._processes, handle)
        return found

    def processes(self, device: str) -> dict[int, int]:
        """PID → bytes of the card behind a torch device; empty where the driver does not tell."""
        handle = self._handle(device) if device.startswith("cuda") else None
        try:
            return {} if handle is None else {pid: used for pid, used in _used_by(handle).items() if used is not None}
        except pynvml.NVMLError:
            return {}

    def close(self) -> None:
        """Let go of the driver; others who use NVML in this process keep it."""
        self._handles.clear()
        pynvml.nvmlShutdown()

    def _ask(
        self, device: str, figure: str, query: Callable[[Any], dict[str, float] | str], handle: Any
    ) -> dict[str, float]:
        """One query; a driver that refuses is noted, and after a while not asked again."""
        refusals = self._refusals.get((device, figure), 0)
        if refusals >= _PATIENCE:
            return {}
        try:
            answer = query(handle)
        except pynvml.NVMLError as error:
            answer = str(error)
        if isinstance(answer, dict):
            if refusals:
                del self._refusals[device, figure]
            return answer
        self._refusals[device, figure] = refusals + 1
        self._note(f"NVML gives no {figure} of {device}: {answer}")
        return {}

    def _processes(self, handle: Any) -> dict[str, float] | str:
        """This process and all others; a container's PIDs are not the driver's, and WDDM gives no figures."""
        used = _used_by(handle)
        if any(amount is None for amount in used.values()):
            return f"this driver has no figure per process (Windows, WSL){_ONE_FIGURE}"
        mine = used.pop(os.getpid(), None)
        if mine is None and len(used) == 1 and torch.cuda.is_initialized():
            _, mine = used.popitem()  # this process is on the card, so the only one there is this one
            self._note("NVML lists one process, under another PID than ours (a container): taken to be this one")
        if mine is None:
            return f"it lists no process with our PID (a container, WSL){_ONE_FIGURE}"
        return {"process_used": float(mine), "other_processes": float(sum(amount or 0 for amount in used.values()))}

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _handle(self, device: str) -> Any:
        if device not in self._handles:
            handle = self._find(device)
            if handle is None and not torch.cuda.is_initialized():
                return None  # its UUID may yet become known
            self._handles[device] = handle
        return self._handles[device]

    def _find(self, device: str) -> Any:
        try:
            names = _uuids(device)
            for uuid in names:
                handle = _handle_of(uuid)
                if handle is not None:
                    return handle
            self._note(f"NVML knows no card with the UUID of {device} ({', '.join(names) or 'unknown'})")
        except pynvml.NVMLError as error:
            self._note(f"NVML could not look for {device}: {error}")
        return None


# -- which card -------------------------------------------------------------------------------------------------------


def _uuids(device: str) -> list[str]:
    """What the card or slice behind a torch device may be called in NVML, the surest name first."""
    index = int(device.partition(":")[2] or 0)
    entry = _visible_entry(index)
    found = [entry] if entry.startswith("MIG-") else []  # torch may report the parent card for a slice
    if torch.cuda.is_initialized():
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        if uuid is not None:
            bare = str(uuid).removeprefix("GPU-")
            found += [f"MIG-{bare}", f"GPU-{bare}"]
    if not found and entry.startswith("GPU-"):
        found.append(entry)
    return found


def _visible_entry(index: int) -> str:
    """Entry of `CUDA_VISIBLE_DEVICES` that torch's device ``index`` is, empty where the variable does not say."""
    entries = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return entries[index] if index < len(entries) else ""


def _handle_of(uuid: str) -> Any:
    """The card or MIG slice with this UUID, or with the only UUID that begins so; None where there is none."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
        pass
    matching = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        matching += [h for h in (card, *_slices(card)) if _text(pynvml.nvmlDeviceGetUUID(h)).startswith(uuid)]
    return matching[0] if len(matching) == 1 else None  # CUDA accepts a beginning that is unique


def _slices(card: Any) -> list[Any]:
    """MIG slices of a card; none where MIG is off or unknown to the driver."""
    found = []
    try:
        if pynvml.nvmlDeviceGetMigMode(card)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return []
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index))
            except pynvml.NVMLError_NotFound:
                continue
    except pynvml.NVMLError:
        pass
    return found


# -- what it tells ----------------------------------------------------------------------------------------------------


def _memory(handle: Any) -> dict[str, float] | str:
    try:
        # What nvidia-smi shows: without what the driver keeps for itself, which torch's total lacks as well.
        info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, AttributeError):
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)  # drivers before 510
    return {"device_used": float(info.used), "device_total": float(info.total)}


def _utilization(handle: Any) -> dict[str, float] | str:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return {"gpu_utilization_percent": float(rates.gpu), "memory_utilization_percent": float(rates.memory)}


def _used_by(handle: Any) -> dict[int, int | None]:
    """PID → bytes, None where the driver has no figure."""
    used: dict[int, int | None] = {}
    for process in [*_running(handle, _COMPUTE), *_running(handle, _GRAPHICS, optional=True)]:
        used[process.pid] = process.usedGpuMemory  # a process that computes and draws is listed twice
    return used


def _running(handle: Any, queries: tuple[str, ...], optional: bool = False) -> list[Any]:
    for name in queries:
        try:
            return list(getattr(pynvml, name)(handle))
        except (pynvml.NVMLError_FunctionNotFound, AttributeError):
            continue  # an older driver or binding
        except pynvml.NVMLError:
            if not optional:
                raise
    if optional:
        return []
    raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value

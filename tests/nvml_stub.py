"""The stub driver of `nvml_stub.c`, compiled here and loaded by the real ``pynvml`` under the driver's own name."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

from ipyvram.probes import nvml

SOURCE = Path(__file__).with_name("nvml_stub.c")
CARD, MIG_CARD, SLICE = (
    "11111111-aaaa-bbbb-cccc-000000000001",
    "22222222-aaaa-bbbb-cccc-000000000002",
    "MIG-33333333-aaaa-bbbb-cccc-000000000003",
)


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Stub:
    """A loaded stub; attributes that the C file declares as ``int`` are set through `set`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def set(self, **values: int) -> None:
        for name, value in values.items():
            ctypes.c_int.in_dll(self.library, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, name).value

    def processes(self, used: dict[int, int | None], kind: str = "process") -> None:
        """What runs on every card: PID → bytes, None for a driver that does not tell."""
        table = (_Process * 8).in_dll(self.library, "processes" if kind == "process" else kind)
        for row, (pid, amount) in zip(table, used.items(), strict=False):
            row.pid, row.used = pid, 2**64 - 1 if amount is None else amount
        self.set(**{f"{kind}_count": len(used)})


def load(folder: Path, *flags: str):
    """Compile, preload under the name ``libnvidia-ml.so.1``, hand over, and let go again (a generator for fixtures)."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to build the stub of NVML")
    path = folder / "libnvidia-ml.so.1"
    name = f"-Wl,-Bsymbolic,-soname,{path.name}"
    subprocess.run([compiler, "-shared", "-fPIC", name, *flags, "-o", str(path), str(SOURCE)], check=True)
    _forget()
    nvml._none_found = None
    library = ctypes.CDLL(str(path))  # once it is loaded, loading its soname finds it
    yield Stub(library)
    _forget()
    _unload(path.name)


def _unload(name: str) -> None:
    """Close the library as often as anybody opened it: torch looks for the driver too, and would keep it loaded."""
    for _ in range(100):
        try:
            handle = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)._handle
        except OSError:
            return  # it is gone
        _ctypes.dlclose(handle)  # what the line above opened
        _ctypes.dlclose(handle)
    raise RuntimeError(f"{name} cannot be unloaded: the next stub would not be seen")


def _forget() -> None:
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()

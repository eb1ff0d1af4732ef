"""torch's real CUDA on a machine without a card: builds `cuda_stub.c` and gives the environment that preloads it.

    python -m tests.cuda_stub COMMAND …      # for example: python -m tests.cuda_stub python benchmarks/gpu_check.py

Everything of torch above the CUDA runtime is the real thing: the caching allocator, its history and limits, streams, the
thread of the autograd engine, what each CUDA operator allocates. Kernels do not run and every number on the card is 0; time
means nothing; and what cuDNN would work in is 0 bytes unless set. Nothing found this way is a measurement of a GPU.

| variable | sets |
|---|---|
| ``IPYVRAM_STUB_BYTES`` | memory of the card, 16 GiB unless set |
| ``IPYVRAM_STUB_DEVICES`` | cards, 1 unless set |
| ``IPYVRAM_STUB_CAPABILITY`` | compute capability, 86 unless set |
| ``IPYVRAM_STUB_MULTIPROCESSORS`` | how many, 132 unless set |
| ``IPYVRAM_STUB_DOWNWARD`` | 1: each new segment lies below those before, as a driver may have it |
| ``IPYVRAM_STUB_CUDNN_WORKSPACE`` | what every convolution works in |
| ``IPYVRAM_STUB_CARD`` | a file by which processes see each other on the card |
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCES = [Path(__file__).with_name(name) for name in ("cuda_stub.c", "cuda_stub_libraries.c")]
_PRELOADED = ("libcuda.so.1", "libnvidia-ml.so.1")
#: NVIDIA's headers come with torch, but for this one, which only marks what nvcc must know.
_MARKS = "".join(
    f"#define {name}\n"
    for name in (
        *("CUDARTAPI", "CUDARTAPI_CDECL", "__host__", "__device__", "__device_builtin__", "__cudart_builtin__"),
        *("__device_builtin_texture_type__", "__device_builtin_surface_type__"),
    )
) + "".join(f"#define {name}(n) __attribute__((aligned(n)))\n" for name in ("__builtin_align__", "__align__"))


def missing() -> str | None:
    """Why there can be no stub here, or None."""
    if not sys.platform.startswith("linux"):
        return "the stub of CUDA is preloaded, which needs Linux"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if _compiler() is None:
        return "no C compiler here to build the stub of CUDA"
    return None if _headers() else "NVIDIA's headers are not installed beside this torch"


def build(folder: Path) -> dict[str, str]:
    """Compile into ``folder``; what to add to the environment of a process that is to have a card."""
    compiler, headers = _compiler(), _headers()
    assert compiler
    assert headers
    marks = folder / "include" / "crt" / "host_defines.h"
    marks.parent.mkdir(parents=True, exist_ok=True)
    marks.write_text(_MARKS, encoding="ascii")
    driver, nvml = (folder / name for name in _PRELOADED)
    major, minor = (int(part) for part in str(torch.version.cuda).split(".")[:2])
    flags = [f"-I{marks.parents[1]}", f"-I{headers}", f"-DVERSION={major * 1000 + minor * 10}", "-O1", "-w"]
    link = ["-shared", "-fPIC", "-Wl,-Bsymbolic", "-pthread"]
    sources = [str(source) for source in SOURCES]
    subprocess.run(
        [compiler, *link, *flags, f"-Wl,-soname,{driver.name}", "-o", str(driver), *sources, "-ldl"], check=True
    )
    through = ["-Wl,--no-as-needed", f"-Wl,-soname,{nvml.name}", "-o", str(nvml), str(driver)]  # finds all in the first
    subprocess.run([compiler, "-shared", *through], check=True)
    return {"LD_PRELOAD": f"{driver}:{nvml}", "IPYVRAM_STUB_CARD": str(folder / "card")}


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def _headers() -> Path | None:
    found = sorted(Path(torch.__file__).parents[1].glob("nvidia/*/include/cuda_runtime_api.h"))
    return found[0].parent if found else None


def main(command: list[str]) -> int:
    if why := missing():
        print(why)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        environment = build(Path(folder))
        return subprocess.run(command, env={**os.environ, **environment}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

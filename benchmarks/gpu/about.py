"""The card and the software that figures are of; nothing that tells one machine from another of its kind."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
import torchvision

import ipyvram
from benchmarks.gpu.card import STUB

_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")


def about(card: Any) -> dict[str, Any]:
    """For the head of the results. With the simulated card nothing is measured, nor with the stub of CUDA."""
    name = card.name()
    return {
        "simulated": card.simulated, "stub": name == STUB, "card": name, "card_bytes": card.total(), "driver": _driver(),
        "torch": str(torch.__version__), "torchvision": str(torchvision.__version__), "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "ipyvram": ipyvram.__version__, "python": platform.python_version(),
        "system": platform.system(), "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }  # fmt: skip


def is_rehearsal(found: dict[str, Any]) -> bool:
    """Whether what is said about a run shows that there was no card."""
    return bool(found["simulated"] or found.get("stub"))


def _driver() -> str | None:
    """The driver's version, where it tells it in procfs."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found.group() if found else None

"""The table of common cards: figures and where they are from, nothing else. `cards` finds a card in it.

Multiprocessors and compute capability are NVIDIA's ("CUDA GPUs" and the data sheets) or what the source prints beside the memory.
A card is here only where a figure of its memory was found; a name is the driver's own, with the memory behind it where the driver
calls cards of different memory the same.
"""

from __future__ import annotations

from typing import NamedTuple

_LOGS = "torch.cuda.get_device_properties, printed in public logs"
_ON_WINDOWS = "the same, but only of Windows or WSL, where it is up to 5% more than on Linux"
_LLAMA = "cudaGetDeviceProperties, printed by llama.cpp in public logs"
_QUERY = "CUDA's deviceQuery, printed in public logs"
_SAMPLES = "CUDA's deviceQuery, bottlerocket-os/bottlerocket pull request 3873"


def _message(thread: str) -> str:
    return f"total capacity in torch's out-of-memory message, {thread}"


class Row(NamedTuple):
    """One card. ``box_gb``: the figure on the box; ``mib``: what a program sees, and ``source`` where that is from."""

    name: str
    box_gb: int
    mib: float
    capability: tuple[int, int]
    multiprocessors: int
    source: str = _LOGS


#: Of cards with one model name and as much memory, the first is meant by that name.
TABLE = (
    # Pascal
    Row("NVIDIA GeForce GTX 1050 Ti", 4, 4095, (6, 1), 6, _ON_WINDOWS),
    Row("NVIDIA GeForce GTX 1060 6GB", 6, 6063, (6, 1), 10),
    Row("NVIDIA GeForce GTX 1070", 8, 8116, (6, 1), 15, _QUERY),
    Row("NVIDIA GeForce GTX 1080", 8, 8116, (6, 1), 20, _QUERY),
    Row("NVIDIA GeForce GTX 1080 Ti", 11, 11178, (6, 1), 28),
    Row("NVIDIA TITAN X (Pascal)", 12, 11.91 * 1024, (6, 1), 28, _message("microsoft/Bringing-Old-Photos-Back-to-Life issue 87")),
    Row("NVIDIA TITAN Xp", 12, 11.91 * 1024, (6, 1), 30, "totalMemory, printed by TensorFlow in public logs"),
    Row("Tesla P4", 8, 7612, (6, 1), 20, _QUERY),
    Row("Tesla P40", 24, 22919, (6, 1), 30, _QUERY),
    Row("Tesla P100-PCIE-16GB", 16, 16280, (6, 0), 56),
    # Volta
    Row("NVIDIA TITAN V", 12, 12034, (7, 0), 80, _QUERY),
    Row("Tesla V100-SXM2-16GB", 16, 16160, (7, 0), 80),
    Row("Tesla V100-SXM2-32GB", 32, 31.75 * 1024, (7, 0), 80, _message("uni-medical/SAM-Med3D issue 8")),
    # Turing
    Row("Tesla T4", 16, 15095, (7, 5), 40),
    Row("NVIDIA GeForce GTX 1650", 4, 3904, (7, 5), 14),
    Row("NVIDIA GeForce GTX 1650 Ti", 4, 4095, (7, 5), 16),
    Row("NVIDIA GeForce GTX 1660", 6, 5928, (7, 5), 22),
    Row("NVIDIA GeForce GTX 1660 SUPER", 6, 5928, (7, 5), 22),
    Row("NVIDIA GeForce GTX 1660 Ti", 6, 5936, (7, 5), 24),
    Row("NVIDIA GeForce RTX 2060", 6, 5918, (7, 5), 30),
    Row("NVIDIA GeForce RTX 2060 SUPER", 8, 7974, (7, 5), 34),
    Row("NVIDIA GeForce RTX 2070", 8, 7982, (7, 5), 36, _QUERY),
    Row("NVIDIA GeForce RTX 2070 SUPER", 8, 7972, (7, 5), 40),
    Row("NVIDIA GeForce RTX 2080", 8, 7949, (7, 5), 46, _QUERY),
    Row("NVIDIA GeForce RTX 2080 SUPER", 8, 7982, (7, 5), 48),
    Row("NVIDIA GeForce RTX 2080 Ti", 11, 11019, (7, 5), 68),
    Row("NVIDIA TITAN RTX", 24, 24212, (7, 5), 72),
    Row("Quadro RTX 4000", 8, 7982, (7, 5), 36, _QUERY),
    Row("Quadro RTX 5000", 16, 14910, (7, 5), 48, _QUERY),
    Row("Quadro RTX 6000", 24, 23.457 * 1024, (7, 5), 72),
    Row("Quadro RTX 8000", 48, 48593, (7, 5), 72),
    # Ampere
    Row("NVIDIA A100-PCIE-40GB", 40, 40326, (8, 0), 108),
    Row("NVIDIA A100-SXM4-40GB", 40, 40339.3125, (8, 0), 108, _SAMPLES),
    Row("NVIDIA A100-SXM4-80GB", 80, 79.25 * 1024, (8, 0), 108, _message("wbfwonderful/Vad-R1 issue 11")),
    Row("NVIDIA A30", 24, 24164, (8, 0), 56),
    Row("NVIDIA A10", 24, 22516, (8, 6), 72, _QUERY),
    Row("NVIDIA A10G", 24, 22587, (8, 6), 80),
    Row("NVIDIA A40", 48, 45416, (8, 6), 84),
    Row("NVIDIA RTX A2000 12GB", 12, 12017, (8, 6), 26),
    Row("NVIDIA RTX A4000", 16, 16117, (8, 6), 48),
    Row("NVIDIA RTX A4500", 20, 19.6 * 1024, (8, 6), 56),
    Row("NVIDIA RTX A5000", 24, 24248, (8, 6), 64),
    Row("NVIDIA RTX A6000", 48, 48676, (8, 6), 84),
    Row("NVIDIA GeForce RTX 3050 6GB", 6, 5803, (8, 6), 18, _QUERY),
    Row("NVIDIA GeForce RTX 3050 8GB", 8, 8191, (8, 6), 20, "printed by hashcat on Windows, where it is up to 5% more than on Linux"),
    Row("NVIDIA GeForce RTX 3050 Laptop GPU", 4, 3902, (8, 6), 16),
    Row("NVIDIA GeForce RTX 3050 6GB Laptop GPU", 6, 6144, (8, 6), 20, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 3050 Ti Laptop GPU", 4, 3902, (8, 6), 20),
    Row("NVIDIA GeForce RTX 3060", 12, 11931, (8, 6), 28),
    Row("NVIDIA GeForce RTX 3060 Ti", 8, 7833, (8, 6), 38),
    Row("NVIDIA GeForce RTX 3060 Laptop GPU", 6, 6143, (8, 6), 30, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 3070", 8, 7.78 * 1024, (8, 6), 46, _message("akshitac8/OW-DETR issue 46")),
    Row("NVIDIA GeForce RTX 3070 Ti", 8, 7840, (8, 6), 48, _LLAMA),
    Row("NVIDIA GeForce RTX 3070 Laptop GPU", 8, 7982, (8, 6), 40),
    Row("NVIDIA GeForce RTX 3070 Ti Laptop GPU", 8, 7850, (8, 6), 46, _LLAMA),
    Row("NVIDIA GeForce RTX 3080 10GB", 10, 9.78 * 1024, (8, 6), 68, _message("zai-org/CogVideo issue 34")),
    Row("NVIDIA GeForce RTX 3080 12GB", 12, 12117, (8, 6), 70),
    Row("NVIDIA GeForce RTX 3080 Ti", 12, 11910, (8, 6), 80),
    Row("NVIDIA GeForce RTX 3090", 24, 24259, (8, 6), 82),
    Row("NVIDIA GeForce RTX 3090 Ti", 24, 24114, (8, 6), 84),
    # Ada Lovelace
    Row("NVIDIA L4", 24, 22563, (8, 9), 58),
    Row("NVIDIA L40", 48, 44.40 * 1024, (8, 9), 142, _message("QwenLM/Qwen3-VL issue 2097")),
    Row("NVIDIA L40S", 48, 45589, (8, 9), 142),
    Row("NVIDIA RTX 4000 Ada Generation", 20, 19.995 * 1024, (8, 9), 48, _ON_WINDOWS),
    Row("NVIDIA RTX 4500 Ada Generation", 24, 24569, (8, 9), 60, _ON_WINDOWS),
    Row("NVIDIA RTX 6000 Ada Generation", 48, 48622, (8, 9), 142),
    Row("NVIDIA GeForce RTX 4050 Laptop GPU", 6, 5.67 * 1024, (8, 9), 20),
    Row("NVIDIA GeForce RTX 4060", 8, 7807, (8, 9), 24),
    Row("NVIDIA GeForce RTX 4060 Laptop GPU", 8, 7806, (8, 9), 24),
    Row("NVIDIA GeForce RTX 4060 Ti 8GB", 8, 7806, (8, 9), 34),
    Row("NVIDIA GeForce RTX 4060 Ti 16GB", 16, 15944, (8, 9), 34, _LLAMA),
    Row("NVIDIA GeForce RTX 4070", 12, 11874, (8, 9), 46),
    Row("NVIDIA GeForce RTX 4070 SUPER", 12, 12282, (8, 9), 56, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 4070 Ti", 12, 12007, (8, 9), 60),
    Row("NVIDIA GeForce RTX 4070 Ti SUPER", 16, 15974, (8, 9), 66),
    Row("NVIDIA GeForce RTX 4070 Laptop GPU", 8, 7806, (8, 9), 36),
    Row("NVIDIA GeForce RTX 4080", 16, 16049, (8, 9), 76),
    Row("NVIDIA GeForce RTX 4080 SUPER", 16, 15944, (8, 9), 80),
    Row("NVIDIA GeForce RTX 4080 Laptop GPU", 12, 12282, (8, 9), 58, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 4090", 24, 23.64 * 1024, (8, 9), 128, _message("ali-vilab/VGen issue 104")),
    Row("NVIDIA GeForce RTX 4090 D", 24, 24111, (8, 9), 114),
    Row("NVIDIA GeForce RTX 4090 Laptop GPU", 16, 16376, (8, 9), 76, _ON_WINDOWS),
    # Hopper
    Row("NVIDIA H100 80GB HBM3", 80, 81089, (9, 0), 132),
    Row("NVIDIA H100 PCIe", 80, 81008, (9, 0), 114),
    Row("NVIDIA H100 NVL", 94, 93.016 * 1024, (9, 0), 132),
    Row("NVIDIA H20", 96, 97285, (9, 0), 78),
    Row("NVIDIA H200", 141, 143156, (9, 0), 132),
    Row("NVIDIA GH200 480GB", 96, 97280, (9, 0), 132, _QUERY),
    # Blackwell
    Row("NVIDIA B200", 180, 182642, (10, 0), 148),
    Row("NVIDIA B300 SXM6 AC", 288, 267.69 * 1024, (10, 3), 148, "total capacity in torch's out-of-memory message, in public logs"),
    Row("NVIDIA RTX PRO 6000 Blackwell Server Edition", 96, 97250, (12, 0), 188),
    Row("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96, 95.0 * 1024, (12, 0), 188, "torch.cuda.mem_get_info, printed by ComfyUI in public logs"),
    Row("NVIDIA GeForce RTX 5060", 8, 8151, (12, 0), 30, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 5060 Laptop GPU", 8, 8151, (12, 0), 26, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 5060 Ti 8GB", 8, 8151, (12, 0), 36, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 5060 Ti 16GB", 16, 15848, (12, 0), 36),
    Row("NVIDIA GeForce RTX 5070", 12, 12227, (12, 0), 48, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 5070 Laptop GPU", 8, 8151, (12, 0), 36, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 5070 Ti", 16, 15842, (12, 0), 70, _LLAMA),
    Row("NVIDIA GeForce RTX 5080", 16, 15840, (12, 0), 84),
    Row("NVIDIA GeForce RTX 5080 Laptop GPU", 16, 16303, (12, 0), 60, _ON_WINDOWS),
    Row("NVIDIA GeForce RTX 5090", 32, 31.36 * 1024, (12, 0), 170, _message("TrajectoryCrafter/TrajectoryCrafter issue 20")),
    Row("NVIDIA GeForce RTX 5090 Laptop GPU", 24, 23.889 * 1024, (12, 0), 82, _ON_WINDOWS),
    Row("NVIDIA GB10", 128, 122502, (12, 1), 48, _LLAMA),
)  # fmt: skip

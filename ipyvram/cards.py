"""Common cards: a name, or a size such as ``24GiB``, comes in, a `Card` goes out. Neither torch nor a GPU is needed.

Memory is what torch reports as the card's total (`get_device_properties`): less than the figure on the box.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ipyvram.units import GIB, MIB, format_bytes, parse_bytes

#: Bytes of a CUDA context of torch with modules loaded lazily (CUDA 11.7 and later): "around 400MB", "~300MB" according to
#: PyTorch's issues 109888 and 107667. It depends on driver and kernels used and is only known by measuring.
TYPICAL_CONTEXT = 400 * MIB

_GIVEN = "as given"
_PROPERTIES = "torch.cuda.get_device_properties, printed in public logs"
_CUDA_SAMPLES = "CUDA's deviceQuery, bottlerocket-os/bottlerocket pull request 3873"


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as a program sees it.

    Attributes
    ----------
    total_bytes : int
        Memory that the driver reports.
    capability : tuple of int
        Compute capability: NVIDIA, "CUDA GPUs", developer.nvidia.com/cuda-gpus.
    multiprocessors : int
        NVIDIA's data sheet of the card, or where ``source`` prints it.
    context_bytes : int
        Typical size of a CUDA context; see `TYPICAL_CONTEXT`.
    source : str
        Where ``total_bytes`` is from.
    """

    name: str
    total_bytes: int
    capability: tuple[int, int]
    multiprocessors: int
    source: str
    context_bytes: int = TYPICAL_CONTEXT

    @property
    def given_name(self) -> str:
        """The card's name; empty for a size."""
        return "" if self.source == _GIVEN else self.name

    @property
    def threads_per_multiprocessor(self) -> int:
        """Resident threads: CUDA C++ Programming Guide, technical specifications per compute capability."""
        major, minor = self.capability
        if (major, minor) == (7, 5):
            return 1024
        return 1536 if (major == 8 and minor > 0) or major >= 11 else 2048

    @property
    def cublas_workspace_bytes(self) -> int:
        """`parseChosenWorkspaceSize` (CublasHandlePool.cpp): 32 MiB on Hopper and Blackwell, else 2 × 4 MiB and 8 × 16 KiB."""
        return 32 * MIB if 9 <= self.capability[0] <= 12 else 8_519_680


_LOGS = f"{_PROPERTIES}: YOLOv5 and Ultralytics print it"
_LOGS_WINDOWS = f"{_LOGS}; under Windows, which shows a little more"
#: Words that tell one card from another of the same number.
_VARIANTS = frozenset({"ti", "super", "laptop"})


def _message(thread: str) -> str:
    return f"total capacity in torch's out-of-memory message, {thread}"


def _card(name: str, mib: float, capability: tuple[int, int], multiprocessors: int, source: str = _PROPERTIES) -> Card:
    return Card(name, int(mib * MIB), capability, multiprocessors, source)


CARDS = (
    _card("NVIDIA GeForce GTX 1080 Ti", 11178, (6, 1), 28),
    _card("Tesla P100-PCIE-16GB", 16280, (6, 0), 56),
    _card("Tesla V100-SXM2-16GB", 16160, (7, 0), 80),
    _card("Tesla V100-SXM2-32GB", 31.75 * 1024, (7, 0), 80, _message("uni-medical/SAM-Med3D issue 8")),
    _card("Tesla T4", 15095, (7, 5), 40),
    _card("NVIDIA GeForce GTX 1650", 3904, (7, 5), 14, _LOGS),
    _card("NVIDIA GeForce GTX 1650 Ti", 4095, (7, 5), 16),
    _card("NVIDIA GeForce GTX 1660 Ti", 5936, (7, 5), 24),
    _card("NVIDIA GeForce RTX 2060", 5918, (7, 5), 30, _LOGS),
    _card("NVIDIA GeForce RTX 2080 Ti", 11019, (7, 5), 68),
    _card("NVIDIA A100-PCIE-40GB", 40326, (8, 0), 108),
    Card("NVIDIA A100-SXM4-40GB", 42_298_834_944, (8, 0), 108, _CUDA_SAMPLES),
    _card("NVIDIA A100-SXM4-80GB", 79.25 * 1024, (8, 0), 108, _message("wbfwonderful/Vad-R1 issue 11")),
    _card("NVIDIA A10G", 22587, (8, 6), 80),
    _card("NVIDIA A40", 45416, (8, 6), 84),
    _card("NVIDIA RTX A6000", 48676, (8, 6), 84),
    _card("NVIDIA RTX A5000", 24248, (8, 6), 64, _LOGS),
    _card("NVIDIA GeForce RTX 3050 Laptop GPU", 3902, (8, 6), 16, _LOGS),
    _card("NVIDIA GeForce RTX 3050 Ti Laptop GPU", 3902, (8, 6), 20, _LOGS),
    _card("NVIDIA GeForce RTX 3060", 11931, (8, 6), 28),
    _card("NVIDIA GeForce RTX 3060 Ti", 7833, (8, 6), 38, _LOGS),
    _card("NVIDIA GeForce RTX 3070", 7.78 * 1024, (8, 6), 46, _message("akshitac8/OW-DETR issue 46")),
    _card("NVIDIA GeForce RTX 3080", 9.78 * 1024, (8, 6), 68, _message("zai-org/CogVideo issue 34")),
    _card("NVIDIA GeForce RTX 3080 Ti", 12054, (8, 6), 80, _LOGS),
    _card("NVIDIA GeForce RTX 3090", 24259, (8, 6), 82),
    _card("NVIDIA GeForce RTX 3090 Ti", 24114, (8, 6), 84),
    _card("NVIDIA L4", 22.03 * 1024, (8, 9), 58, "recalled from out-of-memory messages, no page at hand"),
    _card("NVIDIA L40S", 45589, (8, 9), 142),
    _card("NVIDIA GeForce RTX 4060", 7807, (8, 9), 24, _LOGS),
    _card("NVIDIA GeForce RTX 4060 Ti", 7806, (8, 9), 34, _LOGS),
    _card("NVIDIA GeForce RTX 4070", 11874, (8, 9), 46),
    _card("NVIDIA GeForce RTX 4070 SUPER", 12282, (8, 9), 56, _LOGS_WINDOWS),
    _card("NVIDIA GeForce RTX 4070 Ti", 12007, (8, 9), 60, _LOGS),
    _card("NVIDIA GeForce RTX 4070 Ti SUPER", 15974, (8, 9), 66),
    _card("NVIDIA GeForce RTX 4080", 16049, (8, 9), 76),
    _card("NVIDIA GeForce RTX 4090", 23.64 * 1024, (8, 9), 128, _message("ali-vilab/VGen issue 104")),
    _card("NVIDIA H100 80GB HBM3", 81089, (9, 0), 132),
    _card("NVIDIA H200", 143156, (9, 0), 132),
    _card("NVIDIA B200", 182642, (10, 0), 148),
    _card("NVIDIA GeForce RTX 5070", 12227, (12, 0), 48, _LOGS_WINDOWS),
    _card("NVIDIA GeForce RTX 5070 Ti", 16303, (12, 0), 70, _LOGS_WINDOWS),
    _card("NVIDIA GeForce RTX 5080", 15840, (12, 0), 84, _LOGS),
    _card(
        "NVIDIA GeForce RTX 5090", 31.36 * 1024, (12, 0), 170, _message("TrajectoryCrafter/TrajectoryCrafter issue 20")
    ),
)

#: What Tab offers after ``--card``.
SUGGESTIONS = (
    "T4",
    "A10G",
    "A100",
    "H100",
    '"RTX 3060"',
    '"RTX 3090"',
    '"RTX 4090"',
    "8GiB",
    "16GiB",
    "24GiB",
    "80GiB",
)


def _key(text: str) -> str:
    """Letters and digits that tell cards apart: makers and product lines do not."""
    text = re.sub(r"\b(nvidia|geforce|tesla|quadro|gpu)\b", " ", text.lower())
    return re.sub(r"[^a-z0-9]", "", text)


def _likeness(key: str, card: Card) -> tuple[float, float]:
    """How like ``key`` the card's name is, or its begin (memory and form factor are left out); then, in any order."""
    name = _key(card.name)
    number = name.removeprefix("rtx").removeprefix("gtx")
    parts = (name, name[: len(key)], number[: len(key)])
    matchers = [difflib.SequenceMatcher(None, key, part) for part in parts]
    return max((matcher.ratio(), matcher.quick_ratio()) for matcher in matchers)


def _words(name: str) -> list[str]:
    return [word for word in (_key(part) for part in re.split(r"[^0-9A-Za-z]+", name)) if word]


def _spells(key: str, words: Sequence[str]) -> bool:
    """Whether ``key`` is some of the words in their order: of those that tell a variant, all."""
    if not words:
        return not key
    first, rest = words[0], words[1:]
    if key.startswith(first) and _spells(key.removeprefix(first), rest):
        return True
    return first not in _VARIANTS and _spells(key, rest)


def named(text: str) -> Card:
    """The card of this name: ``RTX 4090``, ``4090``, ``T4``, ``A100`` (the smallest of its kind), ``A100 80GB``.

    A "Ti", a "SUPER", one of a laptop is another card, with other memory.

    Raises
    ------
    ValueError
        There is none; the nearest names are offered.
    """
    key = _key(text)
    found = [card for card in CARDS if _spells(key, _words(card.name))] if re.search(r"\d", key) else []
    if found:
        return min(found, key=lambda card: card.total_bytes)
    close = sorted((c for c in CARDS if _likeness(key, c)[0] >= 0.4), key=lambda c: _likeness(key, c), reverse=True)
    of_each_model: dict[str, str] = {}
    for card in close:
        of_each_model.setdefault(next(word for word in _words(card.name) if re.search(r"\d", word)), card.name)
    nearest = list(of_each_model.values())[:3] or ["Tesla T4", "NVIDIA GeForce RTX 4090"]
    raise ValueError(
        f"no card is known as {text!r}: write its memory, such as 24GiB, or a name like {', '.join(nearest)}"
    )


def of_size(size: int) -> Card:
    """A card with this much memory and nothing else said of it: an Ampere card's ways are assumed."""
    name = f"{size // GIB} GiB" if size % GIB == 0 else format_bytes(size)
    return Card(f"a card of {name}", size, (8, 6), 82, _GIVEN)


def find(card: str | int | None) -> Card:
    """The card that a name, a size or nothing stands for; nothing: this machine's own GPU, else one of 24 GiB.

    Raises
    ------
    ValueError
        It is neither; the nearest names are offered.
    """
    if card is None:
        return _own() or of_size(24 * GIB)
    if isinstance(card, int):
        return of_size(_enough(f"{card} bytes"))
    if re.fullmatch(r"\s*[0-9]{4}\s*", card):  # 4090 is a card; no card has that few bytes
        return named(card)
    if re.fullmatch(r"\s*-?[0-9][0-9_.,]*\s*([kmgt](i?b)?|b|bytes?)?\s*", card, re.IGNORECASE):
        return of_size(_enough(card))
    own = _own()
    return own if own is not None and own.name.lower() == card.strip().lower() else named(card)


def _enough(text: str) -> int:
    try:
        size = parse_bytes(text)
    except ValueError:
        size = 0
    if size < MIB:  # a bare "24" is a slip, not a card of 24 bytes
        raise ValueError(
            f"{text} is no card's memory: write it with its unit, such as 24GiB, or a name such as RTX 4090"
        )
    return size


def _own() -> Card | None:
    """This machine's first GPU, asked without making a context."""
    try:
        import torch

        if not torch.cuda.is_available():
            return None
        p = torch.cuda.get_device_properties(0)
        return Card(p.name, p.total_memory, (p.major, p.minor), p.multi_processor_count, "this machine's driver")
    except Exception:
        return None

"""A name of a common card, or a size such as ``24GiB``, comes in, a `Card` goes out. Neither torch nor a GPU is needed.

Memory is what torch reports as the card's total (`get_device_properties`): less than the figure on the box.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace

from ipyvram.card_table import TABLE
from ipyvram.units import GIB, MIB, format_bytes, parse_bytes

#: Bytes of a CUDA context of torch with modules loaded lazily (CUDA 11.7 and later): "around 400MB", "~300MB" according to
#: PyTorch's issues 109888 and 107667. It depends on driver and kernels used and is only known by measuring.
TYPICAL_CONTEXT = 400 * MIB

_GIVEN = "as given"


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
    box_gb : int
        The figure on the box, by which people tell cards of one model apart; 0 where it is not known.
    note : str
        What a name left open, and how it was taken.
    """

    name: str
    total_bytes: int
    capability: tuple[int, int]
    multiprocessors: int
    source: str
    context_bytes: int = TYPICAL_CONTEXT
    box_gb: int = 0
    note: str = field(default="", compare=False)

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


CARDS = tuple(
    Card(row.name, int(row.mib * MIB), row.capability, row.multiprocessors, row.source, box_gb=row.box_gb)
    for row in TABLE
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


#: Words that tell no cards apart: makers, product lines. Of "TITAN RTX" and "RTX PRO" the "RTX" is a part of the name.
_MAKERS = re.compile(r"\b(nvidia|geforce|tesla|quadro|gpu|generation|edition)\b|\b[rg]tx ?(?=a?[0-9])")
#: What people write in one word and NVIDIA in two, after a number: "4070TiSuper".
_GLUED = re.compile(r"(?<=[0-9])(ti|super|laptop|d)(?=super|laptop|\b)")
#: Words of a name that may be left out: what they say is not another model.
_OPTIONAL = re.compile(r"[0-9]+gb|sxm|pcie|nvl|ac|pascal|blackwell|server|workstation")


def _words(text: str) -> frozenset[str]:
    """The words of a name that tell cards apart, each written in one way."""
    text = re.sub(r"[^a-z0-9]+", " ", text.lower())
    text = _GLUED.sub(r" \1 ", _MAKERS.sub(" ", text))
    text = re.sub(r"\b([0-9]+) ?g(i?b)?\b", r" \1gb ", text)
    return frozenset(re.sub(r"\b(sxm[0-9]|hbm3)\b", "sxm", text).split())  # the SXM one of the H100 is called HBM3


def _is(card: Card, words: frozenset[str]) -> bool:
    """Whether ``words`` name this card: all of them are its own, and no word of its model is missing."""
    own = _words(card.name)
    model = {w for w in own if not _OPTIONAL.fullmatch(w)}
    return model <= words <= own | {f"{card.box_gb}gb"}


def _likeness(key: str, card: Card) -> tuple[float, float]:
    """How like ``key`` the card's name is, or its begin (memory and form factor are left out); then, in any order."""
    name = _key(card.name)
    parts = (name, name[: len(key)])
    matchers = [difflib.SequenceMatcher(None, key, part) for part in parts]
    return max((matcher.ratio(), matcher.quick_ratio()) for matcher in matchers)


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", text.lower()))


def named(text: str) -> Card:
    """The card of this name: ``RTX 4090``, ``4090``, ``T4``, ``A100 80GB``.

    A model is named in whole words: with "Ti", "SUPER" or "Laptop" it is another one. Where a model comes with different
    memory (``A100``), the smallest is taken and the card's note says so.

    Raises
    ------
    ValueError
        There is none; the nearest names are offered.
    """
    words, text = _words(text), text.strip()
    found = sorted((c for c in CARDS if _is(c, words)), key=lambda c: c.box_gb)
    if found:
        smallest, *larger = dict.fromkeys(c.box_gb for c in found)
        others = " or ".join(f"{text} {size}GB" for size in larger)
        note = f"{text} is taken as the card of {smallest} GB: write {others} for the other" if others else ""
        return replace(found[0], note=note)
    key = _key(text)
    close = sorted(CARDS, key=lambda c: _likeness(key, c), reverse=True)[:3] if key else []
    nearest = [c.name for c in close if _likeness(key, c)[0] >= 0.4] or ["Tesla T4", "NVIDIA GeForce RTX 4090"]
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

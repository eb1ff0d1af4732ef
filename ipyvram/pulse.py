"""`Pulse`: what a measurement that is running tells of itself. Written by `run`, read by the live meter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ipyvram.recording import Claim


@dataclass(frozen=True, slots=True)
class Pulse:
    """One moment of a running cell.

    Attributes
    ----------
    elapsed_s : float
        Since the cell began.
    steps : int
        Optimizer steps so far.
    device : str
        The device the figures are of.
    figures : mapping of str to float
        The last sample's, named as `recording.SAMPLE_COLUMNS`; what is unavailable is left out.
    card_bytes, limit_bytes : int or None
        The card's memory, and the part of it to stay within; None without a card.
    held : mapping of str to int
        Category → bytes of what is known to be there: parameters, optimizer state, buffers.
    """

    elapsed_s: float
    steps: int
    device: str
    figures: Mapping[str, float]
    card_bytes: int | None = None
    limit_bytes: int | None = None
    label: str | None = None
    held: Mapping[str, int] = field(default_factory=dict)


#: What is held for as long as the model lives: of these a claim once made stays true.
LASTING = ("parameters", "optimizer_state", "buffers")


def held_by_claims(claims: Sequence[Claim], device: str) -> dict[str, int]:
    """Category of `LASTING` → bytes on a device, zeros left out.

    Of each storage the newest claim of these counts: that a graph saved a parameter, too, makes it nothing else.
    """
    lasting = {c.address: c for c in claims if c.device == device and c.category in LASTING}
    held = dict.fromkeys(LASTING, 0)
    for claim in lasting.values():
        held[claim.category] += claim.nbytes
    return {category: size for category, size in held.items() if size}


def leading_device(latest: Mapping[str, Mapping[str, float]]) -> str:
    """The device to watch: of the accelerators the one with the most allocated, else the CPU."""
    accelerators = [device for device in latest if device != "cpu"]
    return max(accelerators, key=lambda d: latest[d].get("allocated", 0.0), default="cpu")


def limit_of(limit: tuple[float | None, int | None], card_bytes: int | None) -> int | None:
    """A limit given as a share of the card or as bytes, in bytes."""
    share, size = limit
    if size is not None:
        return size
    return int((share or 0.8) * card_bytes) if card_bytes else None

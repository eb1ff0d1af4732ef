"""What is in memory now and who holds it: plain values, made by `probes.residents` and shown by `render.resident`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ipyvram.recording import CATEGORIES

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

#: Kind of holder → what releases it.
RELEASES = {
    "variable": "del the variable",
    "graph": "detach it, or del the tensor",
    "old_model": "del the holder, or make it anew",
    "out": "%vram free --out",
    "traceback": "%vram free --traceback",
    "cycle": "%vram free --cycles",
    "thread": "until the thread lets go of it, or ends",
    "elsewhere": "held outside the notebook's variables",
}


@dataclass(frozen=True, slots=True)
class Holding:
    """Bytes of one category that one holder keeps; every storage is counted for the first holder that reaches it.

    Attributes
    ----------
    kind : str
        A key of `RELEASES`.
    holder : str
        ``model``, ``Out[3], _``, ``the traceback of KeyError``, ``graph of losses``.
    count : int
        Storages.
    example : str
        Path of the largest of them: ``model.fc.weight``.
    """

    holder: str
    kind: str
    category: str
    bytes: int
    count: int
    example: str = ""


@dataclass(frozen=True, slots=True)
class Resident:
    """One device now.

    Attributes
    ----------
    holdings : tuple of Holding
        Largest first; their bytes are those of all storages that Python can see.
    allocated_bytes, reserved_bytes, card_bytes : int or None
        The allocator's counters and the card; None off CUDA.
    complete : bool
        False when there was more in the namespace than is looked through.
    """

    device: str
    holdings: tuple[Holding, ...]
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    card_bytes: int | None = None
    complete: bool = True

    @property
    def bytes(self) -> int:
        """Bytes of all storages seen."""
        return sum(h.bytes for h in self.holdings)

    @property
    def unseen_bytes(self) -> int:
        """What the allocator counts beyond: workspaces, rounding, tensors that only C++ holds."""
        return max(0, (self.allocated_bytes or 0) - self.bytes)

    def by_category(self) -> dict[str, int]:
        """Category → bytes, in the order of display, without zeros."""
        sums = {c: sum(h.bytes for h in self.holdings if h.category == c) for c in CATEGORIES}
        return {c: n for c, n in sums.items() if n}

    def by_holder(self) -> tuple[Holding, ...]:
        """One row a holder, its categories together (the largest names the row), most bytes first."""
        groups: dict[tuple[str, str], list[Holding]] = {}
        for h in self.holdings:
            groups.setdefault((h.holder, h.kind), []).append(h)
        rows = [
            Holding(
                holder, kind, (top := max(group, key=lambda h: h.bytes)).category,
                sum(h.bytes for h in group), sum(h.count for h in group), top.example,
            )
            for (holder, kind), group in groups.items()
        ]  # fmt: skip
        return tuple(sorted(rows, key=lambda h: (-h.bytes, h.holder)))

    def to_frame(self) -> pd.DataFrame:
        """One row a holder and category: holder, kind, category, bytes, count, example."""
        import pandas as pd

        return pd.DataFrame([asdict(h) for h in self.holdings], columns=list(Holding.__dataclass_fields__))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"schema": SCHEMA_VERSION} | asdict(self) | {"holdings": [asdict(h) for h in self.holdings]}

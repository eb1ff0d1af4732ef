"""The same cell in several processes: each rank's `Report` comes in, on rank 0 a table of all goes out.

Reports travel as JSON in byte tensors: torch's own object collectives would unpickle what another process sends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ipyvram.recording import CATEGORIES
from ipyvram.report import Report

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Ranks:
    """One report a rank, by rank; None for a rank that has none."""

    reports: tuple[Report | None, ...]

    @property
    def highest(self) -> int:
        """The rank with the highest peak: the one that runs out of memory first."""
        peaks = [-1 if report is None else report.peak_bytes for report in self.reports]
        return peaks.index(max(peaks))

    @property
    def spread(self) -> float:
        """How far the lowest peak lies below the highest, as a share of that; 0 when all are alike."""
        peaks = [r.peak_bytes for r in self.reports if r is not None]
        highest = max(peaks, default=0)
        return 1 - min(peaks) / highest if highest else 0.0

    def to_frame(self) -> pd.DataFrame:
        """One row a rank: ``device``, ``peak_bytes``, ``peak_reserved_bytes``, ``peak_when``, ``steps``, ``duration_s``, ``error``,
        and the categories at the peak in bytes."""
        import pandas as pd

        names = (
            "device",
            "device_name",
            "peak_bytes",
            "peak_reserved_bytes",
            "peak_when",
            "steps",
            "duration_s",
            "error",
        )
        rows = [
            {} if r is None else {name: getattr(r, name) for name in names} | {c: r.peak[c] for c in CATEGORIES}
            for r in self.reports
        ]
        frame = pd.DataFrame(rows, columns=[*names, *CATEGORIES], index=pd.RangeIndex(len(rows), name="rank"))
        whole = ("peak_bytes", "peak_reserved_bytes", "steps", *CATEGORIES)
        return frame.astype(dict.fromkeys(whole, "Int64"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "schema": SCHEMA_VERSION,
            "ranks": [None if r is None else r.trimmed(12, 8, 60).to_dict() for r in self.reports],
        }

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        from ipyvram.render.ranks import bundle

        return bundle(self)


def gather(report: Report | None, group: Any = None) -> Ranks | None:
    """Bring every rank's report to rank 0. Every rank of the group has to call it.

    Parameters
    ----------
    report : Report or None
        What this rank measured; None where that failed, so that the others need not wait for it.
    group : torch.distributed.ProcessGroup, optional
        Of any backend; the default group where it is left out.

    Returns
    -------
    Ranks or None
        On rank 0 of the group; None on the others.

    Raises
    ------
    RuntimeError
        torch.distributed is not initialised.
    """
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "torch.distributed is not initialised here: gather() is for the processes of torchrun, notebook_launcher or "
            "init_process_group"
        )
    text = b"" if report is None else json.dumps(report.trimmed().to_dict(), allow_nan=False).encode()
    nccl = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, torch.tensor([len(text)], dtype=torch.int64, device=device), group=group)
    room = max(1, max(int(size) for size in sizes))
    mine = torch.zeros(room, dtype=torch.uint8, device=device)
    if text:
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    parts = [torch.zeros_like(mine) for _ in sizes]
    dist.all_gather(parts, mine, group=group)
    if dist.get_rank(group) != 0:
        return None
    texts = (bytes(part[: int(size)].cpu().tolist()) for part, size in zip(parts, sizes, strict=True))
    return Ranks(tuple(Report.from_json(t.decode()) if t else None for t in texts))

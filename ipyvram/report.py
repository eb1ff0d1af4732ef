"""`Report`: everything that is said about one measured cell, frozen; to and from JSON, and out as pandas frames.

`analysis.analyse` makes it from a `Recording`; the renderers see nothing else. Its schema is in `docs/report-schema.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ipyvram.recording import Observation
from ipyvram.report_rows import (
    LABELS,
    Finding,
    GroupRow,
    Lifetime,
    Measurement,
    OutOfMemory,
    Phase,
    StepAccount,
    TensorRow,
    Timeline,
)
from ipyvram.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

    from ipyvram.ranks import Ranks

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """Where every byte went in one cell, on one device.

    Attributes
    ----------
    kind : str
        ``"measured"``, ``"estimated"`` or ``"snapshot"``.
    device, device_name : str
        ``"cuda:0"``, ``"NVIDIA H200"``.
    peak_bytes : int
        The most that was allocated at one instant; ``sum(peak.values()) == peak_bytes``.
    peak, start, end : dict
        Category → bytes, every category of `recording.CATEGORIES`. ``end`` is the end of the cell where that is
        known, else the end of the trace (`provenance` tells).
    peak_reserved_bytes : int or None
        The most the allocator had reserved; None where there is no such thing (CPU).
    card : dict
        At the peak: ``cache``, ``context``, ``other_processes``, ``free`` in bytes; empty without a card.
        ``peak_bytes + sum(card.values()) == card_bytes``.
    card_bytes, limit_bytes : int or None
        The card's memory, and the part of it the user wants to stay within.
    card_name : str
        Name of the card that ``--card`` names instead of the device's own; else empty.
    peak_when : str
        The instant in words: ``"step 3, end of forward"``.
    provenance : dict
        Figure (``peak``, ``categories``, ``end``, ``reserved``, ``context``, ``other_processes``) → ``exact``, ``sampled``,
        ``inferred`` or ``predicted``.
    holders : dict
        Category → its largest holder in words.
    tensors_at_peak : tuple of TensorRow
        Largest first; their bytes add up to `peak_bytes`.
    modules_at_peak, lines_at_peak : tuple of GroupRow
        The same bytes by module path and by source line.
    others : tuple of Report
        The accounts of the other devices the cell used.
    lifetimes : tuple of Lifetime
        The largest of what was live at any moment of the trace, largest first.
    step_accounts : tuple of StepAccount
        The traced steps one by one.
    observations : tuple of recording.Observation
        Facts beside the account: what held memory when the cell ended.
    allocator : dict
        Change of the allocator's own counts over the cell (``retries``, ``ooms``) and its bytes at the end
        (``allocated``, ``reserved``, ``inactive_split``), with what was ``reserved_before`` it; empty off CUDA.
    device_bytes : int or None
        The device's own memory, whatever ``--card`` says.
    batch : int
        Samples that the model was given in the step of the peak; 0 where unknown.
    oom : OutOfMemory or None
        When the cell ended with an out-of-memory error on this device.
    """

    peak_bytes: int
    peak: dict[str, int]
    start: dict[str, int]
    end: dict[str, int]
    label: str | None = None
    note: str | None = None
    kind: str = "measured"
    device: str = "cpu"
    device_name: str = ""
    peak_reserved_bytes: int | None = None
    card: dict[str, int] = field(default_factory=dict)
    card_bytes: int | None = None
    card_name: str = ""
    limit_bytes: int | None = None
    peak_time_s: float = 0.0
    peak_when: str = ""
    peak_phase: str = ""
    peak_step: int = 0
    steps: int = 0
    traced_steps: int = 0
    duration_s: float = 0.0
    overhead_s: float = 0.0
    started_at: float = 0.0  #: Unix time, seconds
    provenance: dict[str, str] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    error: str | None = None
    timeline_data: Timeline = field(default_factory=Timeline)
    phases: tuple[Phase, ...] = ()
    tensors_at_peak: tuple[TensorRow, ...] = ()
    modules_at_peak: tuple[GroupRow, ...] = ()
    lines_at_peak: tuple[GroupRow, ...] = ()
    measurement: Measurement = field(default_factory=Measurement)
    environment: dict[str, str] = field(default_factory=dict)
    others: tuple[Report, ...] = ()
    lifetimes: tuple[Lifetime, ...] = ()
    step_accounts: tuple[StepAccount, ...] = ()
    observations: tuple[Observation, ...] = ()
    allocator: dict[str, int] = field(default_factory=dict)
    device_bytes: int | None = None
    oom: OutOfMemory | None = None
    batch: int = 0

    # -- in a notebook ------------------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What stands under a cell whose last expression is a report: the same as under a measured cell.

        The one arrow from here to the renderers, followed only when a front end asks: a value that shows itself is what
        notebooks expect.
        """
        from ipyvram.render.bundle import bundle

        return bundle(self)

    @property
    def peak_provenance(self) -> str:
        """How the peak is known, and for what where that is not the whole cell; empty where there is no peak.

        After a trace that ended before its cell, only an allocator with counters tells that it stayed lower.
        """
        how = self.provenance.get("peak", "") if self.peak_bytes else ""
        counted = bool(self.allocator) or self.device.startswith("cuda")
        if how != "exact" or counted or self.kind != "measured" or self.provenance.get("end") != "end of trace":
            return how
        if 0 < self.traced_steps < self.steps:
            return f"exact for {self.traced_steps} of {self.steps:,} steps"
        if self.steps and self.traced_steps:  # an evaluation may have followed
            return f"exact for its {self.steps} steps" if self.steps > 1 else "exact for its step"
        return "exact for the traced part"

    def __repr__(self) -> str:
        """In one line: a list of reports is shown by it."""
        return f"<Report {str(self).partition(chr(10))[0]}>"

    def __str__(self) -> str:
        """The peak and its parts in two lines, for ``print`` in a script."""
        name = self.label or {"estimated": "estimate", "snapshot": "snapshot"}.get(self.kind, "report")
        how = f" ({self.peak_provenance})" if self.peak_provenance else ""
        when = f", {self.peak_when}" if self.peak_when else ""
        parts = [f"{LABELS[c]} {format_bytes(n)}" for c, n in self.peak.items() if n]
        head = f"{name} on {self.device}: peak {format_bytes(self.peak_bytes)}{how}{when}"
        return "\n".join([head, *(["  " + " · ".join(parts)] if parts else [])])

    # -- pandas ------------------------------------------------------------------------------------------------------

    def to_frame(self) -> pd.DataFrame:
        """Category × (``start``, ``peak``, ``end`` in bytes; ``share`` of the peak; ``holder``), card rows below."""
        from ipyvram import report_frames

        return report_frames.categories(self)

    def timeline(self) -> pd.DataFrame:
        """Seconds since the cell began × categories, ``allocated``, ``reserved``, ``device_used``, in bytes.

        Rows of the exact account have the categories; rows of the sampler have NA there.
        """
        from ipyvram import report_frames

        return report_frames.timeline(self)

    def tensors(self) -> pd.DataFrame:
        """What is live at the peak, largest first: bytes, category, name, module, line, source, file, shape, dtype, phase, count."""
        from ipyvram import report_frames

        return report_frames.tensors(self)

    def by_module(self) -> pd.DataFrame:
        """Bytes live at the peak by module path × category."""
        from ipyvram import report_frames

        return report_frames.groups(self.modules_at_peak, "module")

    def by_line(self) -> pd.DataFrame:
        """Bytes live at the peak by the source line that allocated them × category."""
        from ipyvram import report_frames

        return report_frames.groups(self.lines_at_peak, "line")

    # -- JSON --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, with a stable key order (`docs/report-schema.md`)."""
        from ipyvram.report_json import encode

        return encode(self)

    def to_json(self) -> str:
        """`to_dict` as text; NaN never appears."""
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """Inverse of `to_dict`.

        Raises
        ------
        ValueError
            Not a report, a damaged one, or one of a newer schema.
        """
        from ipyvram.report_json import decode

        return decode(data)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Inverse of `to_json`; errors as for `from_dict`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a readable ipyvram report: {error}") from error
        return cls.from_dict(data)

    # -- several processes -------------------------------------------------------------------------------------------

    def gather(self, group: Any = None) -> Ranks | None:
        """Bring every rank's report to rank 0 of an initialised torch.distributed group: `ranks.gather`."""
        from ipyvram.ranks import gather

        return gather(self, group)

    # -- smaller -----------------------------------------------------------------------------------------------------

    def trimmed(self, tensors: int = 60, groups: int = 40, points: int = 300) -> Report:
        """The same report for a notebook's output: the smallest rows merged, the timeline thinned; every sum stays.

        Parameters
        ----------
        tensors, groups : int
            Rows to keep; the rest of each category becomes one row with its `count`.
        points : int
            Instants of the exact account, and of the samples, to keep at most.
        """
        from ipyvram.thinning import merge_groups, merge_tensors, thin_timeline

        return replace(
            self,
            tensors_at_peak=merge_tensors(self.tensors_at_peak, tensors),
            modules_at_peak=merge_groups(self.modules_at_peak, groups),
            lines_at_peak=merge_groups(self.lines_at_peak, groups),
            timeline_data=thin_timeline(self.timeline_data, points),
            phases=self.phases[:200],
            lifetimes=self.lifetimes[:tensors],
            step_accounts=self.step_accounts[:20],
            others=tuple(other.trimmed(tensors // 2, groups // 2, points // 2) for other in self.others),
        )

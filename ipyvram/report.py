"""`Report`: everything that is said about one measured cell, frozen; to and from JSON, and out as pandas frames.

`analysis.analyse` makes it from a `Recording`; the renderers see nothing else. Its schema is in `docs/report-schema.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ipyvram.recording import Observation
from ipyvram.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

    from ipyvram.ranks import Ranks

SCHEMA_VERSION = 1

#: Category → what a person reads.
LABELS = {
    "parameters": "Parameters",
    "gradients": "Gradients",
    "optimizer_state": "Optimizer state",
    "inputs": "Batch",
    "activations": "Activations",
    "temporaries": "Temporaries",
    "buffers": "Buffers",
    "outputs": "Outputs",
    "workspaces": "Workspaces",
    "other": "Other",
    "cache": "Cache",
    "context": "CUDA context",
    "other_processes": "Other processes",
    "free": "Free",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the traced steps: ``forward``, ``backward`` or ``optimizer``. Seconds since the cell began."""

    start_s: float
    end_s: float
    name: str
    step: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Two curves on one clock (seconds since the cell began), both thinned so that no peak is lost.

    Attributes
    ----------
    time_s : tuple of float
        Instants of the exact account; a row holds until the next one (memory is stepwise).
    categories : dict of str to tuple of int
        Category → bytes at each instant; a category that stays zero is left out.
    reserved : tuple of int
        Bytes the allocator had reserved at each instant; empty where it was not traced.
    end_s : float
        When the exact account ends.
    sampled_time_s : tuple of float
        Instants of the samples, through the whole cell.
    sampled : dict of str to tuple of int or None
        Column (``allocated``, ``reserved``, ``device_used``, ``process_rss``) → bytes, None where unavailable.
    gaps_s : tuple of (float, float)
        Begin and end of what was not traced between two traces. The exact account has zeros there, which mean nothing.
    """

    time_s: tuple[float, ...] = ()
    categories: dict[str, tuple[int, ...]] = field(default_factory=dict)
    reserved: tuple[int, ...] = ()
    end_s: float = 0.0
    sampled_time_s: tuple[float, ...] = ()
    sampled: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    gaps_s: tuple[tuple[float, float], ...] = ()

    @property
    def allocated(self) -> tuple[int, ...]:
        """Bytes in all categories together at each instant of the exact account."""
        return (
            tuple(map(sum, zip(*self.categories.values(), strict=True))) if self.categories else (0,) * len(self.time_s)
        )


@dataclass(frozen=True, slots=True)
class TensorRow:
    """A storage that was live at the peak. ``count`` > 1 for a row that stands for several small ones."""

    bytes: int
    category: str
    name: str = ""
    module: str = ""
    line: int | None = None  #: in the measured cell, or in ``file`` where that is not empty
    source: str = ""  #: text of that line
    file: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    phase: str = ""  #: when it was allocated
    count: int = 1


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Bytes live at the peak by module path, or by source line: ``key`` is what they are grouped by."""

    key: str
    bytes: int
    categories: dict[str, int]
    count: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A large allocation and when it was live, in seconds since the cell began; ``name`` tells what and where."""

    bytes: int
    category: str
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One plain line worth saying. ``kind`` names the rule, ``bytes`` ranks it (0 where it is not about an amount)."""

    kind: str
    text: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class StepAccount:
    """One traced optimizer step: the account at its own peak and at its end. Dicts are category → bytes, zeros left out."""

    step: int
    start_s: float
    end_s: float
    peak_bytes: int
    end_bytes: int
    peak: dict[str, int]
    end: dict[str, int]
    peak_phase: str = ""
    batch: int = 0  #: samples, 0 where unknown


@dataclass(frozen=True, slots=True)
class Remedy:
    """A way out of an out-of-memory: ``saves_bytes`` is predicted from this cell's own account."""

    kind: str
    text: str
    saves_bytes: int
    enough: bool | None  #: whether it alone would have made this allocation fit; None where that is not known


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The allocation that did not fit and the account at that instant.

    Attributes
    ----------
    account : dict
        Category → bytes live when the allocation was asked for; ``sum(account.values()) == allocated_bytes``.
    limit_bytes, free_bytes, reserved_bytes, largest_free_bytes : int or None
        As in `recording.OomEvent`.
    line, source, file, module, op, phase, step
        Who asked: as in `TensorRow`.
    holders : tuple of TensorRow
        The largest of what was live.
    pinned_bytes : int
        What the error's traceback keeps alive now.
    remedies : tuple of Remedy
        Cheapest first.
    """

    requested_bytes: int
    allocated_bytes: int
    account: dict[str, int]
    limit_bytes: int | None = None
    free_bytes: int | None = None
    reserved_bytes: int | None = None
    largest_free_bytes: int | None = None
    budget: bool = False
    when: str = ""
    phase: str = ""
    step: int = 0
    line: int | None = None
    source: str = ""
    file: str = ""
    module: str = ""
    op: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    holders: tuple[TensorRow, ...] = ()
    pinned_bytes: int = 0
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """How the figures came about.

    ``source`` is a phrase (``allocator trace``, ``storage trace``, ``sampler only``); ``notes`` say what was unavailable.
    """

    source: str = ""
    events: int = 0
    claims: int = 0
    traced_s: float = 0.0
    ended_by: str = ""
    samples: int = 0
    longest_gap_s: float = 0.0
    period_s: float = 0.0
    notes: tuple[str, ...] = ()


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
        (``allocated``, ``reserved``, ``inactive_split``); empty off CUDA.
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

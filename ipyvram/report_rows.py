"""What a `report.Report` is made of: rows, curves and the words for categories. Frozen values, and nothing that computes."""

from __future__ import annotations

from dataclasses import dataclass, field

#: `TensorRow.name` of bytes that came after the traced part.
AFTER_TRACE = "allocated after the traced part"

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


def place_words(file: str, line: int | None) -> str:
    """``line 3`` of the measured cell, ``In[2], line 3`` of another, ``train.py:3``; empty where none is known."""
    if line is None or not file:
        return "" if line is None else f"line {line}"
    return f"{file}, line {line}" if file.startswith(("In[", "another ")) else f"{file}:{line}"


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
    phase: str = ""  #: when it was allocated; ``before``: it was there when the trace began
    count: int = 1
    graph_of: str = ""  #: the variable, or what else leads to it, whose graph of an earlier cell keeps this
    in_error: bool = False  #: the frames of an earlier error hold it

    @property
    def called(self) -> str:
        """The name; without one, what is known of where it was made."""
        if self.name or self.phase == "before":
            return self.name or "there before"
        place = self.module or {"optimizer": "the optimizer step"}.get(self.phase, self.phase)
        return f"made in {place}" if place else "no name known"

    @property
    def place(self) -> str:
        """Where the line is that made it; empty where none is known."""
        return place_words(self.file, self.line)


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
    enough: bool | None  #: whether it alone makes the program fit; None: this allocation, and what follows is not known


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

    @property
    def share_left_bytes(self) -> int | None:
        """What the allocator could still take, where a share of the card ended it; None where the card was full."""
        left = None if self.budget else self._beyond_reserved
        return None if left is None or self.free_bytes is None or left >= self.free_bytes else max(0, left)

    @property
    def outside_bytes(self) -> int:
        """What was on the full card beside this allocator: contexts and other processes; 0 where it is not known."""
        left = self._beyond_reserved
        return 0 if left is None or self.free_bytes is None else max(0, left - self.free_bytes)

    @property
    def _beyond_reserved(self) -> int | None:
        return (
            None if self.limit_bytes is None or self.reserved_bytes is None else self.limit_bytes - self.reserved_bytes
        )


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

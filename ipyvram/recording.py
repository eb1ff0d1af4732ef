"""What a run observed, frozen: the hinge between measuring and explaining.

Probes and the sampler write a `Recording`; `ledger`, `attribution` and `analysis` only read it. It knows neither
torch nor IPython, so a recording of a real GPU can be analysed, tested and shown anywhere.

Every record carries a time in nanoseconds of one clock (`probes.clock`): Unix time at the start of the run, then
strictly increasing within it. Times order records of different probes; within one trace the index of an event does.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Where a byte of allocated memory can belong; the order is the order of display.
CATEGORIES = (
    "parameters", "gradients", "optimizer_state", "inputs", "activations",
    "temporaries", "buffers", "outputs", "workspaces", "other",
)  # fmt: skip


class Action(IntEnum):
    """Kinds of events, named as in the traces of torch's CUDA allocator."""

    ALLOC = 0
    FREE_REQUESTED = 1
    FREE_COMPLETED = 2
    SEGMENT_ALLOC = 3
    SEGMENT_FREE = 4
    SEGMENT_MAP = 5
    SEGMENT_UNMAP = 6
    OOM = 7
    SNAPSHOT = 8


class Frame(NamedTuple):
    """A line of Python that was executing."""

    file: str
    line: int
    function: str


#: User frames (no torch, no site-packages, no ipyvram), innermost first.
Stack = tuple[Frame, ...]


class Origin(NamedTuple):
    """What is known of an allocation when it is made; empty where the source does not tell."""

    op: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Columns of equal length, one row an event, in the order in which they happened.

    Attributes
    ----------
    action : uint8
        An `Action`.
    address : int64
        Device address on CUDA; a serial number never used twice in a storage trace.
    size : int64
        Bytes; the *requested* size on CUDA, the storage's size elsewhere.
    stream : int64
        CUDA stream handle, 0 elsewhere.
    time_ns : int64
        See the module's docstring.
    stack, origin : int32
        Index into `Recording.stacks` and `Recording.origins`, -1 where unknown.
    """

    action: NDArray[np.uint8]
    address: NDArray[np.int64]
    size: NDArray[np.int64]
    stream: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    stack: NDArray[np.int32]
    origin: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.action)

    @classmethod
    def from_rows(cls, rows: list[tuple[int, int, int, int, int, int, int]]) -> Events:
        """Columns from rows of ``(action, address, size, stream, time_ns, stack, origin)``."""
        width = len(EVENT_DTYPES)
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64, width * len(rows)).reshape(-1, width)
        return cls(*(flat[:, i].astype(dtype) for i, dtype in enumerate(EVENT_DTYPES)))


EVENT_DTYPES = (np.uint8, np.int64, np.int64, np.int64, np.int64, np.int32, np.int32)


class Block(NamedTuple):
    """A piece of a segment of the CUDA allocator, or a storage that was live before the trace (then not in a segment)."""

    address: int
    size: int
    requested: int
    state: str = "active_allocated"  #: ``active_allocated``, ``active_awaiting_free`` or ``inactive``
    stack: int = -1


class Segment(NamedTuple):
    """A range of device memory that the CUDA allocator holds."""

    address: int
    size: int
    stream: int
    pool: str  #: ``small`` or ``large``
    expandable: bool
    blocks: tuple[Block, ...]
    private_pool: tuple[int, int] = (0, 0)  #: ``segment_pool_id``; (0, 0) is the shared pool


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Every allocation of one device between two instants.

    Attributes
    ----------
    source : "history" or "storages"
        The CUDA allocator's own history, or the storage trace.
    baseline : tuple of Block
        What was live when the trace began (storages: what the cell used of it).
    segments_end : tuple of Segment
        The CUDA allocator's segments at `stop_ns`, from the same snapshot as the events; empty elsewhere.
    allocated_start : int or None
        The allocator's own counter when the trace began; None where there is none.
    ended_by : str
        Why it stopped: ``"end of cell"``, ``"3 steps"``, ``"event limit"``, ``"time limit"`` …
    complete : bool
        False when events were lost (a full ring buffer): then the first events are missing.
    allocator_settings : dict
        As in torch's snapshots: what ``PYTORCH_CUDA_ALLOC_CONF`` decides; empty where unknown.
    private_pools : dict of int to (int, int)
        Events of segments in private pools (CUDA graphs, ``MemPool``): index of the event → pool. Empty where torch does
        not tell; of segments that are there at the end, `segments_end` tells.
    """

    device: str
    source: Literal["history", "storages"]
    start_ns: int
    stop_ns: int
    events: Events
    baseline: tuple[Block, ...] = ()
    segments_end: tuple[Segment, ...] = ()
    allocated_start: int | None = None
    ended_by: str = "end of cell"
    complete: bool = True
    allocator_settings: dict[str, Any] = field(default_factory=dict)
    private_pools: dict[int, tuple[int, int]] = field(default_factory=dict)


class Claim(NamedTuple):
    """Somebody holds this storage now: made while it was certainly live.

    ``category`` is one of `CATEGORIES`, or ``""`` for a claim that only gives a name. ``address`` is what the trace of
    ``device`` calls the storage; ``nbytes`` is the storage's size in bytes (0 where unknown). ``module`` is the model that has
    it, of inputs the class of a module without parameters that was given them. Of what earlier cells left,
    ``graph_of`` is what leads to the graph that keeps it, and ``in_error`` says that the frames of an error do.
    """

    time_ns: int
    device: str
    address: int
    nbytes: int
    category: str
    name: str
    module: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    graph_of: str = ""
    in_error: bool = False


#: Name of a step that the program makes itself, or in compiled code.
BY_HAND = "by hand"


class Mark(NamedTuple):
    """A phase begins or ends.

    ``kind`` is ``forward``, ``backward``, ``optimizer`` or ``module``; ``begin`` tells which end it is. ``name`` is the
    root module, the optimizer or the module path; ``step`` counts optimizer steps from 1 (the step being worked on). A step
    that no optimizer told of (`BY_HAND`) begins and ends at once.
    """

    time_ns: int
    kind: str
    begin: bool
    step: int
    name: str = ""
    grad: bool = True  #: whether autograd was recording
    raised: bool = False  #: an error ended it


#: Columns a sampler may fill; bytes unless the name says otherwise.
SAMPLE_COLUMNS = (
    "allocated", "reserved", "active", "inactive_split", "retries",
    "device_used", "device_total", "process_used", "other_processes",
    "gpu_utilization_percent", "memory_utilization_percent", "driver_allocated", "process_rss",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What the sampler saw of one device: columns of float64, NaN where a figure was unavailable.

    A row stands for one sample, or after thinning for several: then it holds each column's maximum, at the first time.
    """

    device: str
    time_ns: NDArray[np.int64]
    columns: dict[str, NDArray[np.float64]]
    count: int  #: samples taken, before thinning
    longest_gap_s: float
    period_s: float


@dataclass(frozen=True, slots=True)
class Device:
    """A device the cell used. ``total_bytes`` is the card's memory, None for the CPU."""

    id: str
    name: str
    total_bytes: int | None = None
    uuid: str | None = None
    capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """The measured code. ``filename`` is what its frames carry; it is empty for `measure()` blocks."""

    source: str = ""
    filename: str = ""
    first_line: int = 1  #: line of ``filename`` where the block starts, for `measure()` in a file
    numbers: dict[str, int] = field(default_factory=dict)  #: what frames of other cells carry → ``n`` of ``In[n]``


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """How the cell ended when it did not end well. ``interrupted`` for Ctrl-C."""

    type: str
    message: str
    out_of_memory: bool = False
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """A fact beside the account that a finding may need; what each kind means is in `findings`.

    ``kind`` names it; ``name`` is what it is about (a variable, ``Out[3]``, an exception), ``holder`` what keeps it alive.
    """

    kind: str
    bytes: int = 0
    name: str = ""
    holder: str = ""
    count: int = 0
    device: str = ""


@dataclass(frozen=True, slots=True)
class OomEvent:
    """The allocation that did not fit, seen at that instant, before anything was freed.

    Attributes
    ----------
    requested_bytes : int
        What was asked for.
    limit_bytes : int or None
        What could be had: the card, the process's share of it, or the byte budget.
    allocated_bytes, reserved_bytes, free_bytes, largest_free_bytes : int or None
        The allocator's and the driver's figures; the last is the largest free block among the cached ones.
    budget : bool
        The limit is ipyvram's own byte budget and not a card.
    stack, origin : int
        Index into `Recording.stacks` and `Recording.origins`, -1 where unknown.
    pinned_bytes : int
        Tensors on this device that only the error's traceback may keep alive, when the cell had ended.
    pinned : dict
        The same by category, as far as its place tells.
    phase : str
        ``forward``, ``backward`` or ``optimizer`` by the frames of the traceback; empty where they do not tell.
    making_state : bool
        An optimizer was making its state, as its first step does.
    """

    time_ns: int
    device: str
    requested_bytes: int
    limit_bytes: int | None = None
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    free_bytes: int | None = None
    largest_free_bytes: int | None = None
    budget: bool = False
    stack: int = -1
    origin: int = -1
    pinned_bytes: int = 0
    pinned: dict[str, int] = field(default_factory=dict)
    phase: str = ""
    making_state: bool = False
    evaluating: str = ""  #: the class of the root module whose forward it was, where that was in eval mode


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Everything that was observed of one measured cell.

    Attributes
    ----------
    counters_start, counters_end : dict
        Device id → the torch allocator's counters (``allocated``, ``reserved``, ``allocated_peak``, ``reserved_peak``,
        ``retries``, ``ooms``, ``active``, ``inactive_split``; bytes and counts) at the two ends of the cell.
    limit : tuple of (float or None, int or None)
        Share of the card, or bytes: the one that is not None is the user's limit.
    card_bytes : int or None
        The card the user named with ``--card``; None to use the device's own.
    card_name : str
        That card's name; empty where only a size was given.
    notes : tuple of str
        One line each: what was unavailable, what failed inside ipyvram, and what that means for the figures.
    observations : tuple of Observation
        What held memory beside the cell's own account when it ended, and other facts for `findings`.
    oom : OomEvent or None
        The last allocation that did not fit, when the cell ended with that error.
    overhead_s : float
        Seconds spent in ipyvram's own code on the cell's thread, as far as it was timed.
    """

    start_ns: int
    stop_ns: int
    label: str | None = None
    note: str | None = None
    kind: Literal["measured", "estimated", "snapshot"] = "measured"
    cell: Cell = field(default_factory=Cell)
    environment: dict[str, str] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    traces: tuple[Trace, ...] = ()
    claims: tuple[Claim, ...] = ()
    marks: tuple[Mark, ...] = ()
    stacks: tuple[Stack, ...] = ()
    origins: tuple[Origin, ...] = ()
    samples: tuple[Samples, ...] = ()
    counters_start: dict[str, dict[str, int]] = field(default_factory=dict)
    counters_end: dict[str, dict[str, int]] = field(default_factory=dict)
    limit: tuple[float | None, int | None] = (0.8, None)
    card_bytes: int | None = None
    card_name: str = ""
    steps: int = 0
    traced_steps: int = 0
    error: ErrorInfo | None = None
    notes: tuple[str, ...] = ()
    overhead_s: float = 0.0
    observations: tuple[Observation, ...] = ()
    oom: OomEvent | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recording as one compressed file (`recording_file`)."""
        from ipyvram.recording_file import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recording:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            The file is not a recording, is damaged, or was written by a newer version.
        """
        from ipyvram.recording_file import load

        return load(path)

"""What `torch.cuda.memory._snapshot` gives, as the columns and segments of a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from ipyvram.recording import Action, Block, Events, Frame, Segment, Stack

_DEPTH = 8  # user frames kept: enough to tell a helper from its caller
_SEARCHED = 256  # frames of a traceback looked at

#: torch's C++ writer of snapshots uses another word than its Python one.
_STATES = {"active_pending_free": "active_awaiting_free"}
_WITH_STACK = (Action.ALLOC, Action.OOM)  # who frees is not asked
#: Words for what a recording keeps; torch has others.
KNOWN_ACTIONS = {a.name.lower(): int(a) for a in Action}

Entry = Mapping[str, Any]
FrameIndex = Callable[[Sequence[Entry]], int]


def _no_stack(frames: Sequence[Entry]) -> int:
    return -1


def events_of(trace: Iterable[Entry], stack: FrameIndex = _no_stack) -> Events:
    """Columns from one of the ``device_traces``; actions that a recording does not know are left out.

    Parameters
    ----------
    stack : callable
        Index of the user stack for an event's ``frames``.
    """
    rows = []
    for e in trace:
        action = KNOWN_ACTIONS.get(e["action"])
        if action is not None:
            get = e.get
            address = e["addr"] if "addr" in e else get("device_free", 0)
            frames = get("frames") if action in _WITH_STACK else None
            where = stack(frames) if frames else -1
            rows.append((action, address, e["size"], get("stream", 0), get("time_us", 0), where, -1))
    events = Events.from_rows(rows)
    np.multiply(events.time_ns, 1000, out=events.time_ns)
    return events


def private_pools_of(trace: Iterable[Entry]) -> dict[int, tuple[int, int]]:
    """Pools of the events of segments that are not in the shared one: index as in `events_of` → pool (newer torch tells)."""
    known = [e for e in trace if e["action"] in KNOWN_ACTIONS]
    found = [(i, e.get("pool_id")) for i, e in enumerate(known) if e["action"].startswith("segment_")]
    return {i: (int(pool[0]), int(pool[1])) for i, pool in found if pool and tuple(pool) != (0, 0)}


def segments_of(segments: Iterable[Entry], device: int, stack: FrameIndex = _no_stack) -> tuple[Segment, ...]:
    """The segments of one device, in order of address."""
    found = [_segment(s, stack) for s in segments if int(s.get("device", 0)) == device]
    return tuple(sorted(found, key=lambda s: s.address))


def _segment(s: Entry, stack: FrameIndex) -> Segment:
    blocks = []
    address = int(s["address"])
    for b in s["blocks"]:
        at, size = int(b.get("address", address)), int(b["size"])
        requested, state = int(b.get("requested_size", size)), _STATES.get(b["state"], b["state"])
        blocks.append(Block(at, size, requested, state, stack(b.get("frames") or ())))
        address = at + size
    pool = tuple(int(p) for p in s.get("segment_pool_id", (0, 0)))
    return Segment(
        int(s["address"]),
        int(s["total_size"]),
        int(s.get("stream", 0)),
        str(s.get("segment_type", "large")),
        bool(s.get("is_expandable", False)),
        tuple(blocks),
        (pool[0], pool[1]),
    )


class FrameReader:
    """Frames of torch's tracebacks to the index of the user stack in them; torch shares equal ones as one object.

    Parameters
    ----------
    intern : callable
        Index of a stack, as `Recording.stacks` will have it.
    is_user : callable
        Whether a file is the user's.

    Attributes
    ----------
    aside : set of int
        The stacks among these of threads that Python's ``threading`` has started.
    """

    def __init__(self, intern: Callable[[Stack], int], is_user: Callable[[str], bool]) -> None:
        self._intern, self._is_user = intern, is_user
        # What is known is kept, so that its id stays taken.
        self._known: dict[int, Frame | bool] = {}  # False: not the user's
        self._kept: list[Entry] = []
        self._stacks: dict[int, tuple[Sequence[Entry], int]] = {}
        self.aside: set[int] = set()

    def forget(self) -> None:
        """Let go of torch's frames: another snapshot has others."""
        self._known.clear()
        self._kept.clear()
        self._stacks.clear()

    def __call__(self, frames: Sequence[Entry]) -> int:
        seen = self._stacks.get(id(frames))
        if seen is None:
            seen = self._stacks[id(frames)] = (frames, self._read(frames))
        return seen[1]

    def _read(self, frames: Sequence[Entry]) -> int:
        looked = frames[:_SEARCHED]
        found = list(map(self._known.get, map(id, looked)))  # most are known: a lookup each, and no more
        if None in found:
            found = [
                self._user_frame(frame) if known is None else known for frame, known in zip(looked, found, strict=True)
            ]
        users = cast(Stack, tuple(filter(None, found))[:_DEPTH])  # in C: a library's stack has a hundred frames
        if not users:
            return -1
        index = self._intern(users)
        if _begins_thread(frames[-1]):
            self.aside.add(index)
        return index

    def _user_frame(self, frame: Entry) -> Frame | bool:
        if id(frame) not in self._known:
            self._kept.append(frame)
            self._known[id(frame)] = self._read_frame(frame) or False
        return self._known[id(frame)]

    def _read_frame(self, frame: Entry) -> Frame | None:
        filename, line = str(frame.get("filename", "")), int(frame.get("line", 0))
        if not line or not filename or filename == "??" or not self._is_user(filename):
            return None
        return Frame(filename, line, str(frame.get("name", "")))


def _begins_thread(outermost: Entry) -> bool:
    return outermost.get("name") == "_bootstrap" and str(outermost.get("filename", "")).endswith("threading.py")

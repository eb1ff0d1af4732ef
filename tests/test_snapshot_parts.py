"""Entries of torch's snapshots as columns, segments and stacks."""

from __future__ import annotations

from ipyvram.recording import Action, Frame
from ipyvram.snapshot_parts import FrameReader, events_of, segments_of


def test_events_in_their_order_unknown_actions_left_out():
    entries = [
        {"action": "alloc", "addr": 512, "size": 100, "stream": 7, "time_us": 5},
        {"action": "annotate", "addr": 512, "size": 0, "stream": 7, "time_us": 6, "user_metadata": "mine"},
        {"action": "oom", "device_free": 4096, "size": 1024, "stream": 0, "time_us": 7},
    ]
    events = events_of(entries)
    assert events.action.tolist() == [Action.ALLOC, Action.OOM]
    assert events.address.tolist() == [512, 4096]
    assert events.time_ns.tolist() == [5000, 7000]


def test_segments_of_one_device_with_addresses_that_older_snapshots_leave_out():
    segment = {
        "device": 1, "address": 1000, "total_size": 30, "segment_type": "small",
        "blocks": [{"size": 10, "state": "active_pending_free"}, {"size": 20, "state": "inactive"}],
    }  # fmt: skip
    assert segments_of([segment], 0) == ()
    (found,) = segments_of([segment], 1)
    assert [(b.address, b.size, b.state) for b in found.blocks] == [
        (1000, 10, "active_awaiting_free"),
        (1010, 20, "inactive"),
    ]


def test_stacks_hold_the_users_frames_only_and_not_too_many():
    stacks = []
    asked = []

    def is_user(filename):
        asked.append(filename)
        return filename == "mine.py"

    reader = FrameReader(lambda stack: stacks.append(stack) or len(stacks) - 1, is_user)
    mine = {"filename": "mine.py", "line": 3, "name": "f"}
    foreign = [{"filename": "theirs.py", "line": 1, "name": "g"}, {"filename": "??", "line": 0, "name": "c10::malloc"}]
    assert reader([*foreign, mine]) == 0
    assert stacks[0] == (Frame("mine.py", 3, "f"),)
    assert reader(foreign) == -1
    assert asked == ["theirs.py", "mine.py"]  # a frame is judged once
    assert reader.aside == set()
    threads = [{"filename": "/lib/threading.py", "line": 1, "name": name} for name in ("run", "_bootstrap")]
    assert reader([mine, *threads]) in reader.aside
    stacks.pop()
    reader([mine] * 50)
    assert len(stacks[1]) == 8

"""The shift between two clocks, from scopes seen on both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.probes.anchors import Anchors


class Ticking:
    """A clock that goes on by ``step`` ns at every look."""

    def __init__(self, step):
        self.now, self.step = 1_700_000_000_000_000_000, step

    def __call__(self):
        self.now += self.step
        return self.now


def scopes(bounds, shift_ns):
    """What a history whose clock is ``shift_ns`` behind ours notes of scopes in the middle of these bounds."""
    for i, (before, after) in enumerate(bounds):
        for stage, at in (("START", before + (after - before) // 3), ("END", after - (after - before) // 3)):
            yield {"stage": stage, "name": f"ipyvram clock {i}", "device": 0, "time_us": (at - shift_ns) // 1000}


@given(st.integers(-(10**12), 10**12), st.integers(100, 50_000))
def test_finds_the_shift_to_within_the_length_of_a_scope(shift_ns, length_ns):
    clock = Ticking(length_ns)
    anchors = Anchors(clock)
    anchors.drop()
    anchors.read(scopes(anchors._dropped, shift_ns))
    theirs = np.array([clock.now - shift_ns])
    assert abs(int(anchors.to_ours(theirs)[0]) - clock.now) <= length_ns + 1000


def test_a_drift_is_followed_between_two_anchors():
    clock = Ticking(1000)
    anchors = Anchors(clock)
    anchors.drop()
    clock.now += 10**9
    anchors.drop()
    early, late = anchors._dropped[:3], anchors._dropped[3:]
    notes = list(scopes(early, 0))
    notes += [n | {"name": f"ipyvram clock {3 + i // 2}"} for i, n in enumerate(scopes(late, 100_000))]
    anchors.read(notes)
    middle = np.array([early[0].before_ns + 10**9 // 2])
    assert int(anchors.to_ours(middle)[0]) - int(middle[0]) == pytest.approx(50_000, abs=3000)


def test_without_annotations_times_stay():
    anchors = Anchors(Ticking(5))
    anchors.drop()
    anchors.read([{"name": "Optimizer.step#SGD.step", "stage": "START", "time_us": 5}])
    assert anchors.to_ours(np.array([7, 9])).tolist() == [7, 9]


def pinned(*places):
    """A history of three allocations with pins before these places."""
    entries = [{"action": "alloc"} for _ in range(3)]
    for number, place in reversed(list(enumerate(places))):
        entries.insert(place, {"action": "annotate", "user_metadata": f"ipyvram pin {number}"})
    return entries


def with_pins(*times):
    anchors = Anchors(Ticking(1))
    anchors._pinned = list(times)
    return anchors


def test_a_pin_says_what_came_before_it_and_what_after():
    settled = with_pins(100).settle(pinned(1), np.array([150, 160, 170]))
    assert settled.tolist() == [100, 160, 170]
    settled = with_pins(100).settle(pinned(1), np.array([50, 60, 70]))
    assert settled.tolist() == [50, 100, 100]


def test_pins_hold_for_every_event_beyond_them():
    settled = with_pins(100, 200).settle(pinned(0, 2), np.array([0, 500, 150]))
    assert settled.tolist() == [100, 200, 200]


def test_other_peoples_annotations_are_no_pins():
    entries = [{"action": "annotate", "user_metadata": "mine"}, {"action": "alloc"}]
    assert with_pins(100).settle(entries, np.array([7])).tolist() == [7]


def test_a_torch_that_refuses_an_annotation_is_asked_no_more():
    asked = []

    def refuse(pointer, text):
        asked.append(text)
        raise RuntimeError("not supported")

    anchors = Anchors(Ticking(1))
    anchors._annotate = refuse
    anchors.pin(1)
    anchors.pin(2)
    assert asked == ["ipyvram pin 0"]


def test_memory_that_is_not_the_allocators_gets_no_pin_and_the_next_one_does():
    asked = []

    def annotate(pointer, text):
        asked.append(text)
        if pointer == 1:
            raise RuntimeError("annotateMemory: no live allocation found at pointer 0x1")

    anchors = Anchors(Ticking(1))
    anchors._annotate = annotate
    anchors.pin(1)
    anchors.pin(2)
    assert asked == ["ipyvram pin 0", "ipyvram pin 1"]

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

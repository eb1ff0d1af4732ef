"""The clock never stands still and never steps back."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from ipyvram.probes.clock import Clock


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50))
def test_whatever_the_ticks_do_every_time_is_later(ticks):
    source = iter([0, *ticks])
    clock = Clock(ticks=lambda: next(source), unix=lambda: 10**18)
    times = [clock() for _ in ticks]
    assert times == sorted(set(times))
    assert times[0] >= 10**18


def test_it_is_unix_time_and_follows_the_ticks():
    source = iter([5_000, 5_000, 7_500])
    clock = Clock(ticks=lambda: next(source), unix=lambda: 1_700_000_000_000_000_000)
    assert clock() == 1_700_000_000_000_000_000
    assert clock() == 1_700_000_000_000_002_500


def test_threads_get_times_in_order_of_their_own():
    clock, found = Clock(), []

    def ask() -> None:
        found.append([clock() for _ in range(2000)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(times == sorted(set(times)) for times in found)

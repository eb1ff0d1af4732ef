"""The search for the largest size, on programs whose answer is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.sweep.search import MAX_TRIALS, PATIENCE, WIDE, Outcome, SecantSearch, TutorialSearch

MIB = 2**20


def run(search, need: Callable[[int], int], limit: int, *, knows_bytes_beyond: bool = False) -> list[int]:
    """Drive a search over a program that needs ``need(size)`` bytes; sizes in the order tried."""
    tried: list[int] = []
    while (size := search.next()) is not None:
        assert size >= 1
        assert size not in tried
        tried.append(size)
        fits = need(size) <= limit
        search.tell(size, Outcome(fits, need(size) if fits or knows_bytes_beyond else None))
    return tried


@given(
    true=st.integers(1, 12_000),
    slope=st.integers(1000, 10**9),
    share_fixed=st.floats(0, 2),
    rest=st.floats(0, 0.99),
    multiple=st.sampled_from([1, 2, 8, 64]),
    knows=st.booleans(),
)
def test_a_linear_program_is_bracketed_exactly(true, slope, share_fixed, rest, multiple, knows):
    fixed = int(share_fixed * slope * true)
    limit = fixed + slope * true + int(rest * slope)
    search = SecantSearch(limit, multiple)
    tried = run(search, lambda b: fixed + slope * b, limit, knows_bytes_beyond=knows)
    assert len(tried) <= MAX_TRIALS
    assert search.low == true // multiple * multiple
    assert search.high == search.low + multiple


@given(
    st.integers(1, 3000),
    st.integers(1, 100),
    st.floats(0.2, 3),
    st.sampled_from([1, 8]),
    st.integers(1, 20),
    st.booleans(),
)
def test_whatever_the_program_the_bracket_is_true(true, scale, power, multiple, most, knows):
    def need(batch: int) -> int:
        return int(scale * 1000 * batch**power)

    limit = need(true)
    search = SecantSearch(limit, multiple, most=most)
    tried = run(search, need, limit, knows_bytes_beyond=knows)
    assert len(tried) <= most + PATIENCE
    if len(tried) > most:  # one more was due to the width of the bracket before it
        bracket = SecantSearch(limit, multiple, most=most)
        for size in tried[:-1]:
            bracket.tell(size, Outcome(need(size) <= limit))
        assert bracket.high is None or bracket.high - bracket.low > WIDE * bracket.low
    assert all(size % multiple == 0 for size in tried)
    assert search.low == 0 or need(search.low) <= limit
    assert search.high is None or need(search.high) > limit


@pytest.mark.parametrize("kink", [3, 24, 40])
def test_small_sizes_of_another_regime_do_not_mislead_it(kink):
    def need(batch: int) -> int:
        return max(100 * MIB + kink * MIB, 100 * MIB + batch * MIB)

    search = SecantSearch(500 * MIB)
    run(search, need, 500 * MIB)
    assert search.low == 400
    assert search.high == 401 or kink > 32


def test_a_square_ends_in_a_bracket_though_not_to_the_unit():
    search = SecantSearch(10**9)
    run(search, lambda b: 1000 * b * b, 10**9)
    assert search.low <= 1000 < search.high
    assert search.high - search.low < 100


def test_nothing_fits():
    search = SecantSearch(10)
    assert run(search, lambda b: 100 * b, 10)[-1] == 1
    assert (search.low, search.high) == (0, 1)


def test_a_start_that_is_too_large_goes_down():
    search = SecantSearch(500, start=64)
    run(search, lambda b: 100 * b, 500)
    assert (search.low, search.high) == (5, 6)


@pytest.mark.parametrize(("true", "trials"), [(10, 1), (16, 2), (300, 19), (304, 20)])
def test_the_tutorials_rule_grows_by_16(true, trials):
    search = TutorialSearch()
    tried = run(search, lambda b: b, true)
    assert tried == [16 * (i + 1) for i in range(trials)]
    assert search.low == true // 16 * 16


def test_the_tutorials_rule_gives_up_somewhere():
    assert len(run(TutorialSearch(most=5), lambda b: 0, 1)) == 5


@given(st.integers(128, 1000))
def test_the_tutorials_rule_takes_more_trials_for_the_same_answer(true):
    tutorial, secant = TutorialSearch(), SecantSearch(true, multiple=16)
    longer, shorter = run(tutorial, lambda b: b, true), run(secant, lambda b: b, true)
    assert tutorial.low == secant.low
    assert len(longer) > len(shorter)


@given(
    slope=st.floats(1, 500),
    fixed=st.floats(0, 2000),
    room=st.floats(1.2, 12),
    grain=st.sampled_from([2, 20]),
    noise=st.floats(0, 0.02),
    seed=st.integers(0, 99),
)
def test_what_an_allocator_holds_grows_in_steps_and_the_bracket_is_narrow_nevertheless(
    slope, fixed, room, grain, noise, seed
):
    def need(batch: int) -> int:
        held = (fixed + slope * batch) * (1 + noise * random.Random(1000 * seed + batch).random())
        return math.ceil(held / grain) * grain * MIB

    limit = int((fixed + 100 * slope) * room) * MIB
    search = SecantSearch(limit)
    run(search, need, limit)
    assert search.high is not None
    assert search.high - search.low <= max(1, 0.05 * search.low + grain / slope)


def test_a_size_that_did_not_stand_a_longer_run_is_searched_below():
    search = SecantSearch(1000 * MIB)
    run(search, lambda b: b * MIB, 1000 * MIB)
    assert search.low == 1000
    search.tell(1000, Outcome(False))
    assert (search.low < 1000, search.high) == (True, 1000)


def test_a_foresight_that_is_too_low_does_not_hold_up_the_search():
    """It says each time that nothing larger fits: one step tells, a wider one tells again, and then the secant is believed."""
    limit = 4000 * MIB
    search = SecantSearch(limit, foresee=lambda low, high, guess: low)
    tried = run(search, lambda b: 100 * MIB + b * MIB, limit)
    assert tried[:4] == [16, 32, 33, 37]
    assert search.low == 3900
    assert search.high - search.low <= WIDE * search.low

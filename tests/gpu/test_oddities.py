"""Graphs, streams, a history of the user's own, a neighbour on the card, an interrupt, other allocators."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import oddities

pytestmark = pytest.mark.gpu
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def test_the_users_own_history_is_left_on(card, passes):
    passes(oddities.own_history(card.device))


@pytest.mark.parametrize("check", [oddities.streams, oddities.graphs, oddities.neighbour])
def test_unlike_the_rest(card, passes, check):
    passes(check(card))


def test_an_interrupted_cell_has_its_report(card, passes):
    passes(oddities.interrupted(card.device))


def test_nothing_is_left_behind(card, passes):
    passes(oddities.nothing_left_behind(card.device))


@pytest.mark.parametrize("name", oddities.ENVIRONMENTS)
def test_other_allocators_and_settings(card, passes, name):
    passes(oddities.environment(name, card, SCRIPT, seconds=120, enough=120))

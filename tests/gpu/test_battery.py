"""Programs on the card: sums to the byte, names, replay, order, the driver's figures."""

from __future__ import annotations

import pytest

from benchmarks.gpu import battery, programs

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("program", programs.every(small=False), ids=lambda p: p.name)
def test_a_program(card, passes, program):
    passes(battery.check(program, battery.run(program, card.device)))

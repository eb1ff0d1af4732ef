"""Training programs on the card: sums to the byte, names, replay, order, the driver's figures."""

from __future__ import annotations

import pytest

from benchmarks.gpu import battery
from benchmarks.workloads import FAMILIES, Case

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("optimizer", "precision"), [("adam", "fp32"), ("adamw", "amp")])
def test_a_training_program(card, passes, family, optimizer, precision):
    case = Case(family, FAMILIES[family][1][0], optimizer, precision)
    passes(battery.check(case, battery.run(case, card.device)))

"""Which optimizer counts the steps of a program, and which of them is new after the traced ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipyvram.probes.stepping import TURNS, Stepping


def optimizer(kind: type[torch.optim.Optimizer] = torch.optim.SGD, width: int = 2) -> torch.optim.Optimizer:
    return kind([nn.Parameter(torch.ones(width))], lr=0.1)


class Program:
    """Makes steps of optimizers, the first ``traced`` of them in a trace; ``told`` holds the news of the others."""

    def __init__(self, traced: int) -> None:
        self.stepping, self.left, self.told = Stepping(), traced, list[str]()

    def step(self, optimizer: torch.optim.Optimizer, times: int = 1) -> None:
        for _ in range(times):
            news = None
            if self.left > 0:
                self.stepping.cover(optimizer)
            else:
                news = self.stepping.news(optimizer)
            self.left -= 1
            self.told += [news.why] if news else []
            self.stepping.stepped(optimizer, begins=news is not None)


@pytest.mark.parametrize("critic", [1, 2, 5, TURNS])
@pytest.mark.parametrize("first", [True, False])
def test_of_two_that_take_turns_the_first_counts(critic, first):
    generator, discriminator = optimizer(), optimizer()
    program = Program(traced=100)
    for _ in range(6):
        if first:
            program.step(generator)
        program.step(discriminator, critic)
        if not first:
            program.step(generator)
    assert program.stepping.steps == 6 * (1 if first else critic)


def test_one_after_another_all_their_steps_count():
    layers = [optimizer(width=width) for width in (2, 3, 4)]
    program = Program(traced=3)
    for _ in range(2):
        for layer in layers:
            program.step(layer, 20)
    assert program.stepping.steps == 2 * 3 * 20
    assert program.told == ["another SGD began"] * 2


@pytest.mark.parametrize("traced", [3, 5, 1000])
def test_an_inner_loop_that_makes_its_optimizer_anew_counts_like_the_outer_one(traced):
    outer, program = optimizer(torch.optim.AdamW), Program(traced)

    def adapt() -> None:
        inner = optimizer()
        program.step(inner, 3)

    for _ in range(5):
        for _ in range(2):
            adapt()
        program.step(outer)
    assert program.stepping.steps == 5 * (2 * 3 + 1)


def test_one_that_begins_late_and_takes_turns_does_not_lead():
    generator, critic = optimizer(width=3), optimizer()
    program = Program(traced=3)
    for _ in range(10):
        program.step(critic, 5)
        program.step(generator)
    assert program.told == ["another SGD began"]
    assert program.stepping.steps == 50 + 1


def test_one_for_each_parameter_counts_once():
    several = [optimizer() for _ in range(5)]
    program = Program(traced=1000)
    for _ in range(2 * TURNS):
        for each in several:
            program.step(each)
    assert program.stepping.steps == 2 * TURNS


def test_one_made_anew_for_the_same_parameters_is_nothing_new():
    weight = nn.Parameter(torch.ones(2))
    program = Program(traced=3)
    for _ in range(4):
        anew = torch.optim.SGD([weight], lr=0.1)
        program.step(anew, 5)
    assert program.told == []
    assert program.stepping.steps == 20
    program.step(torch.optim.Adam([weight]))
    assert program.told == ["another Adam began"]


def test_a_model_in_the_place_of_one_that_is_gone_is_nothing_new_and_one_beside_it_is():
    program = Program(traced=3)
    for _ in range(4):
        learner = optimizer()
        program.step(learner, 5)
    assert program.told == []
    beside = optimizer()
    program.step(beside, 5)
    assert program.told == ["another SGD began"]
    assert program.stepping.steps == 25


def test_one_that_updates_more_is_told_each_time():
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    growing = torch.optim.Adam(weights[:1])
    program = Program(traced=3)
    program.step(growing, 5)
    for weight in weights[1:]:
        growing.add_param_group({"params": [weight]})
        program.step(growing, 5)
    assert program.told == ["Adam updates more"] * 2


def test_nothing_is_kept_alive():
    import weakref

    program = Program(traced=1)
    held = [optimizer(), optimizer(width=3)]
    for each in held:
        program.step(each, 2)
    gone = [weakref.ref(each.param_groups[0]["params"][0]) for each in held] + [weakref.ref(each) for each in held]
    del held, each
    assert [ref() for ref in gone] == [None] * 4

"""Steps of programs whose updates no optimizer tells of: how many, when, and that parts of other steps are none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ipyvram
from ipyvram.probes.by_hand import ByHand
from ipyvram.recording import BY_HAND, Mark
from ipyvram.report import Report
from tests.measured import measured

X, Y = torch.ones(16, 32), torch.zeros(16, dtype=torch.long)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))


def loss_of(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(X), Y)


def update(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad


def in_place(steps: int) -> None:
    model = network()
    for _ in range(steps):
        loss_of(model).backward()
        update(model)
        for parameter in model.parameters():
            parameter.grad.zero_()


def of_data(steps: int) -> None:
    model = network()
    for _ in range(steps):
        model.zero_grad()
        loss_of(model).backward()
        for parameter in model.parameters():
            parameter.data -= 0.1 * parameter.grad


def of_tensors(steps: int) -> None:
    weight = torch.ones(32, 4, requires_grad=True)
    for _ in range(steps):
        F.cross_entropy(X @ weight, Y).backward()
        weight = (weight - 0.1 * weight.grad).detach().requires_grad_()


def of_given_gradients(steps: int) -> None:
    model = network()
    parameters = list(model.parameters())
    for _ in range(steps):
        gradients = torch.autograd.grad(loss_of(model), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient


def accumulated(steps: int) -> None:
    model = network()
    for i in range(4 * steps):
        loss_of(model).backward()
        if i % 4 == 3:
            update(model)
            model.zero_grad()


def without_update(steps: int) -> None:
    model = network()
    for _ in range(steps):
        loss_of(model).backward()
        model.zero_grad()


@pytest.mark.parametrize("program", [in_place, of_data, of_tensors, of_given_gradients, accumulated, without_update])
def test_steps_are_counted_and_the_first_three_traced(program):
    report = measured(lambda: program(7))
    assert (report.steps, report.traced_steps) == (7, 3)
    assert [row.step for row in report.step_accounts] == [1, 2, 3]
    assert report.measurement.notes == ()
    assert sum(report.peak.values()) == report.peak_bytes


@pytest.mark.parametrize("program", [in_place, of_data, of_tensors, of_given_gradients, accumulated])
def test_a_short_program_is_traced_whole(program):
    report = measured(lambda: program(2))
    assert (report.steps, report.traced_steps) == (2, 2)


class Climbing(torch.optim.Optimizer):
    """Looks from elsewhere first, as sharpness-aware minimisation does; its own `step` is never called."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    @torch.no_grad()
    def climb(self, sign: int) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(sign * 0.01)

    def train(self, model: nn.Module) -> None:
        loss_of(model).backward()
        self.climb(1)
        self.zero_grad()
        loss_of(model).backward()
        self.climb(-1)
        self.base.step()
        self.zero_grad()


def climbing(steps: int) -> None:
    model = network()
    optimizer = Climbing(list(model.parameters()))
    for _ in range(steps):
        optimizer.train(model)


def of_several_tasks(steps: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        taken = []
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward()
            taken.append([parameter.grad.clone() for parameter in model.parameters()])
        for parameter, *gradients in zip(model.parameters(), *taken, strict=True):
            parameter.grad = sum(gradients)
        optimizer.step()


def with_closure(steps: int) -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def against_itself(steps: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        change = torch.zeros_like(X, requires_grad=True)
        for _ in range(5):
            F.cross_entropy(model(X + change), Y).backward()
            change.data += 0.1 * change.grad.sign()
            change.grad.zero_()
        optimizer.zero_grad()
        F.cross_entropy(model(X + change.detach()), Y).backward()
        optimizer.step()


def of_fast_weights(steps: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, X), Y)

    for _ in range(steps):
        fast = dict(model.named_parameters())
        for _ in range(4):
            gradients = torch.func.grad(loss)(fast)
            fast = {name: weight - 0.1 * gradients[name] for name, weight in fast.items()}
        optimizer.zero_grad()
        loss(fast).backward()
        optimizer.step()


class Bounded(nn.Linear):
    """Bounds its weights whenever it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.copy_(self.weight.renorm(2, 0, 1.0))
        return super().forward(x)


def of_bounded_weights(steps: int) -> None:
    model = Bounded(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(4 * steps):
        loss_of(model).backward()
        nn.utils.clip_grad_norm_(model.bias, 1.0)
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    "program",
    [climbing, of_several_tasks, with_closure, against_itself, of_fast_weights, of_bounded_weights],
)
def test_parts_of_an_optimizers_step_are_no_steps(program):
    assert measured(lambda: program(5)).steps == 5


def test_backwards_between_which_an_optimizer_only_zeroes_are_no_steps():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def program() -> None:
        for _ in range(5):
            loss_of(model).backward()
            optimizer.zero_grad()

    assert measured(program).steps == 0


def test_the_step_before_an_error_counts():
    model = network()

    def program() -> None:
        for i in range(4):
            loss_of(model).backward()
            update(model)
            model.zero_grad()
            if i == 3:
                model(X[:, :3])

    with pytest.raises(RuntimeError), ipyvram.measure() as m:
        program()
    assert m.report.steps == 4


def test_temporaries_of_an_update_belong_to_its_step():
    model = nn.Linear(1000, 1000)

    def program() -> None:
        for _ in range(5):
            model(torch.ones(2, 1000)).sum().backward()
            update(model)
            model.zero_grad()

    report = measured(program)
    assert report.peak_when == "in the update of step 1"
    assert report.peak["temporaries"] == 4_000_000
    assert {row.peak["temporaries"] for row in report.step_accounts} == {4_000_000}
    assert "in the update of step 1" in str(report)


def test_an_optimizer_in_a_compiled_function():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
    step = torch.compile(lambda: optimizer.step(), backend="eager")

    def program() -> None:
        for _ in range(5):
            loss_of(model).backward()
            step()
            optimizer.zero_grad()

    for _ in range(2):
        report = measured(program)
        assert (report.steps, report.environment["optimizer"]) == (5, "Adam")
        assert report.peak["optimizer_state"] >= 2 * report.peak["parameters"]


def test_a_later_batch_that_grew_is_traced_as_with_an_optimizer():
    model = network()

    def program() -> None:
        for i in range(12):
            batch = torch.ones(4096 if i >= 9 else 16, 32)
            model(batch).sum().backward()
            update(model)
            model.zero_grad()

    report = measured(program)
    assert report.steps == 12
    assert report.peak_bytes > 4096 * 64 * 4


def test_the_batch_of_each_step_is_what_its_model_was_given():
    """Also where a loss is a module, and was given more rows: time times samples."""
    rnn, out, criterion = nn.RNN(8, 16), nn.Linear(16, 4), nn.NLLLoss()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = rnn, out

        def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y, state = self.rnn(x, state)
            return F.log_softmax(self.out(y).flatten(0, 1), 1), state

    model = Model()

    def program() -> None:
        state = torch.zeros(1, 20, 16)
        for _ in range(3):
            model.zero_grad()
            y, state = model(torch.ones(35, 20, 8), state.detach())
            criterion(y, torch.zeros(700, dtype=torch.long)).backward()
            update(model)

    assert [step.batch for step in measured(program).step_accounts] == [20, 20, 20]


def marks(kinds: str) -> list[Mark]:
    """``F f`` a forward, ``B b`` a backward, at times 10, 20, …"""
    names = {"f": "forward", "b": "backward"}
    return [Mark(10 * (i + 1), names[kind.lower()], kind.isupper(), 1) for i, kind in enumerate(kinds)]


def follow(turns: int, begin: Callable[[torch.Tensor], None], kinds: str = "FfBb") -> tuple[list[Mark], int]:
    """Marks and steps of a loop on a parameter; ``begin`` is done after each backward."""
    by_hand, found, steps = ByHand(), list[Mark](), 0
    parameter = nn.Parameter(torch.ones(3))
    by_hand.traced(0, 0)
    for turn in range(turns):
        base = len(found)
        new = [m._replace(time_ns=1000 * turn + m.time_ns, step=steps + 1) for m in marks(kinds)]
        found += new[: kinds.index("B")]
        steps += by_hand.steps(found, steps + 1)
        found += [m._replace(step=steps + 1) for m in new[kinds.index("B") :]]
        parameter.grad = torch.ones(3) if parameter.grad is None else parameter.grad.add_(1)
        by_hand.ended([parameter], len(found), 1000 * turn + 10 * len(kinds))
        begin(parameter)
        assert len(found) >= base + len(kinds)
    return found, steps + by_hand.steps(found, steps + 1, over=True)


def clear(parameter: torch.Tensor) -> None:
    parameter.grad = None


@pytest.mark.parametrize("turns", [2, 3, 6])
def test_a_step_ends_where_the_next_model_is_called(turns):
    found, steps = follow(turns, clear)
    assert steps == turns
    ends = [m for m in found if m.name == BY_HAND]
    assert [(m.step, m.begin) for m in ends] == [(n, b) for n in range(1, turns + 1) for b in (True, False)]
    begins = [m for m in found if m.kind == "forward" and m.begin]
    assert [m.step for m in begins] == list(range(1, turns + 1))
    assert [m.time_ns for m in ends[::2]][:-1] == [m.time_ns for m in begins[1:]]
    assert [m.time_ns for m in found] == sorted(m.time_ns for m in found)


def test_a_step_without_a_model_ends_with_its_backward():
    found, steps = follow(4, clear, "Bb")
    assert steps == 4
    assert [(m.step, m.kind, m.begin) for m in found[:5]] == [
        (1, "backward", True),
        (1, "backward", False),
        (1, "optimizer", True),
        (1, "optimizer", False),
        (2, "backward", True),
    ]


def test_gradients_that_go_on_are_one_step():
    assert follow(4, lambda parameter: None)[1] == 0


def test_one_that_an_optimizer_tells_of_ends_the_search():
    by_hand, parameter = ByHand(), nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    by_hand.ended([parameter])
    parameter.grad = None
    assert by_hand.steps([], 1) == 0
    by_hand.told()
    assert by_hand.steps([], 1, over=True) == 0
    assert not by_hand.found


def test_an_estimate_ends_after_such_steps():
    namespace = {"torch": torch, "network": network, "loss_of": loss_of, "update": update, "F": F, "X": X, "Y": Y}
    code = (
        "model = network().cuda(); x, y = X.cuda(), Y.cuda()\n"
        "for _ in range(1000):\n    model.zero_grad(); F.cross_entropy(model(x), y).backward(); update(model)"
    )
    report = ipyvram.estimate(code, card="T4", namespace=namespace)
    assert (report.steps, report.measurement.ended_by) == (3, "3 steps")
    assert [row.step for row in report.step_accounts] == [1, 2, 3]


def test_a_report_of_such_a_program_goes_through_json():
    report = measured(lambda: in_place(4))
    assert Report.from_json(report.to_json()).step_accounts == report.step_accounts

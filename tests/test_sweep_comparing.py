"""Answers for real programs, against what they really need: `compare_batches` and its errors."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import ipyvram
from ipyvram.comparison import Comparison
from ipyvram.options import Options
from ipyvram.recording import Cell
from ipyvram.sweep.bodies import FunctionBody
from ipyvram.sweep.comparing import compare_cell
from ipyvram.sweep.trial import MeasuredTrials

MIB = 2**20


class TutorialCNN(nn.Module):
    """The network of torch's CIFAR-10 tutorial."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(3, 6, 5), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x))).flatten(1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def tutorial_cnn():
    model = TutorialCNN()
    return model, torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)


def resnet18():
    from torchvision.models import resnet18

    model = resnet18(num_classes=10)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def small_vit():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)
    return model, torch.optim.AdamW(model.parameters())


def training(make):
    """A training program on small images, as a function of the batch size."""
    side = 16 if make is resnet18 else 32

    def train(batch_size: int) -> None:
        model, optimizer = make()
        for _ in range(30):
            x, y = torch.randn(batch_size, 3, side, side), torch.randint(0, 10, (batch_size,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return train


MODELS = {"tutorial CNN": (tutorial_cnn, 150), "ResNet-18": (resnet18, 45), "small ViT": (small_vit, 90)}


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_at_twice_the_largest_size_is_predicted_within_a_percent(name):
    make, _ = MODELS[name]
    found = ipyvram.compare_batches(training(make), [8, 16, 32], steps=1)
    assert found.fit.linear
    predicted = found.fit.predict(64).bytes
    measured = MeasuredTrials(FunctionBody(training(make)))(64, 1).peak_bytes
    assert predicted == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(
    ("name", "multiple"), [("tutorial CNN", 1), ("tutorial CNN", 8), ("small ViT", 8), ("ResNet-18", 1)]
)
def test_the_largest_size_under_a_byte_budget_is_bracketed_exactly(name, multiple):
    make, about = MODELS[name]
    trials = MeasuredTrials(FunctionBody(training(make)))
    limit = trials(about, 1).peak_bytes + 1000
    found = ipyvram.compare_batches(training(make), limit=f"{limit}", multiple=multiple, steps=1)
    assert found.trials <= 8
    assert found.largest.status == "verified"
    assert found.largest.batch % multiple == 0
    assert trials(found.largest.batch, 1).peak_bytes <= limit < trials(found.largest.batch + multiple, 1).peak_bytes
    assert found.largest.beyond == found.largest.batch + multiple
    assert any(row.batch == found.largest.beyond and row.status == "OOM" for row in found.rows)


def attention_without_bound(batch_size: int) -> None:
    """Quadratic in the batch: every sample attends to every other."""
    model = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(9):
        rows = model(torch.randn(batch_size, 16))
        optimizer.zero_grad()
        (rows @ rows.T).softmax(1).square().sum().backward()
        optimizer.step()


def test_a_cell_of_one_step_is_given_a_size_that_stands_two():
    """The first step makes the optimizer's state, which is beside the second one's activations."""

    def one_step(batch_size: int, steps: int = 1) -> None:
        model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.ReLU()) for _ in range(4)))
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(batch_size, 512)).sum().backward()
            optimizer.step()

    found = ipyvram.compare_batches(one_step, limit="32MiB")
    with ipyvram.measure() as m:
        one_step(found.largest.batch, steps=2)
    assert m.report.peak_step == 2
    assert 0.95 * 32 * MIB < m.report.peak_bytes <= 1.01 * 32 * MIB
    assert found.largest.needed_bytes == pytest.approx(m.report.peak_bytes, rel=0.02)
    assert any("the cell made one step: needs counts a second one" in note for note in found.notes)


def test_a_quadratic_program_is_declared_so_and_not_extrapolated():
    found = ipyvram.compare_batches(attention_without_bound, [128, 256, 512], limit="64MiB", steps=1)
    assert not found.fit.linear
    assert "not linear in the batch, so nothing is extrapolated" in repr_text(found)
    assert max(row.batch for row in found.rows) == 512
    assert found.largest.batch == 512


def test_a_quadratic_program_is_still_bracketed_by_the_search():
    found = ipyvram.compare_batches(attention_without_bound, limit="8MiB", steps=1)
    trials = MeasuredTrials(FunctionBody(attention_without_bound))
    assert trials(found.largest.batch, 1).peak_bytes <= 8 * MIB < trials(found.largest.beyond, 1).peak_bytes
    assert not found.fit.linear


def test_the_side_of_images_is_compared():
    def train(side: int) -> None:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(9):
            net(torch.randn(4, 3, side, side)).sum().backward()
            optimizer.step()

    found = ipyvram.compare_batches(train, [32, 64, 128], name="side")
    assert (found.name, found.of_samples, found.knee) == ("side", False, None)
    inputs = [row.categories["inputs"] for row in found.rows]
    assert inputs == [4 * 3 * side * side * 4 for side in (32, 64, 128)]
    assert "not linear in side" in str(found)


@pytest.mark.parametrize(("name", "first"), [("side", 48), ("batch", 16)])
def test_a_search_for_another_size_begins_at_the_cells_own(name, first):
    source = f"""
{name} = 48
net = nn.Sequential(nn.Conv2d(3, 4, 24), nn.Flatten())
for _ in range(9):
    net(torch.randn(*((2, 3, side, side) if "side" in globals() else (batch, 3, 32, 32)))).sum().backward()
"""
    lines: list[str] = []
    found, error = compare_cell(
        Options(max_batch=name, limit=(None, 2 * MIB)),
        Cell(source),
        {"nn": nn, "torch": torch},
        lambda tree: compile(tree, "cell", "exec"),
        lines.append,
        contextlib.nullcontext,
    )
    assert error is None
    assert lines[0] == f"trial 1 · {name} = {first}"
    assert found.of_samples == (name == "batch")
    assert found.largest.needed_bytes <= 2 * MIB


def test_the_tutorials_rule_takes_more_trials_than_the_fit():
    make, _ = MODELS["tutorial CNN"]
    trials = MeasuredTrials(FunctionBody(training(make)))
    limit = trials(200, 1).peak_bytes + 1000
    tutorial = ipyvram.compare_batches(training(make), limit=f"{limit}", rule="tutorial", steps=1)
    line = ipyvram.compare_batches(training(make), limit=f"{limit}", multiple=16, steps=1)
    assert tutorial.largest.batch == line.largest.batch == 192
    assert tutorial.trials == 13
    assert line.trials <= 7


def repr_text(comparison: Comparison) -> str:
    return " ".join(comparison._repr_mimebundle_()["text/plain"].split())


def test_inference_is_compared_by_its_whole_run():
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval()

    def infer(batch_size: int) -> None:
        with torch.no_grad():
            for _ in range(4):
                model(torch.ones(batch_size, 64))

    found = ipyvram.compare_batches(infer, [64, 128, 256])
    assert found.fit.linear
    assert all(row.samples_per_s > 0 for row in found.rows)
    assert any("there is no optimizer step" in note for note in found.notes)


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"batch_sizes": [8]}, "one size cannot be compared"),
        ({"batch_sizes": [8, 0]}, "0 is not a batch size"),
        ({"batch_sizes": [8, 16.0]}, "write whole numbers"),
        ({"batch_sizes": "8..x"}, "is not a batch size"),
        ({}, "there is no card to fill"),
        ({"batch_sizes": [8, 16], "steps": 0}, "whole numbers from 1"),
        ({"batch_sizes": [8, 16], "limit": "lots"}, "--limit lots"),
        ({"batch_sizes": [8, 16], "rule": "fit"}, "leave batch_sizes out"),
        ({"rule": "guess"}, "write 'fit' or 'tutorial'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(arguments, says):
    ran = []
    with pytest.raises(ValueError, match=says):
        ipyvram.compare_batches(ran.append, **arguments)
    assert ran == []


def test_what_cannot_be_put_back_is_refused_before_anything_runs():
    rows, ran = iter([1, 2]), []

    def train(batch_size: int) -> None:
        ran.append(next(rows))

    with pytest.raises(ValueError, match="rows is an iterator, and what a trial takes from it cannot be put back"):
        ipyvram.compare_batches(train, [8, 16])
    assert ran == []
    assert next(rows) == 1


def test_a_loader_built_elsewhere_is_named():
    model = nn.Linear(4, 4)
    loader = torch.utils.data.DataLoader(torch.zeros(100, 4), batch_size=10)

    def train(batch_size: int) -> None:
        for x in loader:
            model(x)

    with pytest.raises(
        ValueError, match="batch_size was 8 and then 16, but the model was given 10 samples each time: loader was"
    ):
        ipyvram.compare_batches(train, [8, 16])


def test_the_programs_own_error_is_raised_with_what_there_is():
    def train(batch_size: int) -> None:
        if batch_size == 32:
            raise ZeroDivisionError("mine")
        nn.Linear(4, 4)(torch.ones(batch_size, 4))

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        ipyvram.compare_batches(train, [8, 16, 32])
    assert [row.batch for row in caught.value.comparison.rows] == [8, 16]
    assert caught.value.comparison.ended == "ZeroDivisionError: mine"


def test_not_inside_a_measurement():
    with ipyvram.measure(), pytest.raises(ValueError, match="inside a measured cell"):
        ipyvram.compare_batches(lambda batch_size: None, [8, 16])


def test_nothing_is_printed(capsys):
    ipyvram.compare_batches(lambda batch_size: print("noise"), [8, 16])
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_comparison_names_the_card_that_it_is_judged_by():
    found = ipyvram.compare_batches(training(tutorial_cnn), [2, 4], card="T4", steps=1)
    assert found.card_name == "Tesla T4"
    assert "of 14.7 GiB (Tesla T4)" in str(found)


@pytest.mark.parametrize("estimate", [False, True])
def test_a_comparison_says_once_how_the_name_of_several_cards_was_taken(estimate):
    def train(batch_size):
        torch.nn.Linear(8, 8).to("cuda" if estimate else "cpu")(
            torch.ones(batch_size, 8).to("cuda" if estimate else "cpu")
        )

    found = ipyvram.compare_batches(train, [2, 4], card="A100", steps=1, estimate=estimate)
    assert sum("write A100 80GB" in note for note in found.notes) == 1

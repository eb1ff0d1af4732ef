"""The size of the batch, from what models were called with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import strategies as st
from torch import nn

from ipyvram.batches import Batches
from ipyvram.recording import Claim
from ipyvram.sweep.batch_seen import BatchSeen
from tests.measured import measured


def given(*inputs: tuple[tuple[int, ...], str]) -> list[Claim]:
    return [Claim(10, "cpu", i, 4, "inputs", f"x{i}", "", shape, dtype) for i, (shape, dtype) in enumerate(inputs, 1)]


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ([((32, 3, 8, 8), "float32"), ((32,), "int64")], 32),
        ([((4, 20), "int64"), ((4, 20), "int64"), ((20, 20), "bool")], 4),
        ([((4, 20), "int64"), ((20,), "int64")], 4),  # the first, where as many say so
        ([((15, 8), "int64"), ((2, 8, 64), "float32"), ((2, 8, 64), "float32")], 8),  # time first, and an LSTM's state
        ([((8, 15), "int64"), ((2, 8, 64), "float32"), ((2, 8, 64), "float32")], 8),  # batch first
        ([((4, 20), "int64"), ((1, 20, 20), "float32")], 4),  # a mask
        ([((4,), "float32")], 0),  # one observation of four values
        ([((4,), "float32"), ((16, 4), "float32")], 16),
        ([((), "float32")], 0),
        ([], 0),
    ],
)
def test_the_batch_is_dimension_0_of_most_inputs(inputs, size):
    assert Batches(given(*inputs)).size(0, 20) == size


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ([((35, 20), "int64")], 20),  # words of a language model
        ([((24, 20), "int64"), ((21, 20), "int64"), ((24, 24), "bool"), ((20, 24), "bool")], 20),
        ([((20, 35), "int64")], 20),  # the model turns it around itself
        ([((20, 20), "int64")], 20),
        ([((35, 3, 8, 8), "float32"), ((35,), "int64")], 35),
    ],
)
def test_layers_that_take_time_first_tell_which_dimension_counts_samples(inputs, size):
    assert Batches(given(*inputs), time_first=[20]).size(0, 20) == size


def test_a_list_of_images_has_as_many_samples():
    shapes = [("images", (3, 300, 400)), ("images", (3, 200, 500)), ("targets", (1, 4)), ("targets", (1,))]
    claims = [Claim(10, "cpu", i, 4, "inputs", name, "", shape, "int64") for i, (name, shape) in enumerate(shapes, 1)]
    assert Batches(claims).size(0, 20) == 2
    assert Batches(claims[1:]).size(0, 20) == 1  # one image alone is a tensor like any other


def test_only_inputs_of_the_time_count():
    assert Batches(given(((32, 3), "float32"))).size(11, 20) == 0


CLAIMS = st.lists(
    st.builds(
        lambda at, category, shape: Claim(at, "cpu", 1, 4, category, "x", "", shape, "int64"),
        st.integers(0, 20),
        st.sampled_from(["inputs", "inputs", "outputs"]),
        st.sampled_from([(), (4, 2), (8,), (8, 1), (16, 2), (2, 4, 3)]),
    ),
    max_size=40,
)


@for_all(CLAIMS, st.integers(-1, 21), st.integers(-1, 21))
def test_a_stretch_of_time_is_as_its_claims_alone(claims, begin, end):
    inside = [claim for claim in claims if begin <= claim.time_ns <= end]
    assert Batches(claims).size(begin, end) == Batches(inside).size(0, 20)


TRAINED, EVALUATED = (20, 30, True), (0, 10, False)


@pytest.mark.parametrize(
    ("end", "size"),
    [(5, 16), (12, 16), (25, 4), (40, 4)],  # within the evaluation, after it, within training, after that
)
def test_a_validation_has_a_batch_of_its_own(end, size):
    """Its arguments are claimed before its forward begins, or when it returns."""
    claims = [
        Claim(at, "cpu", at, 4, "inputs", "ids", "", shape, "int64")
        for at, shape in [(-1, (16, 8)), (9, (16, 8)), (29, (4, 8))]
    ]
    assert Batches(claims, forwards=[EVALUATED, TRAINED]).size(-5, end) == size


class Detector(nn.Module):
    """Is given its batch as a dict that begins with what there is of each box, not of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.layer(batch["images"]).mean()


def boxes_and_images(count: int) -> dict[str, torch.Tensor]:
    boxes = 3 * count
    return {
        "classes": torch.zeros(boxes, 1),
        "boxes": torch.rand(boxes, 4),
        "images": torch.rand(count, 3, 8, 8),
        "image_of_box": torch.zeros(boxes),
    }


def test_of_a_dict_the_images_count_and_not_their_boxes():
    detector = Detector()
    assert measured(lambda: detector(boxes_and_images(4)).backward()).batch == 4


def test_a_trial_of_a_batch_size_sees_the_images_of_a_dict():
    seen, detector = BatchSeen(), Detector()
    seen.start()
    detector(boxes_and_images(4))
    seen.stop()
    assert seen.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_trial_of_a_batch_size_counts_the_images_of_a_list(number):
    class Lists(nn.Module):
        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            return sum(image.mean() for image in images)

    seen = BatchSeen()
    seen.start()
    Lists()([torch.ones(3, 8 + i, 8) for i in range(number)])
    seen.stop()
    assert seen.shape == (number, 3, 8, 8)


def test_the_state_of_a_recurrent_model_is_no_list_of_images():
    class Decoder(nn.Module):
        def forward(self, state: tuple[torch.Tensor, torch.Tensor], words: torch.Tensor) -> torch.Tensor:
            return state[0].sum() + words.sum()

    seen = BatchSeen()
    seen.start()
    Decoder()((torch.ones(1, 16, 32), torch.ones(1, 16, 32)), torch.ones(16, 5))
    seen.stop()
    assert seen.shape == (1, 16, 32)


def test_transforms_of_single_images_have_no_batch():
    """As `torchvision.transforms.Normalize` in a loader of this process; two steps an iteration, as a GAN's."""

    class Halved(nn.Module):
        def forward(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor / 2

    transform, first, second = Halved(), nn.Linear(64, 64), nn.Linear(64, 1)
    one, other = (torch.optim.Adam(part.parameters()) for part in (first, second))

    def program() -> None:
        for _ in range(2):
            images = torch.stack([transform(torch.ones(1, 8, 8)) for _ in range(16)]).flatten(1)
            second(first(images)).sum().backward()
            one.step()
            second(first(images).detach()).sum().backward()
            other.step()
            one.zero_grad()
            other.zero_grad()

    report = measured(program)
    assert {step.batch for step in report.step_accounts} == {report.batch} == {16}


def test_what_has_no_parameters_has_a_batch_where_nothing_else_tells():
    with torch.no_grad():
        assert measured(lambda: nn.Upsample(scale_factor=2)(torch.ones(6, 3, 8, 8))).batch == 6

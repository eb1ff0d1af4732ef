"""Shapes and memory orders of results on the card, against torch's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.simulated.shapes import channels_last_of, suggested


@st.composite
def strided(draw):
    """A tensor of four or five dimensions as permuting, cutting and expanding leave it."""
    dims = draw(st.sampled_from([4, 5]))
    tensor = torch.empty(draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims)), device="meta")
    tensor = tensor.permute(draw(st.permutations(range(dims))))
    if draw(st.booleans()):
        tensor = tensor[..., : draw(st.integers(1, tensor.shape[-1]))]
    if draw(st.booleans()):
        tensor = tensor[:, :1].expand(-1, draw(st.integers(1, 3)), *(-1,) * (dims - 2))
    return tensor


@given(strided())
def test_the_order_is_the_one_that_torch_reads_from_strides(tensor):
    """A pooling's result is in it."""
    pool = torch.nn.functional.avg_pool2d if tensor.dim() == 4 else torch.nn.functional.avg_pool3d
    order = suggested(tensor) or torch.contiguous_format
    assert pool(tensor, 1).stride() == torch.empty(tensor.shape, device="meta", memory_format=order).stride()


@pytest.mark.parametrize(("dtype", "found"), [(torch.float32, torch.channels_last), (torch.float64, None)])
def test_of_one_channel_the_order_is_known_too_and_doubles_have_none(dtype, found):
    images = torch.empty(8, 28, 28, 1, dtype=dtype, device="meta").permute(0, 3, 1, 2)
    weight = torch.empty(4, 1, 3, 3, dtype=dtype, device="meta")
    assert channels_last_of(images, weight) is found

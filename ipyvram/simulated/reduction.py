"""Scratch of large reductions: the launch configuration of `ATen/native/cuda/Reduce.cuh`, from shapes to bytes.

A reduction that is split over thread blocks asks for a staging buffer and for semaphores; whether and how much follows
from the input's shape and strides and from the card's number of multiprocessors.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ipyvram.cards import Card

_MAX_THREADS, _WARP = 512, 32  # mnt_wrapper<scalar_t>::MAX_NUM_THREADS, at::cuda::warp_size()
_VT0 = 4
_MIN_VALUES, _MAX_VALUES = 16, 256  # values per thread

_INDEXED = ("max.dim", "min.dim", "argmax", "argmin")  # the accumulator is a value with its index
_EXTREMES = ("max", "min", "amax", "amin", "aminmax")
_WELFORD = ("var", "std", "var_mean", "std_mean")  # running mean and variance


class _Shape(NamedTuple):
    """What TensorIterator makes of a reduction: sizes and byte strides of the input, fastest first, reduced ones first."""

    sizes: list[int]
    strides: list[int]
    reduced: int  # leading entries that are reduced


def reduction_scratch(name: str, source: Tensor, out: Tensor, dims: tuple[int, ...], card: Card) -> tuple[int, ...]:
    """Bytes of the staging buffer and of the semaphores, empty where one block does for each output.

    Parameters
    ----------
    name : str
        The operator with its overload, without its namespace: ``sum.dim_IntList``.
    source, out : Tensor
    dims : tuple of int
        The reduced dimensions of ``source``.
    """
    shape = _iterate(source, dims)
    inputs = max(1, source.numel() // max(1, out.numel()))
    return _configure(shape, out.numel(), inputs, _accumulator_bytes(name, source), source.element_size(), card)


def _accumulator_bytes(operator: str, source: Tensor) -> int:
    """Of `arg_t`, in which a thread keeps what it has reduced."""
    name, item = operator.partition(".")[0], source.element_size()
    if operator in _INDEXED or name in _INDEXED:
        return 16
    if name in _WELFORD:
        return 4 * max(4, item)
    if name in ("any", "all"):
        return 1
    if name in _EXTREMES:
        return 2 * item if name == "aminmax" else item
    return max(4, item) if source.is_floating_point() else 8


def _iterate(source: Tensor, dims: tuple[int, ...]) -> _Shape:
    """Dimensions of size one fall away, reduced ones come first by stride, and neighbours that can be are joined."""
    item = source.element_size()
    stride, sizes = source.stride(), source.shape
    kept = [d for d in range(source.dim()) if sizes[d] != 1]
    inside = sorted((d for d in kept if d in dims), key=lambda d: stride[d])
    outside = sorted((d for d in kept if d not in dims), key=lambda d: stride[d])
    first, reduced_strides = _join([(sizes[d], stride[d] * item) for d in inside])
    rest, rest_strides = _join([(sizes[d], stride[d] * item) for d in outside])
    return _Shape(first + rest, reduced_strides + rest_strides, len(first))


def _join(dims: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in dims:
        if sizes and sizes[-1] * strides[-1] == stride:
            sizes[-1] *= size
        else:
            sizes.append(size)
            strides.append(stride)
    return sizes, strides


def last_power(n: int) -> int:
    """The largest power of two up to ``n`` (`last_pow2` of Reduce.cuh and Normalization.cuh)."""
    return 1 << max(0, n.bit_length() - 1)


def _configure(shape: _Shape, outputs: int, inputs: int, accumulator: int, item: int, card: Card) -> tuple[int, ...]:
    """`setReduceConfig`, as far as the split over blocks depends on it."""
    fastest_reduced = (
        not shape.sizes
        or shape.reduced == len(shape.sizes)
        or (shape.reduced > 0 and shape.strides[0] < shape.strides[shape.reduced])
    )
    if fastest_reduced:
        dim0, dim1 = inputs, outputs
        fastest = shape.strides[0] if shape.sizes else item
    else:
        dim0, dim1 = outputs, inputs
        fastest = shape.strides[shape.reduced]
    width_of_output = 1
    if fastest == item:
        if fastest_reduced and dim0 >= 128 and shape.reduced == 1:
            dim0 //= _VT0
        elif not fastest_reduced:
            width_of_output = _output_vector(shape, item)
            dim0 //= width_of_output
    most = _MAX_THREADS // width_of_output
    width_limit = last_power(dim0) if dim0 < most else most
    height_limit = last_power(dim1) if dim1 < most else most
    width = min(width_limit, _WARP)
    height = min(height_limit, most // width)
    width = min(width_limit, most // height)
    step_in = width if fastest_reduced else 1
    step_out = 1 if fastest_reduced else width
    if -(-inputs // step_in) < min(height * 16, _MAX_VALUES):
        return ()  # each warp has an output of its own
    step_in *= height
    values = -(-inputs // step_in)
    grid = -(-(outputs // width_of_output) // step_out)
    target = card.multiprocessors * (card.threads_per_multiprocessor // (width * height))
    if values < _MAX_VALUES or grid > target:
        return ()
    blocks = max(-(-values // _MAX_VALUES), min(-(-target // grid), -(-values // _MIN_VALUES)))
    if blocks <= 1:
        return ()
    staging = accumulator * outputs * blocks * (1 if fastest_reduced else width * width_of_output)
    return staging, 4 * grid


def _output_vector(shape: _Shape, item: int) -> int:
    """`get_output_vec_size`: how many outputs one load covers; allocations are aligned."""
    vector = 4
    for value in (shape.sizes[shape.reduced], *(s // item for i, s in enumerate(shape.strides) if i != shape.reduced)):
        while value % vector:
            vector //= 2
    return vector

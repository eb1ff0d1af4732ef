"""How a trial ended: memory, device or program; and what an error lets go of."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from ipyvram.sweep.failures import broke_the_device, cut, is_out_of_memory, one_line, users_part


def caused_by(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (None, False, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True, False),
        (MemoryError(), True, False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
        (caused_by(ValueError("training failed"), torch.OutOfMemoryError("CUDA out of memory")), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (caused_by(ValueError("failed"), RuntimeError("CUDA error: unspecified launch failure")), False, True),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), False, False),
        (KeyError("out of memory"), False, False),
    ],
)
def test_what_an_error_is(error, memory, device):
    assert is_out_of_memory(error) == memory
    assert broke_the_device(error) == device


def test_an_error_while_handling_an_out_of_memory_is_its_own():
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise KeyError("mine")  # noqa: B904
    except KeyError as error:
        caught = error
    assert not is_out_of_memory(caught)


def test_a_chain_that_bites_its_tail_ends():
    one, two = RuntimeError("a"), RuntimeError("b")
    one.__cause__, two.__cause__ = two, one
    assert not is_out_of_memory(one)
    cut(one)


def test_one_line():
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 1000))) == 300


class Big:
    """Something that a frame holds."""


def test_a_cut_error_holds_nothing_of_its_frames_nor_of_those_of_what_it_came_from():
    held = []

    def inner():
        big = Big()
        held.append(weakref.ref(big))
        raise torch.OutOfMemoryError("CUDA out of memory")

    def outer():
        big = Big()
        held.append(weakref.ref(big))
        try:
            inner()
        except RuntimeError as error:
            raise ValueError("failed") from error

    caught = None
    try:
        outer()
    except ValueError as error:
        caught = error
    cut(caught)
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    assert caught.__cause__.__traceback__ is None


def test_the_users_part_of_a_traceback():
    def program():
        raise KeyError

    try:
        program()
    except KeyError as error:
        frames = error.__traceback__
    assert users_part(frames) is frames  # nothing of ours above it
    assert users_part(None) is None

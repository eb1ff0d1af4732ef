"""How a trial ended comes in; whether that was the memory, the device or the program comes out."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch

_PACKAGE = str(Path(__file__).parents[1])

#: What out of memory reads like where it does not come as `torch.OutOfMemoryError`; lower case.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "failed to allocate",
)
#: After these a CUDA context gives only errors.
_BROKEN_DEVICE = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "uncorrectable ecc error",
    "cuda error: an illegal",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or what it was raised from, says that there was no memory left."""
    return any(_is_one(e) for e in _causes(error))


def broke_the_device(error: BaseException | None) -> bool:
    """Whether no CUDA call will work in this process any more."""
    return any(words in str(e).lower() for e in _causes(error) for words in _BROKEN_DEVICE)


def _is_one(error: BaseException) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    broken = any(words in text for words in _BROKEN_DEVICE)
    return isinstance(error, RuntimeError) and not broken and any(words in text for words in _OUT_OF_MEMORY)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def one_line(error: BaseException) -> str:
    """``TypeName: first line``, short enough for a table."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}".removesuffix(": ")[:300]


def users_part(frames: TracebackType | None) -> TracebackType | None:
    """A traceback from the user's first frame on; all of it where there is none."""
    rest = frames
    while rest is not None and rest.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        rest = rest.tb_next
    return rest if rest is not None else frames


def cut(error: BaseException) -> None:
    """Let go of everything the error's frames hold, along its whole chain."""
    stack, seen = [error], set[int]()
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None
        stack.extend(e for e in (one.__cause__, one.__context__) if e is not None)

"""Sizes in, sizes out: the rounding and splitting rules of torch's CUDA caching allocator, and its settings.

The constants are those of ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.6 to 2.15).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIB = 1 << 20
MIN_BLOCK = 512  #: every block is a multiple of it
SMALL_SIZE = MIB  #: rounded requests up to this live in the small pool
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
MIN_LARGE_ALLOC = 10 * MIB  #: requests from here on get a segment of their own size
ROUND_LARGE = 2 * MIB
NO_LIMIT = 1 << 62
_OPTION = re.compile(r"(\w+):(\[[^\]]*\]|[^,\[\]]+)")
_INTERVALS = 16  # of roundup_power2_divisions: 1 MiB, 2 MiB, … 32 GiB


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``PYTORCH_CUDA_ALLOC_CONF`` decides.

    Attributes
    ----------
    max_split_size : int
        Blocks of at least this many bytes are not split; `NO_LIMIT` when unset.
    max_non_split_rounding : int
        How much larger than its request such a block may be, bytes; as `large_segment` unless set.
    roundup_power2_divisions : tuple of int
        Divisions between powers of two for requests from 1 MiB, 2 MiB … 32 GiB; 0 or 1: round to 512 B.
    garbage_collection_threshold : float
        Share of the allowed memory above which old cached segments are given back; 0 when unset. Torch heeds it only
        where a limit was set by ``set_per_process_memory_fraction``.
    large_segment : int
        Bytes of the segments that requests of 1 to 10 MiB share.
    """

    expandable_segments: bool = False
    max_split_size: int = NO_LIMIT
    max_non_split_rounding: int = LARGE_SEGMENT
    roundup_power2_divisions: tuple[int, ...] = (0,) * _INTERVALS
    garbage_collection_threshold: float = 0.0
    large_segment: int = LARGE_SEGMENT

    @classmethod
    def from_snapshot(cls, settings: Mapping[str, Any]) -> Settings:
        """From the ``allocator_settings`` of a snapshot; what a torch did not write keeps its default."""
        told = cls.from_conf(str(settings.get("PYTORCH_CUDA_ALLOC_CONF") or ""))  # some are only in the text
        divisions = settings.get("roundup_power2_divisions") or {}
        split = int(settings.get("max_split_size", -1))
        return replace(
            told,
            expandable_segments=bool(settings.get("expandable_segments", told.expandable_segments)),
            max_split_size=split if 0 < split < NO_LIMIT else NO_LIMIT,
            roundup_power2_divisions=tuple(int(divisions.get(str(1 << i), 0)) for i in range(_INTERVALS)),
            garbage_collection_threshold=float(settings.get("garbage_collection_threshold", 0.0)),
        )

    @classmethod
    def from_conf(cls, text: str) -> Settings:
        """From the text of ``PYTORCH_CUDA_ALLOC_CONF``; options that do not change where blocks lie are skipped.

        Raises
        ------
        ValueError
            A value is not a number.
        """
        found = dict(_OPTION.findall(text.replace(" ", "")))

        def mib(name: str, default: int) -> int:
            return int(found[name]) * MIB if name in found else default

        try:
            large = mib("large_segment_size_mb", LARGE_SEGMENT)
            return cls(
                expandable_segments=found.get("expandable_segments", "").lower() == "true",
                max_split_size=mib("max_split_size_mb", NO_LIMIT),
                max_non_split_rounding=mib("max_non_split_rounding_mb", large),
                roundup_power2_divisions=_divisions(found.get("roundup_power2_divisions", "0")),
                garbage_collection_threshold=float(found.get("garbage_collection_threshold", "0")),
                large_segment=large,
            )
        except ValueError as error:
            raise ValueError(f"PYTORCH_CUDA_ALLOC_CONF={text}: {error}") from error

    def round(self, size: int) -> int:
        """Bytes of the block that a request of ``size`` bytes asks for."""
        if size < MIN_BLOCK:
            return MIN_BLOCK
        if any(self.roundup_power2_divisions):
            interval = min(max(size.bit_length() - 1 - 20, 0), _INTERVALS - 1)
            divisions = self.roundup_power2_divisions[interval]
            if divisions > 1 and size > MIN_BLOCK * divisions:
                return _next_division(size, divisions)
        return -(-size // MIN_BLOCK) * MIN_BLOCK

    def round_all(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """`round` for a whole column."""
        if any(self.roundup_power2_divisions):
            return np.fromiter((self.round(s) for s in sizes.tolist()), np.int64, len(sizes))
        return np.maximum((sizes + MIN_BLOCK - 1) // MIN_BLOCK, 1) * MIN_BLOCK

    def segment_size(self, rounded: int) -> int:
        """Bytes asked of the driver when no cached block serves a request."""
        if rounded <= SMALL_SIZE:
            return SMALL_SEGMENT
        if rounded < MIN_LARGE_ALLOC:
            return self.large_segment
        return -(-rounded // ROUND_LARGE) * ROUND_LARGE

    def granule(self, small: bool) -> int:
        """Bytes in which expandable segments grow."""
        return SMALL_SEGMENT if small else self.large_segment

    def may_split(self, block: int, size: int, small: bool) -> bool:
        """Whether a free block of ``block`` bytes is split to serve ``size`` bytes."""
        if small or self.expandable_segments:
            return block - size >= MIN_BLOCK
        return size < self.max_split_size and block - size > SMALL_SIZE


def _next_division(size: int, divisions: int) -> int:
    """The next of ``divisions`` equal steps between two powers of two."""
    if size & (size - 1) == 0:
        return size
    floor = 1 << (size.bit_length() - 1)
    step = floor >> (divisions.bit_length() - 1)
    if step == 0:
        return floor << 1
    return -(-size // step) * step


def _divisions(text: str) -> tuple[int, ...]:
    """``8`` for every interval, or ``[256:1,512:2,>:8]``: from a size in MiB on."""
    if not text.startswith("["):
        return (int(text),) * _INTERVALS
    values: list[int] = [0] * _INTERVALS
    last = -1
    for part in filter(None, text.strip("[]").split(",")):
        bound, _, value = part.partition(":")
        if bound == ">":
            values[last + 1 :] = [int(value)] * (_INTERVALS - last - 1)
            continue
        index = min(int(bound).bit_length() - 1, _INTERVALS - 1)
        if last < 0:
            values[:index] = [int(value)] * index
        values[index], last = int(value), index
    return tuple(values)

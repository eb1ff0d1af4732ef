"""The small values that the model of the allocator is made of: pools of free blocks, blocks in use, segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ipyvram.allocator.rules import SMALL_SIZE

SHIFT = 64  # a free block's key is ``size << 64 | address``: one integer orders them by size, then address
ADDRESS = (1 << SHIFT) - 1
SHARED = (0, 0)


@dataclass(slots=True, eq=False)
class Pool:
    """Free blocks of one stream, small or large, of the shared pool (0, 0) or of a private one."""

    small: bool
    stream: int
    private: tuple[int, int] = SHARED
    keys: list[int] = field(default_factory=list)  #: sorted

    def free_blocks(self) -> Iterator[tuple[int, int]]:
        """Address and size of the free blocks, smallest first."""
        return ((key & ADDRESS, key >> SHIFT) for key in list(self.keys))


class Live(NamedTuple):
    """A block in use, or freed by the program while another stream still uses it."""

    size: int
    requested: int
    pool: Pool


class Range(NamedTuple):
    """A segment; of an expandable one its reserved address space."""

    size: int
    pool: Pool
    expandable: bool


def is_small(rounded: int) -> bool:
    """Which pool serves a request of ``rounded`` bytes."""
    return rounded <= SMALL_SIZE
